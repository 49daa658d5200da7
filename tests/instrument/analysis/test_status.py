"""`tapescope status` and `tapescope columns`: what they print and their exit codes."""

import json
import os
import time

import pytest
from scripts.testbed import synthetic
from scripts.testbed.records import eager_steps
from scripts.testbed.synthetic import Spec

import tapescope
from tapescope import cli
from tapescope.analysis import columns, status
from tapescope.storage import run_index
from tensorboard_plugin_tapescope import metadata

SPEC = Spec(depth=2, units=2)


@pytest.fixture
def logdir(tmp_path):
    """Record a run without findings that has ended, and one with a warning that trains."""
    synthetic.write(tmp_path / "good", SPEC, range(0, 50, 10), state="ended")
    found = (synthetic.finding(severity="warning"),)
    synthetic.write(tmp_path / "deep" / "bad", SPEC._replace(findings=found), range(0, 50, 10), state="training")
    return tmp_path


def age(directory, seconds):
    for path in directory.glob("*.tfevents.*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_wide_characters_take_two_columns_of_the_table(tmp_path):
    synthetic.write(tmp_path / "日本語🚀", SPEC, range(0, 50, 10))
    synthetic.write(tmp_path / "ascii", SPEC, range(0, 50, 10))
    lines = status.table(status.read_status(tmp_path)).splitlines()
    assert [line.index("ended") for line in lines if "ended" in line] == [len("ascii") + 5, len("日本語🚀") + 2]


def test_the_table_has_a_line_for_each_run(logdir, run_cli):
    code, out, error = run_cli("status", logdir)
    header, bad, good = out.splitlines()
    assert (code, error) == (cli.FOUND, "")
    assert header.split()[:4] == ["run", "state", "step", "loss"]
    assert bad.split()[:3] == ["deep/bad", "training", "40/40"]
    assert good.split()[:3] == ["good", "ended", "40/40"]


def test_a_run_without_findings_needs_no_attention(logdir, run_cli):
    assert run_cli("status", logdir / "good")[0] == cli.SUCCESS


def test_the_severity_decides_what_needs_attention(logdir, run_cli):
    assert run_cli("status", logdir, "--severity=error")[0] == cli.SUCCESS


def test_json_is_an_index_for_each_run(logdir, run_cli):
    _, out, _ = run_cli("status", logdir, "--json")
    bad, good = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert (bad["name"], good["name"]) == ("deep/bad", "good")
    assert bad["findings"][0]["advice"]
    assert bad["run"] == str(logdir / "deep" / "bad")


def test_a_run_that_is_silent_has_stalled(logdir, run_cli):
    age(logdir / "deep" / "bad", 3600)
    code, out, _ = run_cli("status", logdir / "deep", "--severity=error", "--json")
    assert json.loads(out)["state"] == "stalled"
    assert code == cli.FOUND


def test_a_run_with_rare_records_has_not_stalled(logdir, monkeypatch):
    age(logdir / "deep" / "bad", 3600)
    described = run_index.describe_run(tapescope.Run(logdir / "deep" / "bad"))
    monkeypatch.setattr(run_index, "describe_run", lambda run: described | {"seconds_between_records": 1000.0})
    assert status.read_status(logdir / "deep")[0]["state"] == "training"


def test_an_index_left_behind_by_a_killed_program_is_not_believed(tmp_path):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(3):
            recorder.write(n, step(n), {"loss": 1.0, "accuracy": 0.5})
    index = run_index.read_index(str(tmp_path))
    assert index
    run_index.write_index(str(tmp_path), index | {"step": 0, "records": 1, "updated": index["updated"] - 100})
    age(tmp_path, 50)
    (read,) = status.read_status(tmp_path)
    assert (read["step"], read["records"], read["scalars"]["accuracy"]) == (2, 3, 0.5)


def test_a_fresh_index_is_read_instead_of_the_events(tmp_path, monkeypatch):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, step(0), {"loss": 1.0})
    monkeypatch.setattr(run_index, "describe_run", lambda run: pytest.fail("read the events"))
    assert status.read_status(tmp_path)[0]["step"] == 0


