"""The Recorder: what is written is read back, by Run and by TensorBoard's own readers."""

import itertools
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.records import eager_steps, loaded_steps
from scripts.testbed.steps import dense_chain, measured, mirrored
from tensorboard.backend.event_processing import event_file_loader, plugin_event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import tapescope
from tapescope import cli
from tapescope.statistics import replicas
from tapescope.storage import event_reader, summaries
from tensorboard_plugin_tapescope import metadata

RNG = np.random.default_rng(5)
X = RNG.normal(size=[32, 6]).astype(np.float32)
Y = RNG.normal(size=[32, 2]).astype(np.float32)
STRING_DTYPE = 7


def train(logdir, steps=12, every=2, **options):
    """Record a short training, and return the readings by step as they were passed to the Recorder."""
    model = dense_chain([5, 2], ["relu", "sigmoid"], 6)
    probe = tapescope.Probe(model, window_examples=64, **options)
    when = tapescope.every(every)

    @tf.function
    def step(x, y, measure):
        taken = measured(
            probe,
            lambda: tf.reduce_mean(tf.square(model(x, training=True) - y)),
            model.trainable_variables,
            measure=measure,
        )
        for variable, gradient in zip(model.trainable_variables, taken.gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
        return taken.loss, taken.reading

    readings = {}
    with tapescope.Recorder(logdir, probe, when) as recorder:
        recorder.hparams({"learning_rate": 0.1, "batch_size": 32, "nothing": None})
        recorder.graph(step.get_concrete_function(X, Y, False).graph)
        for n in range(steps):
            loss, reading = step(X, Y, when(n))
            if reading is not None:
                recorder.write(n, reading, scalars={"loss": loss})
                readings[n] = summaries.to_host(reading)
        recorder.scalars(steps - 1, {"validation/loss": 0.5})
    return readings


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def readings(logdir):
    return train(logdir)


@pytest.fixture(scope="module")
def run(logdir, readings):
    return tapescope.Run(logdir)


@pytest.fixture(scope="module")
def tensorboard(logdir, readings):
    return plugin_event_accumulator.EventAccumulator(str(logdir), tensor_size_guidance={"tensors": 0}).Reload()


@pytest.fixture
def variable_probe():
    return tapescope.Probe(tf.Variable([1.0]))


def test_every_measured_step_is_recorded(readings, run):
    assert list(readings) == [0, 2, 4, 6, 8, 10]
    assert run.steps.tolist() == [0, 2, 4, 6, 8, 10]


def test_rows_have_their_names(run):
    assert run.layers == ("layer0", "layer1")
    assert run.variables == ("chain/layer0/kernel", "chain/layer0/bias", "chain/layer1/kernel", "chain/layer1/bias")


@pytest.mark.parametrize("column", ["gradient_norm", "update_ratio", "delta_norm", "saturated"])
def test_a_column_is_read_back_as_it_was_measured(readings, run, column):
    measured_values = np.stack([reading.column(column) for reading in readings.values()])
    np.testing.assert_array_equal(run[column], measured_values)
    assert run[column].dtype == np.float32


@pytest.mark.parametrize("column", ["gradient_histogram", "activation_histogram"])
def test_a_histogram_is_read_back_as_it_was_measured(readings, run, column):
    np.testing.assert_array_equal(run[column], np.stack([getattr(reading, column) for reading in readings.values()]))


def test_columns_of_the_step(run):
    assert run["first_nonfinite"].tolist() == [[-1, -1]] * 6
    assert run["examples_seen"].tolist() == [32, 96, 160, 224, 288, 352]
    assert np.all(run["step_ms"][2:] > 0)


def test_details_have_the_activations(run):
    assert run.details["activations"] == ["relu", "sigmoid"]


def test_columns_have_a_value_for_each_step_or_window(run):
    assert {column: len(run[column]) for column in run.columns} == {
        column: 3 if column == "unit_state" else 6 for column in run.columns
    }


def test_unit_states_come_where_a_window_closes(run):
    steps, states = run.units("layer0")
    assert steps.tolist() == [2, 6, 10]
    assert states.shape == (3, 5)
    assert run["unit_state"].shape == (3, 7)
    assert run["window_examples"][1:].tolist() == [64] * 5


def test_counts_of_units_are_those_of_the_states(run):
    _, states = run.units("layer0")
    dead = metadata.UNIT_STATES.index("dead")
    assert run["units_dead"][1:, 0].tolist() == np.repeat((states == dead).sum(1), [2, 2, 1]).tolist()


def test_counts_of_units_are_nan_before_the_first_window_closes(run):
    assert np.isnan(run["units_dead"][0]).all()


def test_the_status_says_that_the_run_is_complete(run):
    assert run.status["state"] == "ended"
    assert run.status["reason"] == "completed"


def test_the_status_has_the_error_that_ended_the_run(tmp_path, variable_probe):
    with pytest.raises(RuntimeError, match="no more"), tapescope.Recorder(tmp_path, variable_probe):
        raise RuntimeError("no more")
    assert tapescope.Run(tmp_path).status["reason"] == "RuntimeError: no more"


def test_tensorboard_shows_the_graph(tensorboard):
    assert tensorboard.Graph() is not None


@pytest.mark.parametrize("about", [{"a": 10**5000}, {(1, 2): 3}, 3])
def test_what_json_cannot_hold_is_refused(tmp_path, about):
    with pytest.raises(ValueError, match="`about` must be a mapping of what JSON can hold"):
        tapescope.Recorder(tmp_path / "run", eager_steps()[0], about=about)
    assert not (tmp_path / "run").exists()


def test_no_hyperparameter_costs_the_others(tmp_path):
    probe, _ = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.hparams({"a": 10**400, "b": "\udcff", "c": 10**5000, 3: 1, "rate": 0.5})
    assert recorder.lost == 0
    accumulator = plugin_event_accumulator.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert {"a", "b", "c", "3", "rate"} == set(hparams)
    assert hparams["b"].string_value == r"\udcff"
    assert hparams["rate"].number_value == 0.5


@pytest.mark.parametrize(
    ("plugin", "tags"),
    [
        ("scalars", {"loss", "validation/loss", "gradient_norm_global", "gradient_norm/chain/layer1/kernel"}),
        ("scalars", {"units_dead/layer0"}),
        ("histograms", {"activation/layer0", "gradient/chain/layer0/bias"}),
        ("hparams", {"_hparams_/session_start_info"}),
        ("tapescope", {"tapescope/variables", "tapescope/layers", "tapescope/units"}),
    ],
)
def test_tensorboard_has_the_tags_of_each_tab(tensorboard, plugin, tags):
    assert tags <= set(tensorboard.PluginTagToContent(plugin))


def test_tensorboards_histogram_counts_every_element(tensorboard):
    triples = tf.make_ndarray(tensorboard.Tensors("activation/layer0")[-1].tensor_proto)
    assert triples[:, 2].sum() == 32 * 5
    assert np.all(triples[:, 0] < triples[:, 1])


def test_a_number_takes_four_bytes_on_the_wire(logdir, readings):
    """300 bytes for each family are free; the `step` family alone has float64."""
    (path,) = map(str, logdir.glob("*.tfevents.*"))
    values = [
        value
        for event in event_file_loader.EventFileLoader(path).Load()
        for value in event.summary.value
        if event.step > 0 and value.tag.startswith("tapescope/") and value.tensor.dtype != STRING_DTYPE
    ]
    assert len(values) > 20
    for value in values:
        numbers = np.prod([d.size for d in value.tensor.tensor_shape.dim])
        width = 8 if value.tag == "tapescope/step" else 4
        assert value.ByteSize() - value.metadata.ByteSize() <= width * numbers + 300, value.tag


def test_a_second_training_replaces_the_first(tmp_path):
    train(tmp_path, steps=12)
    train(tmp_path, steps=6, every=3)
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 3]


