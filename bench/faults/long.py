"""200,000 recorded steps: do memory, the time that a record takes, open files and threads stay as they are?

The readings are those of 100 steps of a small network, written again and again with rising steps: the probe itself
keeps nothing from one step to the next, and a training of so many steps would measure TensorFlow. No histograms.
"""

import os
import pathlib
import sys
import tempfile
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
from bench.faults.rows import Row, told
from scripts.testbed.records import compiled_readings, open_files_and_threads, write_repeatedly

import tapescope


def resident() -> float:
    """KiB of this process in memory."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def main() -> None:
    """The row of the table."""
    records = 4_000 if "--quick" in sys.argv else 200_000
    part = records // 40
    probe, read = compiled_readings(100, histograms=False)
    memory, cost, holding = [], [], []
    with tempfile.TemporaryDirectory() as scratch, tapescope.Recorder(scratch, probe) as recorder:
        for begin in range(0, records, part):
            since = time.process_time()
            write_repeatedly(recorder, read, range(begin, begin + part))
            cost.append(1000 * (time.process_time() - since) / part)
            memory.append(resident())
            holding.append(open_files_and_threads())
        lost = recorder.lost + recorder.left_out
    half = len(memory) // 2
    slope = np.polyfit(np.arange(half) * part / 1000, memory[half:], 1)[0]
    first, last = np.median(cost[1:5]), np.median(cost[-4:])
    seen = (
        f"memory {memory[1] / 1024:.0f} MiB after {2 * part:,} records, {memory[-1] / 1024:.0f} MiB at the end, in the "
        f"second half {slope:+.2f} KiB in 1,000 records; {first:.2f} ms of processor time a record at the beginning, "
        f"{last:.2f} at the end; open files {holding[0][0]} and {holding[-1][0]}, threads {holding[0][1]} and "
        f"{holding[-1][1]}; {lost} records lost or left out"
    )
    kept = slope < 10 and last < 1.25 * first and holding[0] == holding[-1] and not lost
    told([Row(f"{records:,} records of one run (readings of 100 steps, again and again)", seen, kept)])


if __name__ == "__main__":
    main()
