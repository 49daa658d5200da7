"""What is written is what is read back: by Run, and by TensorBoard's own readers."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain
from tensorboard.backend.event_processing import event_file_loader, plugin_event_accumulator

import tapescope
from tapescope.storage import summaries
from tensorboard_plugin_tapescope import metadata

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=[32, 6]).astype(np.float32), RNG.normal(size=[32, 2]).astype(np.float32)


def train(logdir, steps=12, every=2, **options):
    """A short run; the readings as they were handed over, by step."""
    model = dense_chain([5, 2], ["relu", "sigmoid"], 6)
    probe = tapescope.Probe(model, window_examples=64, **options)
    when = tapescope.every(every)

    @tf.function
    def step(x, y, measure):
        with probe.tape(measure) as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss, tape.reading()

    given = {}
    with tapescope.Recorder(logdir, probe, when) as recorder:
        recorder.hparams({"learning_rate": 0.1, "batch_size": 32, "nothing": None})
        recorder.graph(step.get_concrete_function(X, Y, False).graph)
        for n in range(steps):
            loss, reading = step(X, Y, when(n))
            if reading is not None:
                recorder.write(n, reading, scalars={"loss": loss})
                given[n] = summaries.on_host(reading)
        recorder.scalars(steps - 1, {"validation/loss": 0.5})
    return given


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("run")
    return train(logdir), tapescope.Run(logdir), logdir


def test_every_number_comes_back(run):
    given, back, _ = run
    assert list(back.steps) == list(given) == [0, 2, 4, 6, 8, 10]
    assert back.layers == ("layer0", "layer1")
    assert back.variables == ("chain/layer0/kernel", "chain/layer0/bias", "chain/layer1/kernel", "chain/layer1/bias")
    for t, reading in enumerate(given.values()):
        np.testing.assert_array_equal(back["gradient_norm"][t], reading.column("gradient_norm"))
        np.testing.assert_array_equal(back["delta_norm"][t], reading.column("delta_norm"))
        np.testing.assert_array_equal(back["gradient_histogram"][t], reading.gradient_histogram)
        np.testing.assert_array_equal(back["activation_histogram"][t], reading.activation_histogram)
    assert back["gradient_norm"].dtype == np.float32
    assert back["first_nonfinite"].tolist() == [[-1, -1]] * 6
    assert back["examples_seen"].tolist() == [32, 96, 160, 224, 288, 352]
    assert np.all(back["step_ms"][2:] > 0)
    assert back.details["activations"] == ["relu", "sigmoid"]
    for column in back.columns:
        assert len(back[column]) in (6, 3)


def test_units_come_with_their_window(run):
    _, back, _ = run
    steps, states = back.units("layer0")
    assert steps.tolist() == [2, 6, 10]
    assert states.shape == (3, 5)
    assert np.isnan(back["units_dead"][0]).all()
    dead = metadata.UNIT_STATES.index("dead")
    assert back["units_dead"][1:, 0].tolist() == np.repeat((states == dead).sum(1), [2, 2, 1]).tolist()
    assert back["window_examples"][1:].tolist() == [64] * 5
    assert back["unit_state"].shape == (3, 7)


def test_status_says_how_it_ended(run, tmp_path):
    assert (run[1].status["state"], run[1].status["reason"]) == ("ended", "completed")
    probe = tapescope.Probe(tf.Variable([1.0]))
    with pytest.raises(RuntimeError), tapescope.Recorder(tmp_path, probe):
        raise RuntimeError("no more")
    assert tapescope.Run(tmp_path).status["reason"] == "RuntimeError: no more"


def test_frame(run):
    frame = run[1].frame("saturated")
    assert frame.shape == (6, 2)
    assert list(frame.columns) == ["layer0", "layer1"]
    assert frame.index.name == "step"
    assert list(run[1].frame("loss").columns) == ["loss"]


def test_tensorboards_own_tabs_have_their_share(run):
    _, _, logdir = run
    accumulator = plugin_event_accumulator.EventAccumulator(str(logdir), tensor_size_guidance={"tensors": 0}).Reload()
    assert accumulator.Graph() is not None
    by_plugin = {p: set(accumulator.PluginTagToContent(p)) for p in ("scalars", "histograms", "hparams", "tapescope")}
    assert {"loss", "validation/loss", "gradient_norm_global", "units_dead/layer0"} <= by_plugin["scalars"]
    assert "gradient_norm/chain/layer1/kernel" in by_plugin["scalars"]
    assert {"activation/layer0", "gradient/chain/layer0/bias"} <= by_plugin["histograms"]
    assert by_plugin["hparams"]
    assert {"tapescope/variables", "tapescope/layers", "tapescope/units"} <= by_plugin["tapescope"]
    triples = tf.make_ndarray(accumulator.Tensors("activation/layer0")[-1].tensor_proto)
    assert triples[:, 2].sum() == 32 * 5
    assert np.all(triples[:, 0] < triples[:, 1])


def test_the_wire_is_small(run):
    """At most 4 bytes a number and 300 bytes a family; the `step` family alone has float64."""
    _, _, logdir = run
    for event in event_file_loader.EventFileLoader(next(iter(map(str, logdir.iterdir())))).Load():
        for value in event.summary.value:
            if value.tag.startswith("tapescope/") and value.tensor.dtype != 7 and event.step > 0:
                numbers = np.prod([d.size for d in value.tensor.tensor_shape.dim])
                width = 8 if value.tag == "tapescope/step" else 4
                assert value.ByteSize() - value.metadata.ByteSize() <= width * numbers + 300, value.tag


def test_a_continued_run_holds_every_step_once(tmp_path):
    train(tmp_path, steps=12)
    os.utime(tmp_path)
    train(tmp_path, steps=6, every=3)
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 3]


def test_no_histograms(tmp_path):
    train(tmp_path, steps=3, histograms=False)
    run = tapescope.Run(tmp_path)
    assert "gradient_histogram" not in run.columns
    with pytest.raises(KeyError, match="no column 'gradient_histogram'"):
        run["gradient_histogram"]


def test_bad_directories_and_closed_recorders(tmp_path):
    probe = tapescope.Probe(tf.Variable([1.0]))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        tapescope.Recorder(tmp_path / "file", probe)
    recorder = tapescope.Recorder(tmp_path / "run", probe)
    recorder.close()
    recorder.close()
    with pytest.raises(ValueError, match="is closed; make a new one"):
        recorder.scalars(0, {"loss": 1})
    with pytest.raises(FileNotFoundError, match="has no event file"):
        tapescope.Run(tmp_path / "nowhere")


def test_a_loss_that_is_nan_is_shown(tmp_path):
    with tapescope.Recorder(tmp_path, tapescope.Probe(tf.Variable([1.0]))) as recorder:
        recorder.scalars(0, {"loss": float("nan")})
    accumulator = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert np.isnan(tf.make_ndarray(accumulator.Tensors("loss")[0].tensor_proto))


def test_runs_are_found(tmp_path):
    probe = tapescope.Probe(tf.Variable([1.0]))
    for name in ("b", "a/x"):
        tapescope.Recorder(tmp_path / name, probe).close()
    assert tapescope.runs(tmp_path) == [str(tmp_path / "a" / "x"), str(tmp_path / "b")]


def test_schema_of_a_newer_version_is_refused_in_words():
    content = json.dumps({"schema": 99, "family": "layers"}).encode()
    with pytest.raises(metadata.SchemaError, match="schema 99, and this tapescope reads up to 1: pip install -U"):
        metadata.parse(content)
    with pytest.raises(metadata.SchemaError, match="cannot be read"):
        metadata.parse(b"[]")


def test_thinned_rows_are_spread_evenly():
    assert summaries.thinned(3) == [0, 1, 2]
    assert len(summaries.thinned(500)) == 50
    assert (summaries.thinned(500)[0], summaries.thinned(500)[-1]) == (0, 499)
