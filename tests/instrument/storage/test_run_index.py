"""The index of a run: what it says, when it is rewritten, and that it costs no record."""

import json
import math

import numpy as np
import pytest
from scripts.testbed import synthetic
from scripts.testbed.records import eager_steps
from scripts.testbed.synthetic import Spec

import tapescope
from tapescope.rules.finding import Finding
from tapescope.storage import run_index
from tapescope.storage.printable import to_json
from tapescope.storage.run_index import Progress

FOUND = Finding("vanishing", 1, "warning", "b", 8, "the gradient is lost", {"decades": 4.0}, "Use ReLU.")


def describe(progress=None, findings=(), **status):
    return run_index.describe("/runs/mine", status, progress or Progress(), findings, ["a", "b", "c"], [4, 4, 4])


def with_norms(*norms):
    return Progress().add(0, 10.0, {}, {"loss": np.array(1.0), "delta_norm": np.array(norms)})


@pytest.fixture
def recorded(tmp_path):
    """Record three steps, the last with a NaN, and return the directory."""
    probe, step = eager_steps(poisoned_at=2)
    with tapescope.Recorder(tmp_path, probe, about={"steps": 3}) as recorder:
        for n in range(3):
            recorder.write(n, step(n), {"loss": 2.0 - n, "accuracy": 0.5})
    return tmp_path


@pytest.fixture
def index(recorded):
    return json.loads((recorded / "index.json").read_text(), parse_constant=pytest.fail)


def test_the_index_has_the_state_and_the_last_step(index):
    assert (index["state"], index["reason"]) == ("ended", "completed")
    assert (index["step"], index["steps"], index["records"]) == (2, 3, 3)


def test_the_last_step_is_that_of_the_last_scalar(tmp_path):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe, about={"steps": 9}) as recorder:
        recorder.write(2, step(2), {"loss": 1.0})
        recorder.scalars(8, {"validation/loss": 1.0})
    written = run_index.read_index(str(tmp_path))
    described = run_index.describe_run(tapescope.Run(tmp_path))
    assert [(index["step"], index["last_step"]) for index in (written, described) if index] == [(2, 8), (2, 8)]
    assert "- step: 8 of 9, 1 records" in (tmp_path / "index.md").read_text()


def test_the_index_has_the_loss_and_the_scalars(index):
    assert index["loss"] == {"first": 2.0, "last": 0.0, "lowest": 0.0, "lowest_step": 2}
    assert index["scalars"]["accuracy"] == 0.5


def test_the_index_has_findings_with_evidence_and_advice(index, recorded):
    found = next(f for f in index["findings"] if f["rule"] == "non_finite")
    assert found["advice"]
    assert found["evidence"]
    assert index["counts"][found["severity"]] >= 1
    assert {f["rule"] for f in index["findings"]} == {f["rule"] for f in tapescope.Run(recorded).findings}


def test_the_index_names_the_first_layer_with_a_nan(index, recorded):
    layers = tapescope.Run(recorded).layers
    assert index["first_nonfinite"]["backward"] in layers


def test_the_page_has_the_same_findings(recorded, index):
    page = (recorded / "index.md").read_text()
    assert all(f["advice"] in page for f in index["findings"])


def test_the_index_of_the_event_files_is_the_recorders(recorded, index):
    described = json.loads(to_json(run_index.describe_run(tapescope.Run(recorded))))
    varying = ("updated", "scalars")
    assert {**described, **dict.fromkeys(varying)} == {**index, **dict.fromkeys(varying)}


def test_no_temporary_file_is_left(recorded):
    assert not [path.name for path in recorded.iterdir() if path.name.endswith(".new")]


def test_a_run_that_trains_is_rewritten_at_most_once_in_a_while(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(run_index, "write_index", lambda directory, index: written.append(index["records"]))
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(10):
            recorder.write(n, step(n), {"loss": 1.0})
        recorder._wait()
        during = len(written)
    assert during < 5
    assert written[-1] == 10


def test_an_index_that_cannot_be_written_costs_no_record(tmp_path):
    (tmp_path / "index.json").mkdir()
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(3):
            recorder.write(n, step(n), {"loss": 1.0})
    assert recorder.lost == 0
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2]


def test_a_run_that_goes_on_keeps_its_first_loss(tmp_path):
    probe, step = eager_steps()
    for start in (0, 3):
        resume = tapescope.Resume(start, {}) if start else None
        with tapescope.Recorder(tmp_path, probe, resume=resume) as recorder:
            for n in range(start, start + 3):
                recorder.write(n, step(n), {"loss": 9.0 - n})
    index = run_index.read_index(str(tmp_path))
    assert index
    assert (index["records"], index["loss"]["first"], index["loss"]["last"]) == (6, 9.0, 4.0)


def test_layers_of_warnings_come_before_those_with_small_gradients():
    worst = describe(with_norms(1e-9, 1.0, 0.1), [FOUND])["worst_layers"]
    assert [(layer["layer"], layer["reason"]) for layer in worst] == [
        ("b", "vanishing"),
        ("a", "smallest_gradient"),
        ("c", "smallest_gradient"),
    ]


def test_the_first_layer_with_a_nan_is_among_the_worst():
    progress = with_norms(1.0, 2.0, 0.1)
    progress = progress._replace(columns={**progress.columns, "first_nonfinite_forward": np.array(1.0)})
    worst = describe(progress)["worst_layers"][0]
    assert (worst["layer"], worst["reason"]) == ("b", "first_nonfinite")


def test_layers_without_a_known_gradient_are_not_the_worst():
    worst = describe(with_norms(math.nan, 1.0, math.inf))["worst_layers"]
    assert "a" not in [layer["layer"] for layer in worst]


def test_at_most_five_layers_are_worst():
    names = [f"layer_{i}" for i in range(9)]
    worst = run_index.worst_layers(names, [1] * 9, {"delta_norm": np.arange(9.0)}, [])
    assert [layer["layer"] for layer in worst] == names[:5]


def test_an_infinite_loss_is_null_in_json(tmp_path):
    progress = Progress().add(0, 1.0, {}, {"loss": np.array(math.inf)})
    run_index.write_index(str(tmp_path), describe(progress))
    index = json.loads((tmp_path / "index.json").read_text(), parse_constant=pytest.fail)
    assert index["loss"]["last"] is None


def test_a_name_cannot_break_the_page_or_the_json(tmp_path):
    name = "a\n# b\x1b[31m\ud800"
    found = FOUND._replace(layer=name, message=f"in {name}")
    run_index.write_index(str(tmp_path), describe(findings=[found]))
    page = (tmp_path / "index.md").read_text()
    assert "\x1b" not in page
    assert "\n# b" not in page
    assert json.loads((tmp_path / "index.json").read_text())["findings"][0]["layer"] == name


@pytest.mark.parametrize("text", ["", "[1]", '{"format": 99}', '{"format": 1}', "[" * 99999, "\udcff", '{"format": 1e'])
def test_an_index_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "index.json").write_text(text, errors="surrogateescape")
    assert run_index.read_index(str(tmp_path)) is None


def test_a_run_before_its_first_record_has_an_index(tmp_path):
    synthetic.write(tmp_path / "run", Spec(depth=2, units=2), range(0, 20, 10))
    index = describe(state="training")
    assert (index["step"], index["records"], index["worst_layers"]) == (None, 0, [])
    assert "none yet" in run_index.to_markdown(index)
