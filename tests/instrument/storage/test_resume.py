"""A run that goes on at an earlier step: what is removed from its files, and what stays."""

import os

import pytest
import tensorflow as tf
from scripts.testbed import synthetic
from scripts.testbed.records import eager_steps, loaded_steps
from scripts.testbed.synthetic import Spec

import tapescope
from tapescope.storage.event_reader import list_event_files
from tapescope.storage.resume import cut_records, replay_rules

SPEC = Spec(depth=2, units=2, histograms=False)


@pytest.fixture
def path(tmp_path):
    """Return the file of a run with steps 0 to 9."""
    synthetic.write(tmp_path, SPEC, range(10))
    (path,) = list_event_files(tmp_path)
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
    assert list_event_files(tmp_path) == []


def test_no_other_file_is_left(path, tmp_path):
    cut_records(tmp_path, 6)
    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_the_rules_have_seen_the_records_that_are_left(path, tmp_path):
    cut_records(tmp_path, 6)
    assert replay_rules(tmp_path).findings == tapescope.check(tapescope.Run(tmp_path))


def test_there_are_no_rules_without_a_record(tmp_path):
    assert replay_rules(tmp_path) is None


def test_a_recorder_goes_on_at_the_given_step(tmp_path):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(5):
            recorder.write(n, step(n))
        state = recorder.state()
    with tapescope.Recorder(tmp_path, probe, resume=tapescope.Resume(5, state)) as recorder:
        recorder.write(5, step(5))
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2, 3, 4, 5]