@pytest.mark.parametrize("resume", [None, tapescope.Resume(1, {})], ids=["anew", "resumed"])
def test_scalars_of_an_open_summary_writer_are_kept(tmp_path, resume):
    """TensorBoard's Python loader reads its file first if it is a second older, and drops what a start hides."""
    probe, step = eager_steps()
    if resume:
        with tapescope.Recorder(tmp_path, probe) as recorder:
            recorder.write(0, step(0))
    writer = tf.summary.create_file_writer(str(tmp_path))
    with tapescope.Recorder(tmp_path, probe, resume=resume) as recorder:
        recorder.write(1, step(1))
    with writer.as_default():
        tf.summary.scalar("mine", 1.0, 7)
    writer.close()
    (theirs,) = event_reader.find_event_files(tmp_path).others
    os.replace(theirs, os.path.join(tmp_path, "events.out.tfevents.1.first.v2"))
    assert loaded_steps(tmp_path, "mine") == [7]
    assert loaded_steps(tmp_path, "tapescope/variables") == ([0, 1] if resume else [1])


def test_records_have_the_loss_of_the_validation_before_them(tmp_path):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, step(0), {"loss": 3.0})
        recorder.scalars(0, {"validation/loss": 2.0})
        recorder.write(1, step(1), {"val_loss": 1.5})  # of the weights after this step
        recorder.write(2, step(2))
        state = recorder.state()
    with tapescope.Recorder(tmp_path, probe, resume=tapescope.Resume(3, state)) as recorder:
        recorder.write(3, step(3))
    np.testing.assert_equal(tapescope.Run(tmp_path)["validation_loss"], [np.nan, 2.0, 1.5, 1.5])


