"""Measuring never changes training: on, off, or failing, the weights are the same to the bit."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.dropout_training import X, Y, fail, network, train
from tensorflow.python.framework import config

import tapescope
from tapescope import tape
from tapescope.capture import activations, layer_graph, layer_hooks
from tapescope.statistics import histograms, reading
from tapescope.statistics import layers as layer_statistics


def same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("dtype", "replicas"), [("float32", 1), ("mixed_bfloat16", 1), ("mixed_float16", 1), ("float32", 2)]
)
def test_weights_are_the_same_to_the_bit_with_the_probe_on_off_sometimes_and_failing(dtype, replicas, monkeypatch):
    if replicas > 1:  # Keras draws on mirrored state: each strategy its own masks, but the same in every run
        tf.random.set_seed(0)
    how = {"dtype": dtype, "replicas": replicas}
    without, _, _ = train(lambda model: None, **how)
    assert np.isfinite(np.concatenate([w.ravel() for w in without])).all()
    for measure in (lambda n: True, lambda n: False, lambda n: n % 7 == 3):
        weights, probe, _ = train(tapescope.Probe, measure=measure, **how)
        same(weights, without)
        assert probe.failure is None
    monkeypatch.setattr(layer_statistics, "layer_rows", fail)
    weights, probe, read = train(tapescope.Probe, **how)
    same(weights, without)
    assert "made to fail" in probe.failure
    assert read is None or replicas > 1


FAILING = {
    "a layer's description": (activations, "describe_layer", r"at first: ValueError: made to fail"),
    "a layer's input": (layer_hooks, "_separate_input", r"at first: ValueError: made to fail"),
    "a layer's output": (layer_hooks, "LayerCall", r"at first: ValueError: made to fail"),
    "the backward pass": (tape, "BackwardPass", r"ValueError: made to fail"),
    "the names": (layer_graph, "find_sources", r"ValueError: made to fail"),
    "a gradient": (reading, "dense", r"at .*first/kernel: ValueError: made to fail"),
    "a layer's numbers": (layer_statistics, "flat_mask", r"at first: ValueError: made to fail"),
    "the histograms": (histograms, "count_codes", r"ValueError: made to fail"),
    "the end": (reading, "layer_columns", r"ValueError: made to fail"),
}
"""Where measuring is made to fail, and what is said of it."""


@pytest.mark.parametrize("where", FAILING)
def test_a_failure_anywhere_leaves_the_plain_step_and_one_warning(where, monkeypatch, caplog):
    without, _, _ = train(lambda model: None, steps=3)
    module, name, said = FAILING[where]
    monkeypatch.setattr(module, name, fail)
    weights, probe, read = train(tapescope.Probe, steps=3)
    assert read is None
    same(weights, without)
    (warning,) = [r.getMessage() for r in caplog.records if "tapescope:" in r.getMessage()]
    assert "training goes on, and is not measured. tapescope.Probe(..., strict=True) raises" in warning
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(probe.failure)
    with pytest.raises(ValueError, match="made to fail"):
        train(lambda model: tapescope.Probe(model, strict=True), steps=1)


def test_the_layer_that_fails_is_named(monkeypatch):
    real = layer_statistics.flat_mask

    def fails_for_tanh(activation, a):
        return fail() if activation.name == "tanh" else real(activation, a)

    monkeypatch.setattr(layer_statistics, "flat_mask", fails_for_tanh)
    _, probe, _ = train(tapescope.Probe, steps=1)
    assert probe.failure == "at second: ValueError: made to fail"


def test_a_backward_pass_that_only_measuring_asks_for_may_fail(caplog):
    """As that of one of a layer's inner tensors: the tape is used up by then, and the plain pass needs it still."""
    real = tf.GradientTape.gradient

    def gradient(tape, target, sources, *args, **kwargs):
        found = real(tape, target, sources, *args, **kwargs)
        if isinstance(sources, list) and len(sources) > 6:
            tape._tape = held[-1]  # as where it failed on the way
            raise ValueError("made to fail")
        return found

    held = []
    model = network()
    for eager in (True, False):
        probe = tapescope.Probe(model)

        def step(probe=probe):
            with probe.tape(True) as tape:
                loss = tf.reduce_sum(model(X))
            held.append(tape._tape)
            gradients = tape.gradient(loss, model.trainable_variables)
            return gradients, tape.reading()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tf.GradientTape, "gradient", gradient)
            found, read = (step if eager else tf.function(step))()
        assert read is None
        assert "made to fail" in probe.failure

        def plain():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(X))
            return tape.gradient(loss, model.trainable_variables)

        same(found, (plain if eager else tf.function(plain))())


def test_what_the_user_does_wrong_is_raised_and_measuring_goes_on():
    model = network()
    probe = tapescope.Probe(model)
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(model(X))
    with pytest.raises(TypeError):
        tape.gradient(None, model.trainable_variables)
    tape.gradient(loss, model.trainable_variables)
    with pytest.raises(RuntimeError, match="can only be used to compute one set"):
        tape.gradient(loss, model.trainable_variables)
    with pytest.raises(ValueError, match="`applied` has 1 elements"):
        tape.reading(applied=[None])
    assert probe.failure is None
    assert tape.reading() is not None

    class Mine(keras.layers.Dense):
        def call(self, x):
            raise LookupError("mine")

    mine = keras.Sequential([Mine(2, "relu", name="mine")])
    probe = tapescope.Probe(mine)
    with pytest.raises(LookupError, match="mine"), probe.tape(True):
        mine(X)
    assert probe.failure is None


def test_fit_goes_on_where_measuring_fails(tmp_path, monkeypatch, caplog):
    def fitted(*callbacks):
        model = network()
        model.compile("adam", "mse")
        model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks))
        return [v.numpy() for v in model.trainable_variables]

    without = fitted()
    monkeypatch.setattr(layer_statistics, "layer_rows", fail)
    monitor = tapescope.Monitor(tmp_path, tapescope.every(2))
    same(fitted(monitor), without)
    assert sum("measuring failed" in r.getMessage() for r in caplog.records) == 1
    assert monitor.recorder.lost == 0


def test_the_same_seed_gives_the_same_records_to_the_bit(tmp_path):
    """On one machine, with TensorFlow's op determinism; what was measured in milliseconds left out."""

    def recorded(name):
        recorder = None

        def probe_of(model):
            nonlocal recorder
            probe = tapescope.Probe(model, window_examples=32)
            recorder = tapescope.Recorder(tmp_path / name, probe)
            return probe

        numbers = itertools.count()
        tf.random.set_seed(1)
        train(probe_of, steps=20, on_reading=lambda read: recorder.write(next(numbers), read))
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
