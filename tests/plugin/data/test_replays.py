"""Replayed steps in a run's directory: read with the types that the page expects, and left out if damaged."""

import json
from typing import Any

import pytest
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec

from tensorboard_plugin_tapescope.data.replays import MAX_FILE_BYTES, read_replays
from tests.plugin.conftest import application

ANSWER = {
    "step": 13,
    "reproduced": True,
    "difference": 0.0,
    "loss": None,
    "gradient_norm": 2.5,
    "first_layer": {"layer": "dense", "reason": "not finite"},
    "examples": [
        {"index": 137, "loss": 2.0, "gradient_norm": None, "inputs": [{"name": "x", "shape": [2], "values": [1, 2]}]}
    ],
    "variants": [{"change": "as it was", "loss_after": 1.0}],
    "notes": [],
}


@pytest.fixture
def write(tmp_path):
    """Return a function that writes an answer of the run `a`."""

    def write(step, text):
        folder = tmp_path / "a" / "captures"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"replay-{step}.json").write_text(text)
        return str(tmp_path)

    return write


def test_answers_are_read_the_newest_step_first(write):
    write(13, json.dumps(ANSWER))
    logdir = write(20, json.dumps(ANSWER | {"step": 20}))
    found = read_replays(logdir, "a")
    assert [answer["step"] for answer in found] == [20, 13]
    assert found[1]["examples"][0] == ANSWER["examples"][0]
    assert found[1]["first_layer"] == ANSWER["first_layer"]


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", "[" * 100_000, json.dumps(ANSWER | {"examples": 3}), json.dumps(ANSWER | {"loss": "<b>"})]
)
def test_a_damaged_answer_is_left_out(write, text):
    write(13, json.dumps(ANSWER))
    assert len(read_replays(write(14, text), "a")) == 1


def test_a_large_file_is_not_read(write):
    assert read_replays(write(13, " " * MAX_FILE_BYTES + json.dumps(ANSWER)), "a") == []


def test_without_a_directory_there_are_none(write):
    write(13, json.dumps(ANSWER))
    assert read_replays(None, "a") == []


def test_the_tab_serves_them(tmp_path):
    synthetic.write(tmp_path / "a", Spec(), range(0, 30, 10))
    (tmp_path / "a" / "captures").mkdir()
    (tmp_path / "a" / "captures" / "replay-13.json").write_text(json.dumps(ANSWER))
    tab = application(tmp_path, fast=False, runs=1)
    content: Any = tab.get("run", run="a").json
    assert [answer["step"] for answer in content["replays"]] == [13]