def test_a_training_of_another_model_replaces_the_first_and_keeps_its_files(tmp_path):
    train(tmp_path, steps=3)
    (before,) = (path.read_bytes() for path in tmp_path.glob("*.tfevents.*"))
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        tf.summary.scalar("mine", 1.0, step=0)
    variables = [tf.Variable(tf.ones([2, n])) for n in (1, 2, 3)]
    probe = tapescope.Probe(variables)
    with tapescope.Recorder(tmp_path, probe) as recorder:
        with probe.tape(True) as tape:
            loss = tf.add_n([tf.reduce_sum(v) for v in variables])
        tape.gradient(loss, variables)
        recorder.write(0, tape.reading())
    run = tapescope.Run(tmp_path)
    assert (run.steps.tolist(), len(run.variables), run.problems) == ([0], 3, ())
    assert [path.read_bytes() for path in (tmp_path / "replaced").iterdir()] == [before]
    assert len(list(tmp_path.glob("*.tfevents.*"))) == 2


def test_a_probe_without_histograms_records_none(tmp_path):
    train(tmp_path, steps=3, histograms=False)
    run = tapescope.Run(tmp_path)
    assert "gradient_histogram" not in run.columns
    with pytest.raises(KeyError, match="no column 'gradient_histogram'"):
        run["gradient_histogram"]


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path, variable_probe):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        tapescope.Recorder(tmp_path / "file", variable_probe)


def test_a_closed_recorder_refuses_records(tmp_path, variable_probe):
    recorder = tapescope.Recorder(tmp_path, variable_probe)
    recorder.close()
    with pytest.raises(ValueError, match="is closed; make a new one"):
        recorder.scalars(0, {"loss": 1})


def test_close_is_idempotent(tmp_path, variable_probe):
    recorder = tapescope.Recorder(tmp_path, variable_probe)
    recorder.close()
    recorder.close()
    assert tapescope.Run(tmp_path).status["state"] == "ended"


def test_a_value_that_is_not_a_reading_is_refused(tmp_path, variable_probe):
    with (
        tapescope.Recorder(tmp_path, variable_probe) as recorder,
        pytest.raises(ValueError, match=r"`reading` must be what `tape.reading\(\)` returned.*; got float"),
    ):
        recorder.write(0, 1.0)


def test_a_loss_that_is_nan_is_recorded(tmp_path, variable_probe):
    with tapescope.Recorder(tmp_path, variable_probe) as recorder:
        recorder.scalars(0, {"loss": float("nan")})
    accumulator = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert np.isnan(tf.make_ndarray(accumulator.Tensors("loss")[0].tensor_proto))


