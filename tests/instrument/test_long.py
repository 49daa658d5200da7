"""A long run: memory, open files and threads do not grow with the number of records."""

import gc
import tracemalloc

import pytest
from scripts.testbed.records import compiled_readings, open_files_and_threads, write_repeatedly

import tapescope

WARM_UP = 300
"""Records after which the bounded history of the rules is full."""
RECORDS = 200
WINDOWS = 3


@pytest.fixture(scope="module")
def resources(tmp_path_factory):
    """Return open files and threads before and after WINDOWS times RECORDS records, and traced bytes after each."""
    probe, read = compiled_readings(20, histograms=False)
    traced = []
    with tapescope.Recorder(tmp_path_factory.mktemp("run"), probe) as recorder:
        write_repeatedly(recorder, read, range(WARM_UP))
        before = open_files_and_threads()
        tracemalloc.start()
        try:
            for begin in range(WARM_UP, WARM_UP + WINDOWS * RECORDS, RECORDS):
                write_repeatedly(recorder, read, range(begin, begin + RECORDS))
                gc.collect()
                traced.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        after = open_files_and_threads()
    return {"before": before, "after": after, "traced": traced, "recorder": recorder}


def test_records_leave_no_files_or_threads_open(resources):
    assert resources["after"] == resources["before"]


def test_records_leave_no_memory(resources):
    """In one window less than the smallest array for each record; NumPy itself keeps some small blocks now and then."""
    first, second, third = resources["traced"]
    assert min(second - first, third - second) < 100 * RECORDS


def test_every_record_is_written(resources):
    recorder = resources["recorder"]
    assert recorder.lost == 0
    assert recorder.left_out == 0
    assert len(tapescope.Run(recorder.logdir).steps) == WARM_UP + WINDOWS * RECORDS
