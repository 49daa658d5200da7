"""Reading back: which directories are runs, every column as an array and as a DataFrame, a run in a notebook."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec

import tapescope
from tapescope.storage import event_file
from tensorboard_plugin_tapescope.metadata import REPLICA_COLUMNS

FOUND = synthetic.finding(None, 40, "warning", message="the gradient of <script>alert(1)</script> spikes")


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """Two runs, one of them of two replicas, beside what other programs write."""
    root = tmp_path_factory.mktemp("runs")
    synthetic.write(root / "b" / "alone", Spec(depth=2, units=3, findings=(FOUND,)), range(0, 200, 10))
    synthetic.write(root / "a", Spec(depth=2, units=3, replicas=2, histograms=False), range(0, 50, 10))
    with tf.summary.create_file_writer(str(root / "a" / "validation")).as_default():
        for step in range(30):
            tf.summary.scalar("loss", 1.0, step)
    (root / "notes").mkdir()
    (root / "notes" / "todo.txt").write_text("tapescope/variables")
    return root


@pytest.fixture
def run(logdir):
    return tapescope.Run(logdir / "b" / "alone")


def test_runs_are_those_that_can_be_read(logdir):
    found = tapescope.runs(logdir)
    assert found == [str(logdir / "a"), str(logdir / "b" / "alone")]
    assert [len(tapescope.Run(directory).steps) for directory in found] == [5, 20]
    assert tapescope.runs(logdir / "b" / "alone") == [found[1]]
    assert tapescope.runs(logdir / "notes") == []


def test_no_directory_is_no_empty_list(logdir):
    for wrong in (logdir / "typo", logdir / "notes" / "todo.txt"):
        with pytest.raises(FileNotFoundError, match=r"`logdir` \(.*\) is no directory"):
            tapescope.runs(wrong)


def test_a_column_is_a_frame_of_the_same_numbers(run):
    for column, names in (
        ("gradient_norm", run.variables),
        ("saturated", run.layers),
        ("step_ms", ["step_ms"]),
        ("first_nonfinite", ["first_nonfinite_forward", "first_nonfinite_backward"]),
    ):
        frame = run.frame(column)
        assert list(frame.columns) == list(names)
        assert frame.index.name == "step"
        assert frame.index.tolist() == run.steps.tolist()
        np.testing.assert_array_equal(frame.to_numpy().squeeze(), run[column])


def test_unit_states_are_a_frame_by_layer_and_window(run):
    frame, (steps, states) = run.frame("unit_state"), run.units("output")
    assert frame.index.tolist() == steps.tolist()
    assert len(steps) < len(run.steps)
    np.testing.assert_array_equal(frame["output"], states)
    assert frame.columns.names == ["layer", "unit"]


def test_replicas_columns_are_frames_by_replica(logdir):
    run = tapescope.Run(logdir / "a")
    for column in (c.name for c in REPLICA_COLUMNS):
        frame = run.frame(column)
        assert frame.shape == (5, 2 * len(run.variables))
        np.testing.assert_array_equal(frame[1], run[column][:, 1])


def test_what_has_no_frame_says_so(run, monkeypatch):
    with pytest.raises(ValueError, match=r"`column` \('gradient_histogram'\) has 3 axes and a DataFrame 2: take run\["):
        run.frame("gradient_histogram")
    with pytest.raises(KeyError, match=r"no column 'x' in .*; it has: gradient_norm"):
        run.frame("x")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas: pip install pandas"):
        run.frame("loss")


def test_every_column_has_the_names_of_its_rows(run):
    assert run.rows("gradient_histogram") == run.rows("gradient_norm") == run.variables
    assert run.rows("unit_state") == run.rows("units_dead") == run.layers
    assert run.rows("first_nonfinite") == run.rows("loss") == ()


def test_first_nonfinite_is_two_lines(run):
    assert [trace.name for trace in run.plot("first_nonfinite").data] == ["forward", "backward"]


def test_a_run_in_words(run, logdir):
    assert repr(run).startswith(f"<tapescope.Run '{logdir}/b/alone': ended, 20 records up to step 190, ")
    assert "2 layers, 4 variables, loss " in repr(run)
    shown = run._repr_html_()
    assert "<li><b style=" in shown
    assert "step 40: the gradient of &lt;script&gt;alert(1)&lt;/script&gt; spikes. <i>" in shown


def test_a_run_that_has_only_begun_is_shown_too(tmp_path):
    with tapescope.Recorder(tmp_path, tapescope.Probe(tf.Variable([1.0]))):
        run = tapescope.Run(tmp_path)
        assert tapescope.runs(tmp_path) == [str(tmp_path)]
    assert repr(run).endswith("training, no record yet>")
    assert run._repr_html_().endswith(": training, no record yet</p>")
    assert run.columns == run.layers == ()


def test_a_tensor_that_claims_more_than_it_holds_is_refused_before_it_is_made(tmp_path, monkeypatch):
    """Eight bytes that say that they are a billion numbers: TensorFlow's own functions would repeat them."""
    real = event_file.tensor
    monkeypatch.setattr(synthetic.events, "tensor", lambda family, array: _huge(real(family, array)))
    synthetic.write(tmp_path, Spec(depth=2, units=2), range(2))
    with pytest.raises(
        ValueError, match=r"tapescope/layers at step 0 claims 2,000,000,000 numbers and holds \d+ bytes"
    ):
        tapescope.Run(tmp_path)


def _huge(value):
    if value.tag == "tapescope/layers":
        value.tensor.ClearField("tensor_content")
        value.tensor.tensor_shape.dim[0].size = 1_000_000_000
        value.tensor.float_val.append(1.0)
    return value


def test_steps_that_begin_anew_take_the_place_of_the_later_ones(tmp_path):
    for begin in (0, 6, 3):
        synthetic.write(tmp_path, Spec(depth=2, units=2, seed=begin), range(begin, begin + 6))
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == list(range(9))
    expected = [synthetic.record(Spec(depth=2, units=2, seed=s), s, s + 5, np.random.default_rng(s)) for s in (0, 3)]
    np.testing.assert_array_equal(run["gradient_norm"][[0, 3]], [e["variables"][0] for e in expected])