def test_a_newer_schema_is_refused_with_the_cure():
    content = json.dumps({"schema": 99, "family": "layers"}).encode()
    with pytest.raises(metadata.SchemaError, match=r"schema 99, and this tapescope reads up to 2: pip install -U"):
        metadata.parse(content)


def test_few_rows_are_all_shown():
    assert summaries.thin_out(3) == (0, 1, 2)


def test_many_rows_are_thinned_out_evenly():
    rows = summaries.thin_out(500)
    assert len(rows) == 50
    assert rows[0] == 0
    assert rows[-1] == 499
    assert set(np.diff(rows)) <= {10, 11}


class UnprintableError(Exception):
    """An exception whose str() fails."""

    def __str__(self):
        raise ValueError("no str")


def test_an_exception_whose_str_fails_ends_a_run_like_any_other(tmp_path):
    recorder = tapescope.Recorder(tmp_path, tapescope.Probe(tf.Variable([1.0])))
    with pytest.raises(UnprintableError), recorder:
        raise UnprintableError
    status = tapescope.Run(tmp_path).status
    assert status["state"] == "ended"
    assert status["reason"].startswith("UnprintableError")


def test_about_cannot_replace_what_the_recorder_says(tmp_path, caplog):
    about = {"state": "CA", "reason": "tax", "lost": "x", "skipped": 3, "mine": 1, "odd": {1, 2}}
    with tapescope.Recorder(tmp_path, tapescope.Probe(tf.Variable([1.0])), about=about):
        pass
    status = tapescope.Run(tmp_path).status
    assert [status[name] for name in ("state", "reason", "lost", "skipped")] == ["ended", "completed", 0, {}]
    assert (status["mine"], status["odd"]) == (1, "{1, 2}")
    assert "`about` cannot set lost, reason, skipped, state" in caplog.text


@pytest.fixture
def looked_closer(tmp_path):
    """Record 300 steps whose weights do not move under `auto`, and return the Run."""
    probe, step = eager_steps()
    reading = step(0)
    now = itertools.count()
    when = tapescope.auto(2, lambda: 0.01 * next(now))
    with tapescope.Recorder(tmp_path, probe, when) as recorder:
        when.restore({"measure_interval": 20, "measure_percent": 2})
        for n in range(300):
            if when(n):
                recorder.write(n, reading, {"loss": 1.0})
                recorder._wait()
    return tapescope.Run(tmp_path)


def test_after_a_finding_every_step_is_recorded_for_a_while(looked_closer):
    found = [f["rule"] for f in looked_closer.findings if f["severity"] != "info"]
    assert found == ["update_too_small"]  # known after 100 steps
    steps = looked_closer.steps[looked_closer["closer_look"] == 1]
    assert steps.tolist() == list(range(121, 171))
    assert looked_closer.steps[looked_closer.steps > 170].tolist() == list(range(180, 300, 20))


def test_a_run_that_goes_on_does_not_look_at_old_findings_again(looked_closer):
    probe, step = eager_steps()
    reading = step(0)
    when = tapescope.auto(2)
    with tapescope.Recorder(looked_closer.logdir, probe, when, resume=tapescope.Resume(300, {})) as recorder:
        for n in range(300, 303):
            when(n)
            recorder.write(n, reading, {"loss": 1.0})
            recorder._wait()
    assert not tapescope.Run(looked_closer.logdir)["closer_look"][-3:].any()


class Variable:
    def __init__(self, strategy):
        self.distribute_strategy = strategy


def test_several_workers_do_not_look_closer():
    assert replicas.is_single_worker([])
    assert replicas.is_single_worker([Variable(mirrored(2))])
    assert not replicas.is_single_worker([Variable(tf.distribute.MultiWorkerMirroredStrategy())])


@pytest.fixture
def _several_workers(monkeypatch):
    monkeypatch.setattr(replicas, "has_other_workers", lambda variables: True)


@pytest.mark.usefixtures("_several_workers")
def test_several_workers_measure_the_same_steps_by_default(tmp_path):
    probe, _ = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        assert [n for n in range(31) if recorder.when(n)] == [0, 10, 20, 30]


