"""Rows that vary by step: matched by name over the whole run, NaN where a step does not have them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import measured

import tapescope
from tapescope.analysis import check
from tapescope.storage import event_reader

X = np.random.default_rng(0).normal(size=[16, 4]).astype("float32")


def make_model():
    layers = [keras.layers.Dense(3, "relu", name=name) for name in ("a", "b")]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2, name="c")])
    model.layers[1].trainable = False
    return model


def schemas(logdir):
    return {
        value.tag: tapescope_schema(value)
        for path in event_reader.find_event_files(logdir).own
        for event in event_reader.read_events(path)
        for value in event_reader.own_values(event)
        if value.metadata.plugin_data.content
    }


def tapescope_schema(value):
    from tensorboard_plugin_tapescope import metadata

    return metadata.parse(value.metadata.plugin_data.content).schema


@pytest.fixture(scope="module")
def unfrozen(tmp_path_factory):
    """Record twelve steps, the first six with a frozen layer; return the run and what the rules found live."""
    logdir = tmp_path_factory.mktemp("unfrozen")
    model = make_model()
    optimizer = keras.optimizers.SGD(0.1)
    probe = tapescope.Probe(model, window_examples=32)
    with tapescope.Recorder(logdir, probe) as recorder:
        for n in range(12):
            model.layers[1].trainable = n >= 6
            step = measured(probe, lambda: tf.reduce_mean(model(X) ** 2), model.trainable_variables)
            optimizer.apply(step.gradients, model.trainable_variables) if n < 6 else None
            recorder.write(n, step.reading, scalars={"loss": 1.0 / (n + 1)})
    return tapescope.Run(logdir), recorder.findings


class Sometimes(keras.Model):
    """A model whose second attention is skipped in some steps."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.MultiHeadAttention(2, 2, name="first")
        self.second = keras.layers.MultiHeadAttention(1, 2, name="second")
        self.norm = keras.layers.LayerNormalization(name="norm")
        self.parts = 0

    def call(self, x):
        x = self.first(x, x) if self.parts > 0 else x
        return self.second(self.norm(x), x) if self.parts > 1 else self.norm(x)


