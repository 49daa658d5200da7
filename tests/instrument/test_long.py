"""A run that goes on and on keeps nothing: memory, open files and threads after more and more records."""

import gc
import itertools
import os
import threading
import tracemalloc

import tensorflow as tf

import tapescope
from tests.instrument.steps import dense_chain


def readings(number, **options):
    """A small model's probe, and so many readings of its training."""
    model, optimizer = dense_chain([6, 4, 2], ["relu", "tanh", "linear"], 4), tf.keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, window_examples=64, **options)
    x = tf.random.stateless_normal([16, 4], [1, 2])

    @tf.function
    def step():
        with probe.tape(True) as tape:
            loss = tf.reduce_mean(tf.square(model(x) - x[:, :2]))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss, tape.reading()

    return probe, [step() for _ in range(number)]


def write(recorder, read, steps):
    """These steps, with the readings over and over; waits for the disk as often as a training would."""
    for n, (loss, reading) in zip(steps, itertools.cycle(read), strict=False):
        recorder.write(n, reading, {"loss": loss})
        if n % 50 == 0:
            recorder._wait()
    recorder._wait()


def held():
    """Open files and threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


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