def test_a_damaged_run_has_a_line(logdir, run_cli):
    (logdir / "good" / "index.json").write_text(
        json.dumps({"format": 1, "run": "x", "updated": 1e12, "state": "ended", "reason": "", "records": 1})
    )
    assert run_cli("status", logdir / "good")[0] == cli.SUCCESS


@pytest.mark.parametrize("make", [lambda path: path / "none", lambda path: path])
def test_a_directory_without_runs_is_one_line(tmp_path, run_cli, make):
    code, out, error = run_cli("status", make(tmp_path))
    assert (code, out, error.count("\n")) == (cli.BAD_INPUT, "", 1)


def test_watch_ends_when_no_run_trains(logdir, run_cli, monkeypatch):
    def end(seconds):
        synthetic.write(logdir / "deep" / "bad", SPEC, range(0, 50, 10), state="ended")

    monkeypatch.setattr(cli.time, "sleep", end)
    code, out, _ = run_cli("status", logdir, "--watch")
    assert code in (cli.SUCCESS, cli.FOUND)
    assert [line.split()[1] for line in out.splitlines() if line.startswith("deep/bad")] == ["training", "ended"]


def test_watch_ends_with_130_upon_an_interrupt(logdir, run_cli, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.time, "sleep", interrupt)
    assert run_cli("status", logdir, "--watch")[0] == cli.INTERRUPTED


@pytest.mark.parametrize("seconds", ["0", "nan", "x", "1e9"])
def test_watch_refuses_a_wrong_interval(logdir, run_cli, seconds):
    with pytest.raises(SystemExit) as stopped:
        run_cli("status", logdir, "--watch", f"--every={seconds}")
    assert stopped.value.code == cli.BAD_INPUT


def test_every_column_of_the_wire_is_explained():
    explained = {column.name: column for column in columns.explain()}
    assert set(metadata.COLUMNS) <= set(explained)
    assert all(column.definition for column in explained.values())


def test_every_column_of_a_run_is_explained(logdir):
    assert set(tapescope.Run(logdir / "good").columns) <= {column.name for column in columns.explain()}


def test_columns_prints_one_column(run_cli):
    code, out, _ = run_cli("columns", "delta_norm")
    assert code == cli.SUCCESS
    assert out.startswith("delta_norm  (of each layer, [T, L], log)\n    L2 norm")


def test_columns_prints_json(run_cli):
    _, out, _ = run_cli("columns", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == len(columns.explain())


def test_a_misspelt_column_is_one_line_with_the_nearest(run_cli):
    code, _, error = run_cli("columns", "delta_nrm")
    assert (code, error.count("\n")) == (cli.BAD_INPUT, 1)
    assert "did you mean delta_norm?" in error


def test_report_prints_json(logdir, tmp_path, run_cli):
    page = tmp_path / "page.html"
    _, out, _ = run_cli("report", logdir / "good", f"--output={page}", "--json")
    assert json.loads(out) == {"output": str(page), "runs": [str(logdir / "good")]}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["FIFO", "device"])
@pytest.mark.parametrize("name", [run_index.JSON_NAME, "events.out.tfevents.1.host.1.0.v2"])
def test_only_regular_files_are_read(logdir, run_cli, make, name):
    directory = logdir / "good"
    (directory / name).unlink(missing_ok=True)
    make(directory / name)
    code, out, _ = run_cli("status", logdir)
    assert code == cli.FOUND
    assert out.splitlines()[2].split()[:2] == ["good", "ended"]


@pytest.mark.parametrize("layers", [[1], [{}], [{"layer": 1, "reason": 2}]])
def test_an_index_with_other_types_costs_no_line(logdir, run_cli, layers):
    changed = run_index.describe_run(tapescope.Run(logdir / "good")) | {"worst_layers": layers, "updated": 9e9}
    (logdir / "good" / run_index.JSON_NAME).write_text(run_index.to_json(changed))
    code, out, _ = run_cli("status", logdir)
    assert code == cli.FOUND
    assert len(out.splitlines()) == 3


def test_a_name_that_is_not_utf8_is_escaped(logdir, run_cli):
    (logdir / "good").rename(os.fsdecode(os.fsencode(logdir) + b"/r\xff"))
    _, out, _ = run_cli("status", logdir)
    assert out.splitlines()[2].startswith(r"r\udcff")
