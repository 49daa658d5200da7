"""A run that goes on and on keeps nothing: memory, open files and threads after more and more records."""

import gc
import tracemalloc

from scripts.testbed.records import held, readings, write

import tapescope


def test_records_leave_nothing_behind(tmp_path):
    probe, read = readings(20, histograms=False)
    with tapescope.Recorder(tmp_path, probe) as recorder:
        write(recorder, read, range(300))  # what is kept of the last records is full by then
        before, kept = held(), []
        tracemalloc.start()
        try:
            for begin in (300, 500):
                write(recorder, read, range(begin, begin + 200))
                gc.collect()
                kept.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        assert held() == before
        assert kept[1] - kept[0] < 100 * 200, kept  # less than any array: NumPy itself holds on to some small blocks
        assert (recorder.lost, recorder.left_out) == (0, 0)
    assert len(tapescope.Run(tmp_path).steps) == 700
