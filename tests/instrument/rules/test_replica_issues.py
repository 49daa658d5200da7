"""Issues of Keras with several replicas, found in a user's own loop: live, and by a replay of the records."""

import contextlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import mirrored

import tapescope
from tapescope import cli
from tapescope.capture import keras_replica_issues, optimizer_hooks
from tapescope.rules import engine, finding, replica_issues
from tapescope.rules.record_view import Record, run_layout
from tests.instrument.rules.records import DETAILS, LAYERS, VARIABLES, healthy, put

SGD = keras.optimizers.SGD
NORM = ("batch_norm", "norm", None)
AVERAGE = tf.nn.compute_average_loss


def train(logdir, layers, make_optimizer, *, scale=(1.0, 1.0), cured=False, dtype=None, steps=12, mean=AVERAGE):
    """Train on two replicas with a loop as a user writes it, and return the findings about Keras by rule.

    Args:
        logdir: Directory of the run.
        layers: Returns layers between the first and the last one.
        make_optimizer: Returns the optimizer.
        scale: Multiplies the two replicas' inputs from the sixth step on.
        cured: Whether the loop does what docs/distributed.md says.
        dtype: Of the first layer.
        steps: Number of steps.
        mean: Of the losses of a replica's examples.
    """
    strategy = mirrored(2)
    with strategy.scope():
        stack = [
            keras.layers.Dense(6, "tanh", dtype=dtype, name="hidden"),
            *layers(),
            keras.layers.Dense(1, name="out"),
        ]
        model = keras.Sequential([keras.Input((4,)), *stack])
        optimizer = make_optimizer()
        optimizer.build(model.trainable_variables)
    if cured:
        keras_replica_issues.own_random_numbers(model)
    probe = tapescope.Probe(model, histograms=False)
    dynamic = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def in_replica(x):
        with probe.tape(True) as tape:
            loss = mean(tf.square(model(x, training=True)[:, 0] - 1.0))
            target = optimizer.scale_loss(loss) if dynamic else loss
        factor = tf.identity(optimizer.dynamic_scale.value) if dynamic else None
        gradients = tape.gradient(target, model.trainable_variables)
        if cured:
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
    assert tapescope.check(tapescope.Run(logdir)) == recorder.findings
    return {f.rule: f for f in recorder.findings if f.rule in replica_issues.NAMES}


@pytest.fixture(scope="module")
def uncured(tmp_path_factory):
    """Return the directory and the findings of a loop with batch normalization, dropout and clipping."""

    def layers():
        return [keras.layers.BatchNormalization(name="norm"), *(keras.layers.Dropout(0.5) for _ in range(2))]

    logdir = tmp_path_factory.mktemp("uncured")
    return logdir, train(logdir, layers, lambda: SGD(0.01, global_clipnorm=1e-3))


def test_masks_statistics_and_clipping_are_warnings(uncured):
    _, findings = uncured
    severities = {rule: found.severity for rule, found in findings.items()}
    assert severities == dict.fromkeys(
        ("batch_norm_of_a_share", "clipped_before_sum", "same_random_numbers"), "warning"
    )


def test_batch_normalization_is_reported_with_the_examples_of_a_replica(uncured):
    found = uncured[1]["batch_norm_of_a_share"]
    assert (found.layer, found.step) == ("norm", 0)
    assert found.evidence == {"examples": 4, "layers": 1, "replicas": 2}
    assert found.advice == "Pass synchronized=True."


def test_layers_that_draw_the_same_numbers_are_counted(uncured):
    found = uncured[1]["same_random_numbers"]
    assert found.layer.startswith("dropout")
    assert "and 1 more draw the same random numbers on all 2 replicas" in found.message


@pytest.mark.parametrize(
    ("cell", "issues"),
    [
        (keras.layers.LSTM(2), []),
        (keras.layers.GRU(2, dropout=0.1), ["random_numbers"]),
        (keras.layers.SimpleRNN(2, recurrent_dropout=0.1), ["random_numbers"]),
    ],
)
def test_a_recurrent_layer_draws_numbers_if_it_drops(cell, issues):
    model = keras.Sequential([keras.Input((3, 2)), cell])
    assert [issue.kind for issue in keras_replica_issues.model_issues(model)] == issues


def test_clipping_is_reported_with_how_often_it_acts(uncured):
    evidence = uncured[1]["clipped_before_sum"].evidence
    assert evidence["global_clipnorm"] == pytest.approx(1e-3)
    assert evidence["share_of_records"] >= 0.5
    assert evidence["replica_norm_largest"] > 1e-3


