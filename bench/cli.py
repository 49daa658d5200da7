"""Time of the command line: `tapescope --help` and `columns`; `check` and `status` of a run as long as one of the demo.

    python -m bench.cli [--run=DIRECTORY] [--repeats=7]

Prints the median wall-clock time of each command in a process of its own, with the limit. Exits with 1 if one is
missed. Without --run, a run of 200 records is trained first, which takes half a minute.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HELP_LIMIT_SECONDS = 0.5
CHECK_LIMIT_SECONDS = 1.5
DEMO = ("--preset=sigmoid_relu", "--optimizer=sgd", "--learning_rate=1", "--seed=3", "--steps=4000")
DEMO += ("--measure_every=20", "--noprogress")


def record_run(directory: pathlib.Path) -> None:
    """Train the demo's network: 200 records."""
    command = [sys.executable, "-m", "tapescope_trainers.train", f"--logdir={directory}", *DEMO]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(arguments: list[str], repeats: int) -> float:
    """Return the median time of a command in seconds. It may find something, but must not fail."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "tapescope.cli", *arguments], capture_output=True, text=True)
        times.append(time.perf_counter() - begin)
        if done.returncode not in (0, 1) or done.stderr:
            sys.exit(f"tapescope {' '.join(arguments)} failed with exit code {done.returncode}: {done.stderr}")
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, help="a recorded run; without it, one is trained")
    parser.add_argument("--repeats", type=int, default=7, help="processes for each command (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = options.run
        if run is None:
            run = pathlib.Path(temporary) / "demo"
            record_run(run)
        commands = (
            ("tapescope --help", ["--help"], HELP_LIMIT_SECONDS),
            ("tapescope check RUN", ["check", str(run)], CHECK_LIMIT_SECONDS),
            ("tapescope status RUN", ["status", str(run)], CHECK_LIMIT_SECONDS),
            ("tapescope columns", ["columns"], CHECK_LIMIT_SECONDS),
        )
        all_within = True
        for name, arguments, limit in commands:
            seconds = measure(arguments, options.repeats)
            within = seconds <= limit
            all_within = all_within and within
            print(f"{name:<24}{seconds:>8.2f} s, limit {limit:.2f} s  {'ok' if within else 'MISSED'}")
    return 0 if all_within else 1


if __name__ == "__main__":
    sys.exit(main())