@pytest.mark.usefixtures("_several_workers")
@pytest.mark.parametrize("make", [tapescope.auto, tapescope.budget])
def test_several_workers_refuse_a_schedule_by_the_clock(tmp_path, make):
    probe, _ = eager_steps()
    with pytest.raises(ValueError, match=r"must choose the same steps in all workers.*use tapescope.every\(10\)"):
        tapescope.Recorder(tmp_path, probe, make())


def test_one_worker_has_no_others():
    assert not replicas.has_other_workers([])
    assert not replicas.has_other_workers([Variable(mirrored(2))])
    assert not replicas.has_other_workers([Variable(tf.distribute.MultiWorkerMirroredStrategy())])


def test_the_workers_of_a_cluster_are_known(monkeypatch):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"chief": ["127.0.0.1:1"], "worker": ["127.0.0.1:2"], "evaluator": ["127.0.0.1:3"]})
    )
    monkeypatch.setattr(type(strategy), "cluster_resolver", resolver)
    assert replicas.has_other_workers([Variable(strategy)])


def test_a_reading_of_arrays_is_recorded(tmp_path):
    probe, step = eager_steps()
    reading = tapescope.Reading(*(part.numpy() for part in step(0)))
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, reading)
    np.testing.assert_array_equal(tapescope.Run(tmp_path)["gradient_norm"][0], reading.column("gradient_norm"))


def test_numbers_read_off_the_histograms_are_those_of_the_tensors(tmp_path):
    model = dense_chain([40, 2], ["tanh", "linear"], 6)
    probe = tapescope.Probe(model)
    x = RNG.normal(size=[256, 6]).astype(np.float32)
    hidden = model.layers[0](x).numpy().astype(np.float64)
    taken = measured(probe, lambda: 1e-4 * tf.reduce_mean(tf.square(model(x))), model.trainable_variables)
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, taken.reading)
    run = tapescope.Run(tmp_path)
    small = [np.abs(g.numpy()) for g in taken.gradients]
    for name, smallest in (("float16", 2.0**-14), ("e4m3", 2.0**-6), ("e5m2", 2.0**-14)):
        expected = [np.mean((g > 0) & (g < smallest)) for g in small]
        np.testing.assert_allclose(run[f"gradient_below_{name}"][0], expected, atol=1e-6)
        found = run[f"activation_below_{name}"][0, 0]
        assert found == pytest.approx(np.mean(np.abs(hidden) < smallest), abs=2e-4)
    assert run["gradient_below_bfloat16"][0].tolist() == [0] * 4
    assert run["activation_rms"][0, 0] == pytest.approx(np.sqrt(np.mean(hidden**2)), rel=1e-5)
    expected = np.mean((hidden - hidden.mean()) ** 4) / hidden.var() ** 2
    assert run["activation_kurtosis"][0, 0] == pytest.approx(expected, rel=0.1)


def test_without_histograms_the_numbers_read_off_them_are_unknown(tmp_path):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, step(0))
    run = tapescope.Run(tmp_path)
    assert np.isnan(run["activation_kurtosis"]).all()
    assert np.isnan(run["gradient_below_e4m3"]).all()
    assert np.isfinite(run["activation_rms"]).all()


@pytest.mark.parametrize("kind", [tf.Variable, keras.Variable, np.array])
def test_a_scalar_is_that_of_its_step_although_the_program_changes_it(tmp_path, kind):
    probe, step = eager_steps()
    rate = kind(0.0)
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(20):
            if kind is np.array:
                rate[...] = n
            else:
                rate.assign(n)
            recorder.write(n, step(n), {"loss": rate})
    assert tapescope.Run(tmp_path)["loss"].tolist() == list(range(20))


def test_closing_one_recorder_leaves_the_captures_of_another(tmp_path):
    probe, _ = eager_steps()
    when = tapescope.every(1)
    with tapescope.Recorder(tmp_path / "a", probe, when, capture="on_finding"):
        with tapescope.Recorder(tmp_path / "b", probe, when):
            pass
        assert when._before_measured is not None
    assert when._before_measured is None


def test_a_pattern_without_a_layer_is_said_for_a_model_that_is_built_later(caplog):
    model = keras.Sequential([keras.layers.Dense(2)])
    probe = tapescope.Probe(model, layers="nosuch")
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(model(tf.ones([2, 2])))
    tape.gradient(loss, model.trainable_variables)
    tape.reading()
    assert "none of the model's matches 'nosuch'" in caplog.text


