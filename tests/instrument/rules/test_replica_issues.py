"""What Keras gets wrong under replicas, found in a user's own loop: live, and by a replay of the records."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import mirrored

import tapescope
from tapescope import cli
from tapescope.capture import keras_replica_issues, optimizer_hooks
from tapescope.rules import engine, finding, record_view
from tapescope.rules.record_view import Record
from tests.instrument.rules.test_rules import LAYERS, VARIABLES, healthy, put
from tests.instrument.test_cli import DETAILS

NAMES = sorted(engine.replica_issues.NAMES)
SGD = keras.optimizers.SGD


def own_loop(logdir, layers, make_optimizer, *, scale=(1.0, 1.0), right=False, dtype=None, steps=12):
    """A loop as a user writes it, on two replicas; `right` does as docs/distributed.md says.

    `scale` multiplies the two replicas' inputs from the sixth step on.
    """
    strategy = mirrored(2)
    with strategy.scope():
        stack = [
            keras.layers.Dense(6, "tanh", dtype=dtype, name="hidden"),
            *layers(),
            keras.layers.Dense(1, name="out"),
        ]
        model, optimizer = keras.Sequential([keras.Input((4,)), *stack]), make_optimizer()
        optimizer.build(model.trainable_variables)
    if right:
        keras_replica_issues.own_random_numbers(model)
    probe = tapescope.Probe(model, histograms=False)
    dynamic = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def in_replica(x):
        with probe.tape(True) as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True) - 1.0)) / 8
            target = optimizer.scale_loss(loss) if dynamic else loss
        factor = tf.identity(optimizer.dynamic_scale.value) if dynamic else None
        gradients = tape.gradient(target, model.trainable_variables)
        if right:
            total = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
            norm = tf.linalg.global_norm(total)
            gradients = [g * tf.where(tf.math.is_finite(norm), 1.0, np.nan) for g in gradients]
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tape.reading(loss_scale=factor)

    @tf.function
    def step(x):
        loss, reading = strategy.run(in_replica, (x,))
        return strategy.reduce("SUM", loss, axis=None), reading

    rng = np.random.default_rng(0)
    with tapescope.Recorder(logdir, probe, about={"replicas": 2}) as recorder:
        for n in range(steps):
            parts = rng.normal(size=[2, 4, 4]) * np.reshape(scale if n > 5 else (1.0, 1.0), [2, 1, 1])
            x = strategy.experimental_distribute_values_from_function(
                lambda context, parts=parts: tf.constant(parts[context.replica_id_in_sync_group], tf.float32)
            )
            loss, reading = step(x)
            recorder.write(n, reading, {"loss": loss})
    live, again = recorder.findings, engine.check(tapescope.Run(logdir))
    assert again == live
    return {f.rule: f for f in live if f.rule in NAMES}


def test_masks_statistics_and_clipping_are_found(tmp_path, capsys):
    def layers():
        return [keras.layers.BatchNormalization(name="norm"), *(keras.layers.Dropout(0.5) for _ in range(2))]

    found = own_loop(tmp_path, layers, lambda: SGD(0.01, global_clipnorm=1e-3))
    assert sorted(found) == ["batch_norm_of_a_share", "clipped_before_sum", "same_random_numbers"]
    assert {f.severity for f in found.values()} == {"warning"}
    norm, clipped, masks = (found[name] for name in sorted(found))
    assert (norm.layer, norm.step) == ("norm", 0)
    assert norm.evidence == {"examples": 4, "layers": 1, "replicas": 2}
    assert norm.advice == "Pass synchronized=True."
    assert masks.layer.startswith("dropout")
    assert "and 1 more draw the same random numbers on all 2 replicas" in masks.message
    assert clipped.evidence["global_clipnorm"] == pytest.approx(1e-3)
    assert clipped.evidence["share_of_records"] >= 0.5
    assert clipped.evidence["replica_norm_largest"] > 1e-3
    assert cli.main(["check", "--json", str(tmp_path)]) == cli.FOUND
    told = [json.loads(line)["rule"] for line in capsys.readouterr().out.splitlines()]
    assert set(found) <= set(told)


def test_a_loop_that_does_it_rightly_is_left_in_peace(tmp_path):
    def layers():
        return [keras.layers.BatchNormalization(synchronized=True), keras.layers.Dropout(0.5)]

    def optimizer():
        return keras.optimizers.LossScaleOptimizer(SGD(0.01))

    assert own_loop(tmp_path, layers, optimizer, right=True, scale=(1.0, 1e30)) == {}


@pytest.mark.parametrize(("scale", "severity"), [((1.0, 1e30), "error"), ((1e30, 1.0), "warning")])
def test_an_overflow_that_only_another_replica_has(tmp_path, scale, severity):
    """On the first replica Keras sees it, and skips the step; on the other one it makes all weights NaN."""

    def optimizer():
        return keras.optimizers.LossScaleOptimizer(SGD(0.01), initial_scale=8.0)

    found = own_loop(tmp_path, lambda: [], optimizer, scale=scale, dtype="mixed_float16", steps=9)
    assert list(found) == ["overflow_missed"]
    assert found["overflow_missed"].severity == severity
    assert ("has made all weights NaN" in found["overflow_missed"].message) == (severity == "error")


def recorded(*asked, change=None, count=20, replicas=4, examples=128):
    """Findings of these rules on made-up records of a healthy run that asks for these faults."""
    watch = engine.Watch(record_view.subject(VARIABLES, LAYERS, {**DETAILS, "faults": asked}))
    for t in range(count):
        columns = healthy(t, replicas) | {"examples_seen": np.float64(examples * (4 * t + 1))}
        if change:
            change(t, columns)
        watch.add(Record(4 * t, columns))
    return [f for f in watch.findings if f.rule in NAMES]


def test_how_grave_it_is():
    def severities(*arguments, **options):
        return [(f.rule, f.severity) for f in recorded(*arguments, **options)]

    norm = ("batch_norm", "norm", None)
    assert severities(norm, examples=64) == [("batch_norm_of_a_share", "info")]
    assert severities(norm, examples=60) == [("batch_norm_of_a_share", "warning")]
    assert severities(("clipnorm", None, 100.0)) == [("clipped_before_sum", "info")]
    assert severities(("clipnorm", None, 0.01)) == [("clipped_before_sum", "warning")]
    assert severities(("global_clipnorm", None, 0.1)) == [("clipped_before_sum", "warning")]
    assert severities(("clipvalue", None, 1e-4)) == [("clipped_before_sum", "warning")]
    assert severities(("clipvalue", None, 1.0)) == [("clipped_before_sum", "info")]
    assert severities(("overflow", None, None), change=put("weight_norm", slice(0, 8), 0.0, since=19)) == [
        ("overflow_missed", "error")
    ]
    assert severities(norm, replicas=0) == []
    assert severities() == []


def test_a_kind_of_a_later_version_is_left_alone():
    assert recorded(("something_new", "layer", 3.0)) == []


def test_findings_of_replicas_are_plain_json():
    for f in recorded(("clipnorm", None, 0.01), ("random_numbers", "d", None), ("batch_norm", "b", None)):
        assert finding.from_json(json.loads(finding.to_json(f))) == f


def test_what_apply_was_given_is_noted_between_gradient_and_reading_only():
    variable = keras.Variable(np.ones(3, np.float32))
    optimizer = SGD(0.1)
    optimizer.build([variable])
    gradient, other = tf.ones([3]), tf.ones([3])
    optimizer_hooks.note()
    optimizer.apply([gradient], [variable])
    assert optimizer_hooks.optimizers([gradient, None]) == [optimizer]
    optimizer.apply([gradient], [variable])
    assert optimizer_hooks.optimizers([gradient]) == []
    optimizer_hooks.note()
    optimizer.apply([other], [variable])
    assert optimizer_hooks.optimizers([gradient]) == []
