"""Captured steps: what is stored comes back, without pickle and within bounds."""

import ml_dtypes
import numpy as np
import pytest

from tapescope.storage import captured_step, captures
from tapescope.storage.captured_step import CapturedStep, SavedVariable

BATCH = (
    {"image": np.arange(6, dtype=np.float32).reshape(2, 3), "text": np.array([b"a\xff", b""], object)},
    [np.array([1, 2]), None],
    np.array([0.5, 2], ml_dtypes.bfloat16),
)


def make(step=3, batch=None):
    weights = [SavedVariable("dense/kernel", np.array([[1.5]], ml_dtypes.bfloat16))]
    return CapturedStep(step, "a spike", 2.5, {"dense/kernel": 0.1}, batch, np.array([4, 9]), weights, None, (1, 1))


def offer(batch=(), size=0):
    return captures.Offer(lambda: captured_step.to_arrays(batch), None, None, None, (), size)


def test_a_captured_step_comes_back_as_it_was(tmp_path):
    captured_step.write(str(tmp_path), make(batch=captured_step.to_arrays(BATCH)))
    found = captured_step.read(tmp_path, 3)
    first, second, third = found.batch
    np.testing.assert_array_equal(first["image"], BATCH[0]["image"])
    assert first["text"].tolist() == [b"a\xff", b""]
    assert isinstance(second, list)
    assert second[1] is None
    assert third.dtype == ml_dtypes.bfloat16
    assert found.model is not None
    assert (found.model[0].name, found.model[0].value.tolist()) == ("dense/kernel", [[1.5]])
    assert (found.loss, found.gradient_norm, found.replicas) == (2.5, {"dense/kernel": np.float32(0.1)}, (1, 1))
    assert found.indices is not None
    assert found.indices.tolist() == [4, 9]


@pytest.mark.parametrize("batch", [(object(),), {1: np.zeros(2)}, [np.array([{}])], [np.array([b"a\0", b""], object)]])
def test_what_only_pickle_could_store_is_refused(batch):
    with pytest.raises(ValueError, match="`batch`"):
        captured_step.to_arrays(batch)


def test_a_stored_array_is_a_copy():
    x = np.zeros(3)
    stored = captured_step.to_arrays((x,))
    x[:] = 1
    assert stored[0].tolist() == [0, 0, 0]


def test_a_damaged_file_is_named(tmp_path):
    captured_step.write(str(tmp_path), make())
    path = tmp_path / "captures" / "step-3.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-3\.npz is damaged"):
        captured_step.read(tmp_path, 3)


def test_the_oldest_steps_are_dropped_and_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(captures, "MAX_STEPS", 2)
    kept = captures.CapturedSteps(str(tmp_path))
    for step in (1, 5, 9):
        kept.offer(step, offer())
        kept.judge(step, "a spike", 1.0, {})
    assert captured_step.list_captured(tmp_path) == [5, 9]
    assert "the captured step 1 of" in caplog.text


def test_bytes_are_bounded_and_the_newest_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(captures, "MAX_BYTES", 1)
    kept = captures.CapturedSteps(str(tmp_path))
    for step in (1, 2):
        kept.offer(step, offer((np.zeros(10),)))
        kept.judge(step, "a spike", 1.0, {})
    assert captured_step.list_captured(tmp_path) == [2]


def test_a_step_without_an_alarm_is_forgotten(tmp_path):
    kept = captures.CapturedSteps(str(tmp_path))
    kept.offer(1, offer())
    kept.judge(1, None, 1.0, {})
    kept.judge(1, "a spike", 1.0, {})
    assert captured_step.list_captured(tmp_path) == []


def test_steps_that_wait_are_bounded_in_bytes_alone(tmp_path, caplog):
    kept = captures.CapturedSteps(str(tmp_path))
    for step in range(100):
        kept.offer(step, offer())
    for step in (100, 101):
        kept.offer(step, offer(size=200 << 20))
    kept.judge(100, "a spike", 1.0, {})
    kept.judge(101, "a spike", 1.0, {})
    assert captured_step.list_captured(tmp_path) == [101]
    assert "step 100 shows a spike and is not captured" in caplog.text


def test_a_batch_that_cannot_be_stored_costs_the_capture_only(tmp_path, caplog):
    kept = captures.CapturedSteps(str(tmp_path))
    kept.offer(1, offer((object(),)))
    kept.judge(1, "a spike", 1.0, {})
    assert "step 1 shows a spike and cannot be captured" in caplog.text


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="'on_finding' or 'never'; got 'always'"):
        captures.check_mode("always")


def test_a_step_that_cannot_be_removed_costs_no_record(tmp_path, monkeypatch, caplog):
    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(captures, "MAX_STEPS", 1)
    kept = captures.CapturedSteps(str(tmp_path))
    kept.offer(1, offer())
    kept.judge(1, "a spike", 1.0, {})
    monkeypatch.setattr(captures.os, "remove", refuse)
    kept.offer(2, offer())
    kept.judge(2, "a spike", 1.0, {})
    assert "a captured step cannot be removed" in caplog.text
    assert captured_step.list_captured(tmp_path) == [1, 2]
