"""200,000 recorded steps: whether memory, time of a record, open files and threads stay constant.

The readings are those of 100 steps of a small network, written repeatedly with rising steps. The probe itself keeps
nothing from one step to the next, so training that many steps would only measure TensorFlow. There are no histograms.
"""

import os
import pathlib
import sys
import tempfile
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
from bench.faults.row import Row, print_rows
from scripts.testbed.records import compiled_readings, open_files_and_threads, write_repeatedly

import tapescope


def resident_kib() -> float:
    """Return the resident memory of this process in KiB."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def main() -> None:
    """Print the row of the table."""
    records = 4_000 if "--quick" in sys.argv else 200_000
    part = records // 40
    probe, readings = compiled_readings(100, histograms=False)
    memory = []
    milliseconds = []
    held = []
    with tempfile.TemporaryDirectory() as scratch, tapescope.Recorder(scratch, probe) as recorder:
        for begin in range(0, records, part):
            since = time.process_time()
            write_repeatedly(recorder, readings, range(begin, begin + part))
            milliseconds.append(1000 * (time.process_time() - since) / part)
            memory.append(resident_kib())
            held.append(open_files_and_threads())
        lost = recorder.lost + recorder.left_out
    half = len(memory) // 2
    slope = np.polyfit(np.arange(half) * part / 1000, memory[half:], 1)[0]
    first = np.median(milliseconds[1:5])
    last = np.median(milliseconds[-4:])
    (files_before, threads_before), (files_after, threads_after) = held[0], held[-1]
    result = (
        f"memory {memory[1] / 1024:.0f} MiB after {2 * part:,} records and {memory[-1] / 1024:.0f} MiB at the end, "
        f"{slope:+.2f} KiB per 1,000 records in the second half; {first:.2f} ms of processor time a record at the "
        f"beginning, {last:.2f} ms at the end; open files {files_before} and {files_after}, threads {threads_before} "
        f"and {threads_after}; {lost} records lost or left out"
    )
    passed = slope < 10 and last < 1.25 * first and held[0] == held[-1] and not lost
    print_rows([Row(f"{records:,} records of one run (readings of 100 steps, repeated)", result, passed)])


if __name__ == "__main__":
    main()
