"""Records of a small training: steps to record, readings to write again, and what a reader finds."""

import itertools
import os
import threading

import numpy as np
import tensorflow as tf
from scripts.testbed.steps import dense_chain
from tensorboard.backend.event_processing import plugin_event_accumulator

import tapescope


def eager_steps(poisoned_at=None):
    """A small model's probe, and a function that takes a step of it and returns its reading."""
    model = dense_chain([3, 2], ["tanh", "linear"], 4)
    probe = tapescope.Probe(model, histograms=False)
    x = tf.ones([8, 4])

    def step(n):
        with probe.tape(True) as tape:
            loss = tf.reduce_sum(model(x)) * (np.nan if n == poisoned_at else 1.0)
        tape.gradient(loss, model.trainable_variables)
        return tape.reading()

    return probe, step


def loaded(logdir, tag="loss"):
    """Steps of a tag as TensorBoard's Python loader has them."""
    accumulator = plugin_event_accumulator.EventAccumulator(str(logdir), tensor_size_guidance={"tensors": 0}).Reload()
    return [event.step for event in accumulator.Tensors(tag)]


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
