"""Bytes that replicas exchange in a measured step, and bytes of its record, by number of replicas: a table on paper.

    python -m bench.collective [--variables=1000] [--layers=500] [--units=50000]

`tests/instrument/statistics/test_replicas.py` traces the same counts. The time is that of a ring without latency, in
which each replica sends and receives 2 (R - 1) / R times the bytes (Patarasuk and Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", 2009).
"""

import argparse

from tapescope.statistics import layers, replicas
from tapescope.statistics.data import DATA_ROWS
from tensorboard_plugin_tapescope.metadata import BINS, REPLICA_COLUMNS

REPLICAS = (2, 8, 32, 64, 256, 1024, 4096)
GIGABITS = (100, 400)
_EXTREMES = 2
_COUNT_PARTS = 2
_FLOAT_BYTES = 4


def collective_bytes(number: int, variables: int, layer_count: int, units: int) -> int:
    """Return the bytes of the collective of one measured step of a model with an input and a target."""
    few = replicas.are_few(number)
    of_variables = (len(replicas.COMPARED) + 1 + replicas.SAMPLED_WEIGHTS) * (variables if few else 1)
    rows = len(layers.LAYER_ROWS)
    gathered = (rows if few else _EXTREMES) * layer_count + of_variables + len(DATA_ROWS) * 2 + 1
    summed = len(layers.UNIT_ROWS) * units + variables + _COUNT_PARTS * BINS * layer_count
    if not few:  # in float64
        summed += 2 * (rows - _EXTREMES) * layer_count
    return _FLOAT_BYTES * (number * gathered + summed)


def replica_bytes(number: int, variables: int) -> int:
    """Return the bytes of a record that grow with the number of replicas."""
    compared = variables if replicas.are_few(number) else 1
    return _FLOAT_BYTES * len(REPLICA_COLUMNS) * number * compared


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variables", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=500)
    parser.add_argument("--units", type=int, default=50_000)
    options = parser.parse_args()
    times = [f"ms at {rate} Gbit/s" for rate in GIGABITS]
    print(f"| replicas | collective, MB | {' | '.join(times)} | record, MB |")
    print("|" + " --- |" * (3 + len(GIGABITS)))
    for number in REPLICAS:
        size = collective_bytes(number, options.variables, options.layers, options.units)
        sent = 2 * (number - 1) / number * size
        cells = [f"{sent * 8 / (rate * 1e6):.2f}" for rate in GIGABITS]
        record = replica_bytes(number, options.variables) / 1e6
        print(f"| {number} | {size / 1e6:.1f} | {' | '.join(cells)} | {record:.2f} |")


if __name__ == "__main__":
    main()
