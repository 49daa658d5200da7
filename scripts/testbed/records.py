"""Small measured trainings to record, and the steps that TensorBoard reads back."""

import itertools
import os
import threading

import keras
import numpy as np
import tensorflow as tf
from scripts.testbed.steps import dense_chain, measured
from tensorboard.backend.event_processing import plugin_event_accumulator

import tapescope


def eager_steps(poisoned_at=None):
    """Return a small model's Probe, and a function that takes step `n` eagerly and returns its reading.

    The loss of step `poisoned_at` is NaN.
    """
    model = dense_chain([3, 2], ["tanh", "linear"], 4)
    probe = tapescope.Probe(model, histograms=False)
    x = tf.reshape(tf.linspace(-1.0, 1.0, 32), [8, 4])

    def step(n):
        factor = np.nan if n == poisoned_at else 1.0
        return measured(probe, lambda: tf.reduce_sum(model(x)) * factor, model.trainable_variables).reading

    return probe, step


def compiled_readings(number, **options):
    """Return a small model's Probe, and loss and reading of that many compiled steps of its training.

    The keyword arguments are passed to Probe.
    """
    model = dense_chain([6, 4, 2], ["relu", "tanh", "linear"], 4)
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, window_examples=64, **options)
    x = tf.random.stateless_normal([16, 4], [1, 2])

    @tf.function
    def step():
        taken = measured(
            probe, lambda: tf.reduce_mean(tf.square(model(x) - x[:, :2])), model.trainable_variables, optimizer
        )
        return taken.loss, taken.reading

    return probe, [step() for _ in range(number)]


def write_repeatedly(recorder, readings, steps):
    """Write a record for each step, with the readings in turn, and wait for the disk as often as a training would."""
    for n, (loss, reading) in zip(steps, itertools.cycle(readings), strict=False):
        recorder.write(n, reading, {"loss": loss})
        if n % 50 == 0:
            recorder._wait()
    recorder._wait()


def loaded_steps(logdir, tag="loss"):
    """Return the steps of a tag that TensorBoard's Python loader reads."""
    accumulator = plugin_event_accumulator.EventAccumulator(str(logdir), tensor_size_guidance={"tensors": 0}).Reload()
    return [event.step for event in accumulator.Tensors(tag)]


def open_files_and_threads():
    """Return the numbers of open files and of threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()
