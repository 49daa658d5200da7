"""The rule engine: extreme records, plain JSON, and findings that are the same live and replayed."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope
from tapescope.rules import engine, finding
from tapescope.rules.record_view import Record, run_layout
from tapescope.storage.resume import Resume
from tensorboard_plugin_tapescope import metadata
from tests.instrument.rules.records import LAYOUT, NAN, find, healthy, put

COUNTS = {"units_dead", "gradient_nonfinite", "activation_nonfinite", "window_examples"}
COUNTS |= {"first_nonfinite_forward", "first_nonfinite_backward"}
VECTORS = sorted(name for name, values in healthy(0).items() if np.ndim(values))
NUMBERS = sorted(name for name, values in healthy(0).items() if not np.ndim(values))


@pytest.mark.parametrize("index", [slice(None), 0])
@pytest.mark.parametrize("value", [0.0, NAN, np.inf, -np.inf])
def test_extreme_vectors_raise_no_warning(value, index):
    """Warnings of NumPy are errors in tests."""
    for column in VECTORS:
        if column not in COUNTS or not np.isinf(value):
            find(12, put(column, index, value))


@pytest.mark.parametrize("value", [0.0, NAN, np.inf, -np.inf])
def test_extreme_numbers_raise_no_warning(value):
    for column in NUMBERS:
        if column not in COUNTS or not np.isinf(value):
            find(12, put(column, None, value))


def test_a_run_with_few_columns_has_no_findings():
    rules = engine.RuleEngine(run_layout(["w"], [], {}))
    columns = {"gradient_norm": np.ones(1), "weight_norm": np.ones(1), "update_ratio": np.full(1, 1e-3)}
    for t in range(40):
        rules.add(Record(t, columns))
    assert rules.findings == ()


def test_a_variable_without_a_layer_is_named_itself():
    rules = engine.RuleEngine(run_layout(["w", "v"], [], {}))
    columns = {"gradient_norm": np.array([1, NAN]), "gradient_nonfinite": np.array([0, NAN]), "weight_norm": np.ones(2)}
    for t in range(12):
        rules.add(Record(t, columns))
    assert [(f.rule, f.layer) for f in rules.findings] == [("no_gradient", "v")]


def test_an_info_after_a_warning_is_reported_and_replayed_the_same():
    def leap(t, columns):
        columns["loss"] = np.float64(2.3 * 0.9**t)
        if t == 0:
            columns["update_ratio"][4] = 2.0

    rules = engine.RuleEngine(LAYOUT)
    reported = []
    for t in range(60):
        columns = healthy(t)
        leap(t, columns)
        reported += [(f.severity, t) for f in rules.add(Record(4 * t, columns)) if f.rule == "update_too_large"]
    assert reported == [("warning", 0), ("info", 31)]
    assert rules.findings == tuple(find(60, leap, severity="info"))


def test_a_run_that_is_measured_densely_at_first_has_no_findings():
    rules = engine.RuleEngine(LAYOUT)
    for t, step in enumerate([*range(50), *range(50, 350, 10)]):
        rules.add(Record(step, healthy(t)))
    assert rules.findings == ()


def test_findings_are_plain_json():
    (found,) = find(20, put("flow_gate", 1, -np.inf))
    fields = json.loads(finding.to_json(found))
    assert set(fields) == {"rule", "version", "severity", "layer", "step", "message", "evidence", "advice"}
    assert np.isfinite(list(fields["evidence"].values())).all()
    assert finding.from_json(fields) == found


def test_columns_of_a_tensor_are_unpacked_by_name():
    family = metadata.Family("replicas", ("replica_norm", "replica_cosine"), ("a", "b", "c"), {"replicas": 2})
    columns = engine.unpack_columns(family, np.arange(12.0).reshape(4, 3))
    assert columns["replica_cosine"].tolist() == [[6, 7, 8], [9, 10, 11]]


def test_a_column_that_is_shorter_is_absent_from_later_records():
    columns = {"loss": np.ones(2), "gradient_norm": np.ones([1, 3])}
    first, second = engine.split_records(np.array([0, 5]), columns)
    assert (sorted(first.columns), sorted(second.columns)) == (["gradient_norm", "loss"], ["loss"])


def test_columns_that_no_rule_reads_are_not_in_the_records():
    (record,) = engine.split_records(np.array([0]), {"unit_state": np.ones([1, 3])})
    assert record.columns == {}


def train(logdir, start=0, steps=60, **options):
    """Train a sigmoid network whose gradient vanishes; return its recorder."""
    keras.utils.set_random_seed(1)
    hidden = [keras.layers.Dense(12, "sigmoid", name=f"hidden_{n}") for n in range(1, 6)]
    model = keras.Sequential([keras.Input((6,)), *hidden, keras.layers.Dense(3, "softmax", name="output")])
    optimizer = keras.optimizers.SGD(0.05)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, window_examples=300, histograms=False)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def step(x, y, measure):
        with probe.tape(measure) as tape:
            loss = cross_entropy(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tape.reading()

    rng = np.random.default_rng(0)
    with tapescope.Recorder(logdir, probe, **options) as recorder:
        for n in range(start, start + steps):
            x, y = rng.normal(size=[40, 6]).astype(np.float32), rng.integers(0, 3, 40)
            loss, reading = step(x, y, n % 2 == 0)
            if reading is not None:
                recorder.write(n, reading, {"loss": loss})
    return recorder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the recorder of a run whose gradient vanishes."""
    return train(tmp_path_factory.mktemp("run"))


def test_a_vanishing_gradient_is_found_while_it_trains(trained):
    assert "vanishing" in {f.rule for f in trained.findings}


def test_a_replay_finds_the_same_as_the_recorder(trained):
    assert tapescope.check(tapescope.Run(trained.logdir)) == trained.findings


def test_the_file_has_the_findings_of_the_recorder(trained):
    assert tuple(finding.from_json(f) for f in tapescope.Run(trained.logdir).findings) == trained.findings


def test_a_resumed_run_keeps_its_earlier_findings(tmp_path):
    train(tmp_path)
    recorder = train(tmp_path, start=60, steps=20, resume=Resume(60, {}))
    run = tapescope.Run(tmp_path)
    assert "vanishing" in {f.rule for f in recorder.findings}
    assert tapescope.check(run) == recorder.findings
    assert tuple(finding.from_json(f) for f in run.findings) == recorder.findings


def test_a_rule_that_fails_costs_no_record(tmp_path, monkeypatch):
    def broken(self, record):
        raise ZeroDivisionError

    monkeypatch.setattr(engine.RuleEngine, "add", broken)
    recorder = train(tmp_path, steps=8)
    assert (recorder.lost, recorder.findings) == (0, ())
    assert len(tapescope.Run(tmp_path).steps) == 4