def test_heads_appear_and_vanish_by_step_and_go_on_in_a_continued_run(tmp_path):
    x = tf.reshape(tf.constant(X), [4, 4, 4])
    model = Sometimes()
    model.parts = 2
    model(x)
    probe = tapescope.Probe(model, strict=True)
    for steps in ({0: 0, 1: 1, 2: 2, 3: 1}, {4: 2, 5: 0}):
        resume = tapescope.Resume(4, {}) if 4 in steps else None
        with tapescope.Recorder(tmp_path, probe, resume=resume) as recorder:
            for number, model.parts in steps.items():
                step = measured(probe, lambda: tf.reduce_mean(model(x) ** 2), model.trainable_variables)
                recorder.write(number, step.reading)
    run = tapescope.Run(tmp_path)
    assert run.problems == ()
    assert run.heads == ("first/head_0", "first/head_1", "second/head_0")
    present = [[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(np.isfinite(run["attention_entropy"]), np.array(present, bool))
    assert run.residual == ("norm",)
    assert np.isfinite(run["residual_rms"]).all()


def test_variables_that_are_trained_later_are_added(unfrozen):
    run, _ = unfrozen
    frozen = [name.split("/")[-2] == "b" for name in run.variables]
    assert frozen == [False] * 4 + [True] * 2
    np.testing.assert_array_equal(np.isnan(run["gradient_norm"][:6]), [frozen] * 6)
    assert np.isfinite(run["gradient_norm"][6:]).all()


def test_histograms_and_layers_have_all_rows(unfrozen):
    run, _ = unfrozen
    assert run["gradient_histogram"].sum(2)[:6, 4:].tolist() == [[0, 0]] * 6
    assert np.isfinite(run["delta_norm"]).all()


def test_a_layer_that_is_trained_later_owns_its_variables(unfrozen):
    run, _ = unfrozen
    assert dict(zip(run.layers, run.details["variables"], strict=True))["b"] == [4, 5]


def test_only_the_family_of_added_rows_has_the_newer_schema(unfrozen):
    run, _ = unfrozen
    found = schemas(run.logdir)
    assert found.pop("tapescope/rows") == 2
    assert set(found.values()) == {1}


def test_rules_find_the_same_live_and_offline(unfrozen):
    run, findings = unfrozen
    assert check.check(run) == tuple(findings)


def test_a_run_without_added_rows_has_no_family_of_rows(tmp_path):
    model = make_model()
    probe = tapescope.Probe(model)
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(2):
            step = measured(probe, lambda: tf.reduce_mean(model(X) ** 2), model.trainable_variables)
            recorder.write(n, step.reading)
    assert set(schemas(tmp_path).values()) == {1}
    assert "tapescope/rows" not in schemas(tmp_path)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """Record steps of 2, 4 and 3 passes through one layer, and then a layer with another number of units."""
    logdir = tmp_path_factory.mktemp("episodes")
    shared = keras.layers.Dense(4, "tanh", name="cell")
    probe = tapescope.Probe(keras.Sequential([keras.Input((4,)), shared]), window_examples=16)

    def forward(passes, width):
        x = tf.constant(X)
        for _ in range(passes):
            x = shared(x)
        return tf.reduce_mean(tapescope.tap("out", x[:, :width]) ** 2)

    with tapescope.Recorder(logdir, probe) as recorder:
        for n, (passes, width) in enumerate([(2, 4), (4, 4), (3, 4), (3, 2), (3, 4)]):
            step = measured(probe, lambda p=passes, w=width: forward(p, w), shared.trainable_variables)
            recorder.write(n, step.reading)
    return tapescope.Run(logdir)


def test_a_longer_episode_adds_rows(episodes):
    assert set(episodes.layers) == {"out", "cell", "cell#2", "cell#3", "cell#4"}
    present = np.isfinite(episodes["delta_norm"])
    assert dict(zip(episodes.layers, present.sum(0).tolist(), strict=True)) == {
        "out": 5,
        "cell": 5,
        "cell#2": 5,
        "cell#3": 4,
        "cell#4": 1,
    }


def test_a_layer_whose_units_change_in_number_keeps_its_columns(episodes):
    out = episodes.layers.index("out")
    assert np.isfinite(episodes["activation_std"][:, out]).all()
    assert episodes.details["units"][out] == 4
    assert "the number of its units changes between steps, from 4 to 2" in episodes.details["skipped"]["out"]


def test_a_layer_whose_units_change_in_number_has_no_unit_states_from_there_on(episodes):
    steps, states = episodes.units("out")
    assert steps.tolist() == [0, 1, 2, 3, 4]
    assert (states[:3] > 0).all()
    assert (states[3:] == 0).all()


def test_a_run_goes_on_with_its_added_rows(tmp_path):
    model = make_model()
    probe = tapescope.Probe(model)

    def record(recorder, steps):
        for n in steps:
            model.layers[1].trainable = n == 1
            step = measured(probe, lambda: tf.reduce_mean(model(X) ** 2), model.trainable_variables)
            recorder.write(n, step.reading)

    with tapescope.Recorder(tmp_path, probe) as recorder:
        record(recorder, range(3))
        state = recorder.state()
    with tapescope.Recorder(tmp_path, probe, resume=tapescope.Resume(3, state)) as recorder:
        record(recorder, range(3, 5))
    run = tapescope.Run(tmp_path)
    assert len(run.variables) == 6
    assert np.isfinite(run["gradient_norm"]).sum(1).tolist() == [4, 6, 4, 4, 4]


def attending():
    x = keras.Input((3, 4))
    y = keras.layers.MultiHeadAttention(2, 2)(x, x)
    return keras.Model(x, keras.layers.Dense(1)(keras.layers.Dense(4, "relu")(y)))


def built_again(model, _):
    return attending()


def loaded(model, directory):
    """Return the model as it comes back from a file, where Keras numbers its layers or not."""
    model.save(directory / "m.keras")
    return keras.models.load_model(directory / "m.keras")


def in_a_scope(model, _):
    """Return a model whose variables have another name in front."""
    again = keras.models.clone_model(model)
    for variable in again.trainable_variables:
        variable._path = f"scope/{variable.path}"
    return again


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras saves its variables so
@pytest.mark.parametrize("renew", [built_again, loaded, in_a_scope])
def test_a_model_that_is_built_again_goes_on_in_its_rows(tmp_path, renew):
    model = attending()
    x = np.repeat(X[:, None], 3, 1)
    for start in (0, 2):
        probe = tapescope.Probe(model, window_examples=16)
        resume = tapescope.Resume(start, {}) if start else None
        optimizer = keras.optimizers.SGD(0.1)
        with tapescope.Recorder(tmp_path / "run", probe, resume=resume) as recorder:
            for n in range(start, start + 2):
                step = measured(probe, lambda model=model: tf.reduce_mean(model(x) ** 2), model.trainable_variables)
                optimizer.apply(step.gradients, model.trainable_variables)
                recorder.write(n, step.reading)
        names = probe.variables
        model = renew(model, tmp_path)
    run = tapescope.Run(tmp_path / "run")
    assert len(run.variables) == len(names)
    for column in ("gradient_norm", "activation_mean", "attention_logit_max"):
        assert np.isfinite(run[column]).all()