def test_a_recorder_that_cannot_begin_leaves_the_schedule_alone(tmp_path, monkeypatch):
    probe, _ = eager_steps()
    when = tapescope.every(1)

    def fail(*args):
        raise OSError("no room")

    monkeypatch.setattr("tapescope.storage.run_writer.RunWriter.__init__", fail)
    with pytest.raises(OSError, match="no room"):
        tapescope.Recorder(tmp_path, probe, when, capture="on_finding")
    assert when._before_measured is None


def test_a_loop_that_asks_the_schedule_holds_one_copy_of_the_weights(tmp_path):
    probe, step = eager_steps()
    when = tapescope.every(1)
    with tapescope.Recorder(tmp_path, probe, when, capture="on_finding") as recorder:
        for n in range(3):
            assert when(n)
            recorder.write(n, step(n), batch=np.zeros(1))
        assert recorder._copies._after is None


@pytest.mark.parametrize("step", [1.5, -1, None, "a", [1, 2]])
def test_a_step_is_a_whole_number(tmp_path, step):
    probe, take = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        with pytest.raises(ValueError, match="`step` must be a whole number from 0"):
            recorder.write(step, take(0))
        recorder.write(np.int64(3), take(1))
        recorder.write(tf.constant(4), take(2))
    assert tapescope.Run(tmp_path).steps.tolist() == [3, 4]


@pytest.mark.parametrize("examples", ["many", -1, [1, 2]])
def test_examples_are_a_number(tmp_path, examples):
    probe, take = eager_steps()
    with (
        tapescope.Recorder(tmp_path, probe) as recorder,
        pytest.raises(ValueError, match="`examples` must be the number of examples trained on so far"),
    ):
        recorder.write(0, take(0), examples=examples)


def test_scalars_and_hyperparameters_are_dicts(tmp_path):
    probe, _ = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        with pytest.raises(ValueError, match="`scalars` must be a dict of values by name; got list"):
            recorder.scalars(0, [0.5])
        with pytest.raises(ValueError, match="`hparams` must be a dict of values by name; got list"):
            recorder.hparams([0.5])


def test_a_state_that_cannot_be_told_is_an_error(tmp_path, monkeypatch):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, step(0))
        monkeypatch.setattr("tapescope.storage.unit_ledger.Ledger.state", lambda self: 1 / 0)
        with pytest.raises(RuntimeError, match="the state of"):
            recorder.state()


def test_rules_that_cannot_take_new_rows_cost_no_record(tmp_path, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("too many")

    monkeypatch.setattr("tapescope.rules.engine.RuleEngine.extend", fail)
    first, second = tf.Variable([1.0]), tf.Variable([2.0])
    probe = tapescope.Probe([first, second])
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n, names in enumerate((["a"], ["a", "b"], ["a", "b"])):
            with probe.tape(True) as tape:
                loss = sum(tf.reduce_sum(tapescope.tap(name, first * second)) for name in names)
            tape.gradient(loss, [first, second])
            recorder.write(n, tape.reading())
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2]
    assert "a rule failed" in caplog.text


def test_a_run_of_which_measuring_failed_says_so(tmp_path, monkeypatch, capsys):
    probe, _ = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        probe._state.failsafe.give_up(RuntimeError("out of ideas"))
        recorder.scalars(0, {"loss": 1.0})
    assert cli.main(["check", str(tmp_path)]) == cli.BAD_INPUT
    assert "measuring failed (RuntimeError: out of ideas)" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2])
def test_the_status_has_the_number_of_replicas(tmp_path, count):
    strategy = mirrored(2) if count == 2 else tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        model = dense_chain([2], ["relu"], 6)
    probe = tapescope.Probe(model)

    def step():
        return measured(probe, lambda: tf.reduce_sum(model(tf.ones([4, 6]))), model.trainable_variables).reading

    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, strategy.run(tf.function(step)))
    assert tapescope.Run(tmp_path).status["replicas"] == count
