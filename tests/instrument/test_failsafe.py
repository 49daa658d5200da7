"""Measuring never changes training: on, off, or failing, the weights have the same bits."""

import functools
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.dropout_training import X, Y, fail, network, train
from tensorflow.python.framework import config

import tapescope
from tapescope import tape
from tapescope.capture import activations, layer_graph, layer_hooks
from tapescope.statistics import histograms, partial, reading
from tapescope.statistics import layers as layer_statistics


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def train_seeded(make_probe, **options):
    tf.random.set_seed(0)  # under replicas, Keras draws on mirrored state
    return train(make_probe, **options)


@functools.cache
def plain_weights(**options):
    weights, _, _ = train_seeded(lambda model: None, **options)
    return weights


SETUPS = [
    {"dtype": "float32", "replicas": 1},
    {"dtype": "mixed_bfloat16", "replicas": 1},
    {"dtype": "mixed_float16", "replicas": 1},
    {"dtype": "float32", "replicas": 2},
]
MEASURED = {"always": lambda n: True, "never": lambda n: False, "sometimes": lambda n: n % 7 == 3}


@pytest.mark.parametrize("measured", MEASURED)
@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_measuring_keeps_the_bits_of_the_weights(setup, measured):
    weights, probe, _ = train_seeded(tapescope.Probe, measure=MEASURED[measured], **setup)
    assert probe.failure is None
    assert np.isfinite(np.concatenate([w.ravel() for w in weights])).all()
    assert_same(weights, plain_weights(**setup))


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_failing_to_measure_keeps_the_bits_of_the_weights(setup, monkeypatch):
    monkeypatch.setattr(layer_statistics, "layer_rows", fail)
    weights, probe, _ = train_seeded(tapescope.Probe, **setup)
    assert "made to fail" in probe.failure
    assert_same(weights, plain_weights(**setup))


FAILING = {
    "a layer's description": (activations, "describe_layer", r"^at first: ValueError: made to fail"),
    "a layer's input": (layer_hooks, "_separate_input", r"^at first: ValueError: made to fail"),
    "a layer's output": (layer_hooks, "LayerCall", r"^at first: ValueError: made to fail"),
    "the backward pass": (tape, "BackwardPass", r"^ValueError: made to fail"),
    "the names": (layer_graph, "find_sources", r"^ValueError: made to fail"),
    "a gradient": (partial, "dense", r"^at .*first/kernel: ValueError: made to fail"),
    "a layer's numbers": (layer_statistics, "flat_mask", r"^at first: ValueError: made to fail"),
    "the histograms": (histograms, "count_codes", r"^ValueError: made to fail"),
    "the columns": (reading, "layer_columns", r"^ValueError: made to fail"),
}
"""Function that is made to fail, and what the probe's `failure` says then."""


@pytest.fixture(params=FAILING)
def failing(request, monkeypatch):
    """Let a function fail; return what the probe's `failure` says then."""
    module, name, message = FAILING[request.param]
    weights = plain_weights(steps=3)
    monkeypatch.setattr(module, name, fail)
    return message, weights


def test_a_failure_anywhere_leaves_the_plain_step(failing):
    message, plain = failing
    weights, probe, last_reading = train_seeded(tapescope.Probe, steps=3)
    assert_same(weights, plain)
    assert re.search(message, probe.failure)
    assert last_reading is None


def test_a_failure_anywhere_is_logged_once(failing, caplog):
    train_seeded(tapescope.Probe, steps=3)
    (warning,) = [r.getMessage() for r in caplog.records if "tapescope:" in r.getMessage()]
    assert "training goes on, and is not measured. tapescope.Probe(..., strict=True) raises" in warning


def test_a_strict_probe_raises_a_failure_anywhere(failing):
    with pytest.raises(ValueError, match="made to fail"):
        train_seeded(lambda model: tapescope.Probe(model, strict=True), steps=1)


def test_the_layer_that_fails_is_named(monkeypatch):
    real = layer_statistics.flat_mask

    def fails_for_tanh(activation, a):
        return fail() if activation.name == "tanh" else real(activation, a)

    monkeypatch.setattr(layer_statistics, "flat_mask", fails_for_tanh)
    _, probe, _ = train(tapescope.Probe, steps=1)
    assert probe.failure == "at second: ValueError: made to fail"