def test_the_command_line_reports_replica_issues(uncured, capsys):
    logdir, findings = uncured
    assert cli.main(["check", "--json", str(logdir)]) == cli.FOUND
    reported = {json.loads(line)["rule"] for line in capsys.readouterr().out.splitlines()}
    assert set(findings) <= reported


def test_a_loop_with_the_cures_has_no_finding(tmp_path):
    def layers():
        return [keras.layers.BatchNormalization(synchronized=True), keras.layers.Dropout(0.5)]

    def optimizer():
        return keras.optimizers.LossScaleOptimizer(SGD(0.01))

    assert train(tmp_path, layers, optimizer, cured=True, scale=(1.0, 1e30)) == {}


def train_with_overflow(logdir, scale):
    """Return the only finding of a loop whose gradients overflow in float16."""

    def optimizer():
        return keras.optimizers.LossScaleOptimizer(SGD(0.01), initial_scale=8.0)

    findings = train(logdir, lambda: [], optimizer, scale=scale, dtype="mixed_float16", steps=9)
    assert list(findings) == ["overflow_missed"]
    return findings["overflow_missed"]


def test_an_overflow_on_the_second_replica_is_an_error(tmp_path):
    found = train_with_overflow(tmp_path, scale=(1.0, 1e30))
    assert found.severity == "error"
    assert "an overflow on another replica has made all weights NaN" in found.message


def test_an_overflow_on_the_first_replica_is_skipped_by_keras(tmp_path):
    found = train_with_overflow(tmp_path, scale=(1e30, 1.0))
    assert found.severity == "warning"
    assert "NaN" not in found.message


def find(*issues, change=None, count=20, replicas=4, examples=128):
    """Return findings of these rules on synthetic records of a healthy run with these issues."""
    rules = engine.RuleEngine(run_layout(VARIABLES, LAYERS, {**DETAILS, "faults": issues}))
    for t in range(count):
        columns = healthy(t, replicas) | {"examples_seen": np.float64(examples * (4 * t + 1))}
        if change:
            change(t, columns)
        rules.add(Record(4 * t, columns))
    return [found for found in rules.findings if found.rule in replica_issues.NAMES]


@pytest.mark.parametrize(
    ("issue", "examples", "rule", "severity"),
    [
        (NORM, 64, "batch_norm_of_a_share", "info"),
        (NORM, 60, "batch_norm_of_a_share", "warning"),
        (("random_numbers", "dropout", None), 128, "same_random_numbers", "warning"),
        (("clipnorm", None, 100.0), 128, "clipped_before_sum", "info"),
        (("clipnorm", None, 0.01), 128, "clipped_before_sum", "warning"),
        (("global_clipnorm", None, 0.1), 128, "clipped_before_sum", "warning"),
        (("clipvalue", None, 1e-4), 128, "clipped_before_sum", "warning"),
        (("clipvalue", None, 1.0), 128, "clipped_before_sum", "info"),
        (("overflow", None, None), 128, "overflow_missed", "warning"),
    ],
)
def test_the_severity_follows_the_harm(issue, examples, rule, severity):
    assert [(found.rule, found.severity) for found in find(issue, examples=examples)] == [(rule, severity)]


def test_weights_that_became_nan_make_a_missed_overflow_an_error():
    (found,) = find(("overflow", None, None), change=put("weight_norm", slice(0, 8), 0.0, since=19))
    assert found.severity == "error"


def test_one_replica_has_no_replica_issue():
    assert find(NORM, replicas=0) == []


def test_a_run_without_issues_has_no_finding():
    assert find() == []


def test_a_kind_of_a_later_version_is_ignored():
    assert find(("something_new", "layer", 3.0)) == []


MEANS_OF_A_SHARE = {
    "mean": tf.reduce_mean,
    "with a penalty": lambda losses: tf.reduce_mean(losses) + 0.01,
    "by the size": lambda losses: tf.reduce_sum(losses) / tf.cast(tf.shape(losses)[0], tf.float32),
    "function": lambda losses: tf.reduce_mean(keras.losses.mean_squared_error(losses[:, None], 0 * losses[:, None])),
}
MEANS_OF_ALL = {
    "average": AVERAGE,
    "average of a known batch": lambda losses: AVERAGE(losses, global_batch_size=8),
    "divided": lambda losses: tf.reduce_mean(losses) / 2,
    "sum": tf.reduce_sum,
    "Keras": lambda losses: keras.losses.MeanSquaredError()(losses[:, None], 0 * losses[:, None]),
}


