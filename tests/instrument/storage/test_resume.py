"""A run that goes on at an earlier step: what is removed from its files, and what stays."""

import os

import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed import synthetic
from scripts.testbed.records import eager_steps, loaded_steps
from scripts.testbed.synthetic import Spec

import tapescope
from tapescope.analysis.status import read_status
from tapescope.analysis.status import table as status_table
from tapescope.storage import summaries
from tapescope.storage.event_reader import find_event_files
from tapescope.storage.resume import cut_records, recorded_rules, recorded_run

SPEC = Spec(depth=2, units=2, histograms=False)


@pytest.fixture
def path(tmp_path):
    """Return the file of a run with steps 0 to 9."""
    synthetic.write(tmp_path, SPEC, range(10))
    (path,) = find_event_files(tmp_path).own
    return path


def test_later_records_are_removed(path, tmp_path):
    cut_records(tmp_path, 6)
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2, 3, 4, 5]


def test_tensorboard_reads_what_is_left(path, tmp_path):
    cut_records(tmp_path, 6)
    assert loaded_steps(tmp_path, "tapescope/variables") == [0, 1, 2, 3, 4, 5]
    assert len(list(tf.data.TFRecordDataset(path))) > 6  # raises DataLossError on a wrong checksum


def test_the_status_is_removed(path, tmp_path):
    cut_records(tmp_path, 6)
    assert tapescope.Run(tmp_path).status == {}


def test_a_truncated_record_is_removed(path, tmp_path):
    os.truncate(path, os.path.getsize(path) - 1)
    cut_records(tmp_path, 100)
    assert len(list(tf.data.TFRecordDataset(path))) > 10  # raises DataLossError on a torn record


def test_a_file_without_later_records_is_not_replaced(path, tmp_path):
    cut_records(tmp_path, 6)
    before = os.stat(path)
    cut_records(tmp_path, 6)
    assert os.stat(path).st_ino == before.st_ino


def test_a_file_without_a_record_left_is_removed(path, tmp_path):
    cut_records(tmp_path, 0)
    assert find_event_files(tmp_path).own == []


def test_no_other_file_is_left(path, tmp_path):
    cut_records(tmp_path, 6)
    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_the_rules_have_seen_the_records_that_are_left(path, tmp_path):
    cut_records(tmp_path, 6)
    assert recorded_rules(recorded_run(tmp_path)).findings == tapescope.check(tapescope.Run(tmp_path))


def test_there_is_no_run_without_a_record(tmp_path):
    assert recorded_run(tmp_path) is None


def test_a_recorder_goes_on_at_the_given_step(tmp_path):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(5):
            recorder.write(n, step(n))
        state = recorder.state()
    with tapescope.Recorder(tmp_path, probe, resume=tapescope.Resume(5, state)) as recorder:
        recorder.write(5, step(5))
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.fixture
def recorded(tmp_path):
    """Return a directory with steps 0 to 4, and the Probe."""
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(5):
            recorder.write(n, step(n))
    return tmp_path, probe


@pytest.mark.parametrize("make", [tf.Variable, tf.constant, np.int64, float])
def test_a_recorder_goes_on_at_the_step_of_a_checkpoint(recorded, make):
    logdir, probe = recorded
    tapescope.Recorder(logdir, probe, resume=tapescope.Resume(make(3), {})).close()
    assert tapescope.Run(logdir).steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("resume", "got"),
    [
        (3, "got int"),
        ((3, {}), "got tuple"),
        (tapescope.Resume(2.5, {}), "got one with step 2.5, and a dict as its state"),
        (tapescope.Resume(-1, {}), "got one with step -1, and a dict as its state"),
        (tapescope.Resume("3", {}), "got one with step 3, and a dict as its state"),
        (tapescope.Resume(3, None), "got one with step 3, and a NoneType as its state"),
    ],
)
def test_what_is_not_a_resume_is_refused_before_anything_is_removed(recorded, resume, got):
    logdir, probe = recorded
    with pytest.raises(ValueError, match=f"`resume` must be a Resume of a step from 0 .*; {got}"):
        tapescope.Recorder(logdir, probe, resume=resume)
    run = tapescope.Run(logdir)
    assert (run.steps.tolist(), run.status["state"]) == ([0, 1, 2, 3, 4], "ended")


