"""Run and runs: which directories are runs, each column as an array and as a DataFrame, and a run in a notebook."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec

import tapescope
from tapescope.storage import event_file, event_values
from tensorboard_plugin_tapescope.metadata import REPLICA_COLUMNS, Family

FINDING = synthetic.finding(None, 40, "warning", message="the gradient of <script>alert(1)</script> spikes")


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """Write two runs, one of them of two replicas, and files of other programs."""
    root = tmp_path_factory.mktemp("runs")
    synthetic.write(root / "b" / "single", Spec(depth=2, units=3, findings=(FINDING,)), range(0, 200, 10))
    synthetic.write(root / "a", Spec(depth=2, units=3, replicas=2, histograms=False), range(0, 50, 10))
    with tf.summary.create_file_writer(str(root / "a" / "validation")).as_default():
        for step in range(30):
            tf.summary.scalar("loss", 1.0, step)
    (root / "notes").mkdir()
    (root / "notes" / "todo.txt").write_text("tapescope/variables")
    return root


@pytest.fixture
def run(logdir):
    return tapescope.Run(logdir / "b" / "single")


@pytest.fixture
def empty_run(tmp_path):
    """Return a run that has only begun."""
    with tapescope.Recorder(tmp_path, tapescope.Probe(tf.Variable([1.0]))):
        return tapescope.Run(tmp_path)


def test_runs_finds_the_runs_of_tapescope_below_a_directory(logdir):
    assert tapescope.runs(logdir) == [str(logdir / "a"), str(logdir / "b" / "single")]


def test_runs_finds_the_directory_itself(logdir):
    assert tapescope.runs(logdir / "b" / "single") == [str(logdir / "b" / "single")]


def test_runs_finds_nothing_without_event_files(logdir):
    assert tapescope.runs(logdir / "notes") == []


def test_runs_finds_a_run_without_a_record(empty_run):
    assert tapescope.runs(empty_run.logdir) == [empty_run.logdir]


@pytest.mark.parametrize(("wrong", "problem"), [("typo", "does not exist"), ("notes/todo.txt", "is a file: pass the")])
def test_runs_of_what_is_not_a_directory_is_an_error(logdir, wrong, problem):
    with pytest.raises(FileNotFoundError, match=rf"`logdir` must be a directory; got .*{wrong}', which {problem}"):
        tapescope.runs(logdir / wrong)


@pytest.mark.parametrize("read", [tapescope.runs, tapescope.Run])
def test_a_path_may_begin_with_the_home_directory(empty_run, monkeypatch, read):
    monkeypatch.setenv("HOME", empty_run.logdir)
    assert read("~")


def test_a_run_that_does_not_exist_is_named(logdir):
    with pytest.raises(FileNotFoundError, match=r"got .*typo', which does not exist"):
        tapescope.Run(logdir / "typo")


def test_a_column_of_a_run_without_a_record_says_so(empty_run):
    with pytest.raises(KeyError, match=r"no column 'loss' in .*; it has: no record"):
        empty_run["loss"]


def test_a_directory_without_event_files_is_not_a_run(logdir):
    with pytest.raises(FileNotFoundError, match=r"notes has no event file"):
        tapescope.Run(logdir / "notes")


def test_a_directory_of_runs_names_one_of_them(logdir):
    with pytest.raises(FileNotFoundError, match=r"; .* has one: tapescope\.runs\(.*\) lists all runs below it"):
        tapescope.Run(logdir)


def test_a_run_says_whether_it_has_a_column(run):
    assert "loss" in run
    assert "no such column" not in run
    assert tuple(run) == run.columns


def test_event_files_of_other_programs_are_not_a_run(logdir):
    with pytest.raises(ValueError, match=r"validation has event files, but none with tapescope's records"):
        tapescope.Run(logdir / "a" / "validation")


@pytest.mark.parametrize("column", ["gradient_norm", "saturated", "step_ms", "first_nonfinite"])
def test_a_frame_has_the_numbers_of_the_column(run, column):
    frame = run.frame(column)
    assert frame.index.name == "step"
    assert frame.index.tolist() == run.steps.tolist()
    np.testing.assert_array_equal(frame.to_numpy().squeeze(), run[column])


def test_a_frame_has_a_column_for_each_row(run):
    assert tuple(run.frame("gradient_norm").columns) == run.variables
    assert tuple(run.frame("saturated").columns) == run.layers
    assert list(run.frame("step_ms").columns) == ["step_ms"]
    assert list(run.frame("first_nonfinite").columns) == ["first_nonfinite_forward", "first_nonfinite_backward"]


def test_a_frame_of_unit_states_has_layers_units_and_windows(run):
    frame = run.frame("unit_state")
    steps, states = run.units("output")
    assert frame.columns.names == ["layer", "unit"]
    assert frame.index.tolist() == steps.tolist()
    assert len(steps) < len(run.steps)
    np.testing.assert_array_equal(frame["output"], states)


@pytest.mark.parametrize("column", [c.name for c in REPLICA_COLUMNS])
def test_a_frame_of_the_replicas_has_replicas_and_variables(logdir, column):
    run = tapescope.Run(logdir / "a")
    frame = run.frame(column)
    assert frame.shape == (5, 2 * len(run.variables))
    np.testing.assert_array_equal(frame[1], run[column][:, 1])


def test_a_histogram_has_no_frame(run):
    with pytest.raises(ValueError, match=r"`column` must have two axes; 'gradient_histogram' has three: use run\["):
        run.frame("gradient_histogram")


def test_an_unknown_column_is_an_error_that_lists_the_known_ones(run):
    with pytest.raises(KeyError, match=r"no column 'x' in .*; it has: gradient_norm"):
        run.frame("x")


@pytest.mark.parametrize("column", [1, None, ["loss"], b"loss"])
def test_a_column_that_is_not_a_name_is_the_same_error(run, column):
    for read in (run.__getitem__, run.rows, run.frame, run.plot):
        with pytest.raises(KeyError, match=r"no column .* in .*; it has: gradient_norm"):
            read(column)


def test_a_frame_without_pandas_is_an_error_with_the_cure(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas: pip install pandas"):
        run.frame("loss")


def test_every_column_has_the_names_of_its_rows(run):
    assert run.rows("gradient_histogram") == run.variables
    assert run.rows("gradient_norm") == run.variables
    assert run.rows("unit_state") == run.layers
    assert run.rows("units_dead") == run.layers
    assert run.rows("first_nonfinite") == ()
    assert run.rows("loss") == ()


def test_first_nonfinite_is_drawn_as_two_lines(run):
    assert [trace.name for trace in run.plot("first_nonfinite").data] == ["forward", "backward"]


def test_repr_says_state_size_and_loss(run, logdir):
    assert repr(run).startswith(f"<tapescope.Run '{logdir}/b/single': ended, 20 records up to step 190, ")
    assert "2 layers, 4 variables, loss " in repr(run)


def test_notebooks_show_findings_with_their_text_escaped(run):
    shown = run._repr_html_()
    assert "<li><b style=" in shown
    assert "step 40: the gradient of &lt;script&gt;alert(1)&lt;/script&gt; spikes. <i>" in shown


def test_a_run_without_a_record_has_no_columns(empty_run):
    assert empty_run.columns == ()
    assert empty_run.layers == ()
    assert len(empty_run.steps) == 0


def test_a_run_without_a_record_is_shown(empty_run):
    assert repr(empty_run).endswith("training, no record yet>")
    assert empty_run._repr_html_().endswith(": training, no record yet</p>")


def test_a_tensor_that_claims_more_than_it_holds_is_refused_before_it_is_made(tmp_path):
    """TensorFlow's own functions repeat one number a billion times."""
    value = event_values.tensor(Family("layers", ("saturated",), ("a",)), np.ones([1, 1], np.float32))
    value.tensor.ClearField("tensor_content")
    value.tensor.tensor_shape.dim[0].size = 1_000_000_000
    value.tensor.float_val.append(1.0)
    file = event_file.EventFile(tmp_path)
    file.add(0, [value])
    file.close()
    with pytest.raises(
        ValueError, match=r"tapescope/layers at step 0 claims 1,000,000,000 numbers and holds \d+ bytes"
    ):
        tapescope.Run(tmp_path)


def test_a_whole_record_that_is_not_an_event_is_an_error(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "events.out.tfevents.0")) as writer:
        writer.write(b"\xff\xff\xff")
    with pytest.raises(ValueError, match=r"events.out.tfevents.0 has a record that is not a TensorBoard event"):
        tapescope.Run(tmp_path)


@pytest.fixture
def restarted(tmp_path):
    """Return a run that was started again at step 6, and then at step 3."""
    for begin in (0, 6, 3):
        synthetic.write(tmp_path, Spec(depth=2, units=2, seed=begin), range(begin, begin + 6))
    return tapescope.Run(tmp_path)


def test_a_restart_replaces_later_steps(restarted):
    assert restarted.steps.tolist() == list(range(9))


def test_a_restart_keeps_earlier_numbers(restarted):
    expected = [synthetic.record(Spec(depth=2, units=2, seed=s), s, s + 5, np.random.default_rng(s)) for s in (0, 3)]
    np.testing.assert_array_equal(restarted["gradient_norm"][[0, 3]], [e["variables"][0] for e in expected])