@pytest.mark.parametrize("tapped", [True, False])
@pytest.mark.parametrize("failing_is_outer", [True, False])
def test_a_failure_in_one_probe_leaves_the_other(failing_is_outer, tapped, monkeypatch):
    model = network()
    failing, other = tapescope.Probe(model), tapescope.Probe(model)
    real = layer_hooks.Capture.add

    def add(capture, call):
        is_tap = call.layer is None
        return fail() if capture.failsafe is failing._state.failsafe and is_tap == tapped else real(capture, call)

    monkeypatch.setattr(layer_hooks.Capture, "add", add)
    outer, inner = (failing, other) if failing_is_outer else (other, failing)
    with outer.tape(True) as outer_tape, inner.tape(True) as inner_tape:
        loss = tf.reduce_sum(tapescope.tap("tapped", model(X)))
    for tape_ in (outer_tape, inner_tape):
        tape_.gradient(loss, model.trainable_variables)
    assert "made to fail" in failing.failure
    assert other.failure is None
    assert (inner_tape if failing_is_outer else outer_tape).reading() is not None


@pytest.mark.parametrize("compiled", [True, False])
def test_a_backward_pass_that_only_measuring_needs_may_fail(compiled, monkeypatch):
    """It may fail at one of a layer's inner tensors, when the tape's recording is used up."""
    real = tf.GradientTape.gradient
    model = network()
    probe = tapescope.Probe(model)

    def fail_with_many_sources(tape, target, sources, *args, **kwargs):
        gradients = real(tape, target, sources, *args, **kwargs)
        if isinstance(sources, list) and len(sources) > 6:
            raise ValueError("made to fail")
        return gradients

    def plain():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(X))
        return tape.gradient(loss, model.trainable_variables)

    def measured():
        with probe.tape(True) as tape:
            loss = tf.reduce_sum(model(X))
        return tape.gradient(loss, model.trainable_variables), tape.reading()

    expected = (tf.function(plain) if compiled else plain)()
    monkeypatch.setattr(tf.GradientTape, "gradient", fail_with_many_sources)
    gradients, read = (tf.function(measured) if compiled else measured)()
    assert read is None
    assert "made to fail" in probe.failure
    assert_same(gradients, expected)


def measured_loss(model):
    probe = tapescope.Probe(model)
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(model(X))
    return probe, tape, loss


def test_a_target_that_is_none_is_raised():
    model = network()
    probe, tape, _ = measured_loss(model)
    with pytest.raises(TypeError, match="received None"):
        tape.gradient(None, model.trainable_variables)
    assert probe.failure is None


def test_a_second_gradient_of_a_plain_tape_is_raised():
    model = network()
    probe, tape, loss = measured_loss(model)
    tape.gradient(loss, model.trainable_variables)
    with pytest.raises(RuntimeError, match="can only be used to compute one set"):
        tape.gradient(loss, model.trainable_variables)
    assert probe.failure is None


def test_measuring_goes_on_after_a_bad_argument():
    model = network()
    probe, tape, loss = measured_loss(model)
    tape.gradient(loss, model.trainable_variables)
    with pytest.raises(ValueError, match="`applied` must have an element for each"):
        tape.reading(applied=[None])
    assert probe.failure is None
    assert tape.reading() is not None


def test_an_error_in_a_users_layer_is_raised():
    class Mine(keras.layers.Dense):
        def call(self, x):
            raise LookupError("mine")

    model = keras.Sequential([Mine(2, "relu", name="mine")])
    probe = tapescope.Probe(model)
    with pytest.raises(LookupError, match="mine"), probe.tape(True):
        model(X)
    assert probe.failure is None


def test_fit_goes_on_when_measuring_fails(tmp_path, monkeypatch, caplog):
    def fitted(*callbacks):
        model = network()
        model.compile("adam", "mse")
        model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks))
        return [v.numpy() for v in model.trainable_variables]

    without = fitted()
    monkeypatch.setattr(layer_statistics, "layer_rows", fail)
    monitor = tapescope.Monitor(tmp_path, tapescope.every(2))
    assert_same(fitted(monitor), without)
    assert sum("measuring failed" in r.getMessage() for r in caplog.records) == 1
    assert monitor.recorder.lost == 0


def test_the_same_seed_gives_records_of_the_same_bits(tmp_path):
    """On one machine, with TensorFlow's op determinism. Columns in milliseconds are left out."""

    def recorded(name):
        recorder = None

        def make_probe(model):
            nonlocal recorder
            probe = tapescope.Probe(model, window_examples=32)
            recorder = tapescope.Recorder(tmp_path / name, probe)
            return probe

        numbers = itertools.count()
        tf.random.set_seed(1)
        train(make_probe, steps=20, on_reading=lambda read: recorder.write(next(numbers), read))
        recorder.close()
        return tapescope.Run(tmp_path / name)

    config.enable_op_determinism()
    try:
        first, second = recorded("first"), recorded("second")
    finally:
        config.disable_op_determinism()
    assert first.steps.tolist() == list(range(20))
    for column in sorted({*first.columns, *second.columns} - {"step_ms", "measure_ms"}):
        assert first[column].tobytes() == second[column].tobytes(), column