def chosen_schedule(interval=7):
    """Return an `auto` that has chosen at step 150."""
    schedule = tapescope.auto()
    chosen = {"measure_interval": interval, "measure_interval_from": 150, "measure_percent": 2.0}
    schedule.restore(chosen)
    return schedule, chosen


def test_a_recorder_without_a_schedule_has_auto(tmp_path):
    probe, _ = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        assert all(map(recorder.when, range(3)))


def test_the_choice_of_a_schedule_is_in_the_status_and_in_the_state(tmp_path):
    probe, step = eager_steps()
    schedule = tapescope.auto()
    with tapescope.Recorder(tmp_path, probe, schedule) as recorder:
        recorder.write(0, step(0))
        _, chosen = chosen_schedule()
        schedule.restore(chosen)
        recorder.write(1, step(1))
        state = recorder.state()
    assert tapescope.Run(tmp_path).status.items() >= chosen.items()
    assert {name: state[f"schedule/{name}"].item() for name in chosen} == chosen


@pytest.mark.parametrize("from_state", [True, False], ids=["state", "status"])
def test_a_run_that_goes_on_measures_as_before(tmp_path, from_state):
    probe, step = eager_steps()
    schedule, chosen = chosen_schedule()
    with tapescope.Recorder(tmp_path, probe, schedule) as recorder:
        recorder.write(0, step(0))
        state = recorder.state()
    if not from_state:  # the checkpoint is older than the choice
        state = {name: array for name, array in state.items() if not name.startswith("schedule/")}
    with tapescope.Recorder(tmp_path, probe, resume=tapescope.Resume(1, state)) as recorder:
        assert recorder.when.about() == chosen
        recorder.write(1, step(1))
    assert tapescope.Run(tmp_path).status.items() >= chosen.items()


def test_a_run_of_a_version_with_fewer_columns_goes_on_with_those(tmp_path, monkeypatch):
    probe, step = eager_steps()
    with monkeypatch.context() as older, tapescope.Recorder(tmp_path, probe) as recorder:
        make_family = summaries._make_family

        def make_older(name, columns, names, array, *details):
            kept = [i for i, column in enumerate(columns) if column not in ("loss_spike_share", "activation_min")]
            return make_family(name, [columns[i] for i in kept] if columns else (), names, array[kept or ...], *details)

        older.setattr(summaries, "_make_family", make_older)
        for n in range(3):
            recorder.write(n, step(n), {"loss": 1.0})
        recorder._wait()
    with tapescope.Recorder(tmp_path, probe, resume=tapescope.Resume(3, {})) as recorder:
        for n in range(3, 6):
            recorder.write(n, step(n), {"loss": 2.0})
    run = tapescope.Run(tmp_path)
    assert run.problems == ()
    assert "loss_spike_share" not in run.columns
    assert "activation_min" not in run.columns
    assert run["loss"].tolist() == [1, 1, 1, 2, 2, 2]
    assert (run["activation_max"] >= run["activation_mean"]).all()


def test_a_run_that_goes_on_keeps_its_spikes(tmp_path):
    probe, step = eager_steps()
    losses = np.random.default_rng(0).normal(10, 0.1, size=90)
    losses[[70, 85]] = 20
    reading = step(0)
    for first, last in ((0, 80), (80, 90)):
        with tapescope.Recorder(tmp_path, probe, resume=tapescope.Resume(first, {}) if first else None) as recorder:
            for n in range(first, last):
                recorder.write(n, reading, {"loss": losses[n]})
    run = tapescope.Run(tmp_path)
    assert np.isnan(run["loss_spike_share"][:64]).all()
    assert run["loss_spike_share"][-1] == 2 / 26
    assert tapescope.compare(run, run).spikes["first"]["loss"] == 2 / 26
    (index,) = read_status(tmp_path)
    assert index["spikes"] == {"loss": 2 / 26, "gradient": 0.0}
    assert " 7.7 %  " in status_table([index])