@pytest.mark.parametrize("name", [*MEANS_OF_A_SHARE, *MEANS_OF_ALL])
def test_the_mean_over_a_share_is_told_from_that_over_all_replicas(tmp_path, name):
    mean = (MEANS_OF_A_SHARE | MEANS_OF_ALL)[name]
    assert list(train(tmp_path, list, lambda: SGD(0.01), mean=mean, steps=2)) == (
        ["mean_of_a_share"] if name in MEANS_OF_A_SHARE else []
    )


@pytest.mark.parametrize("axis", [None, -1])
def test_a_loss_function_of_fit_that_returns_one_number_takes_longer_steps(tmp_path, axis):
    def loss(targets, outputs):
        return tf.reduce_mean(tf.square(targets - outputs), axis)

    x = np.random.default_rng(0).normal(size=[8, 4]).astype("float32")
    changes = []
    for scope in (contextlib.nullcontext(), mirrored(2).scope()):
        with scope:
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
            model.compile(SGD(0.01), loss)
        monitor = tapescope.Monitor(tmp_path / str(len(changes)), tapescope.every(1))
        model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=[monitor])
        changes.append(model.get_weights()[0] - 1)
    np.testing.assert_allclose(changes[1], changes[0] * (2 if axis is None else 1), rtol=1e-4)
    rules = [f["rule"] for f in tapescope.Run(tmp_path / "1").findings]
    assert ("mean_of_a_share" in rules) == (axis is None)


def test_an_optimizer_that_divides_by_the_gradients_size_takes_any_mean(tmp_path):
    assert train(tmp_path, list, keras.optimizers.Adam, mean=tf.reduce_mean, steps=2) == {}


@pytest.mark.parametrize("issue", [("clipnorm", None, 0.01), ("random_numbers", "d", None), NORM])
def test_findings_about_replicas_are_plain_json(issue):
    (found,) = find(issue)
    assert finding.from_json(json.loads(finding.to_json(found))) == found


@pytest.mark.parametrize(
    ("issue", "text"),
    [
        (("clipnorm", None, 0.5), "clipnorm=0.5 clips each replica's gradients before they are summed: clip the sum"),
        (("overflow", None, None), "LossScaleOptimizer looks for overflow on the first replica only"),
        (("accumulation", None, 4.0), "gradient_accumulation_steps=4 fails under replicas"),
        (("mean_of_share", None, None), "SGD sums the gradients of all replicas, and the loss is the mean"),
        (NORM, "norm normalizes each replica by its own share of the batch"),
    ],
)
def test_an_issue_is_described_with_who_has_it(issue, text):
    assert replica_issues.issue_text(issue).startswith(text)


@pytest.fixture
def optimizer():
    """Return a built optimizer and its variable."""
    variable = keras.Variable(np.ones(3, np.float32))
    optimizer = SGD(0.1)
    optimizer.build([variable])
    return optimizer, variable


def test_an_optimizer_that_applies_the_tapes_gradients_is_recorded(optimizer):
    sgd, variable = optimizer
    gradient = tf.ones([3])
    optimizer_hooks.start_recording()
    sgd.apply([gradient], [variable])
    assert optimizer_hooks.stop_recording([gradient, None]) == [sgd]


def test_an_optimizer_is_not_recorded_after_the_reading(optimizer):
    sgd, variable = optimizer
    gradient = tf.ones([3])
    optimizer_hooks.start_recording()
    optimizer_hooks.stop_recording([gradient])
    sgd.apply([gradient], [variable])
    assert optimizer_hooks.stop_recording([gradient]) == []


def test_an_optimizer_that_applies_other_gradients_is_not_recorded(optimizer):
    sgd, variable = optimizer
    optimizer_hooks.start_recording()
    sgd.apply([tf.ones([3])], [variable])
    assert optimizer_hooks.stop_recording([tf.ones([3])]) == []


def test_a_call_of_an_optimizer_is_noted_once():
    variable = tf.Variable([1.0])
    sgd = keras.optimizers.SGD(0.1)
    sgd.build([variable])
    optimizer_hooks.called_optimizers()  # of another test that has taken no reading
    optimizer_hooks.start_recording(keeps_gradients=False)
    assert not optimizer_hooks.called_optimizers()
    sgd.apply([tf.ones([1])], [variable])
    optimizer_hooks.start_recording(keeps_gradients=False)
    assert not optimizer_hooks.called_optimizers()
    optimizer_hooks.start_recording(keeps_gradients=False)
    sgd.apply([tf.ones([1])], [variable])
    assert optimizer_hooks.called_optimizers()
