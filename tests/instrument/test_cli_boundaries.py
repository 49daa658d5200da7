"""The command line with damaged runs and with terminals that cannot show or take the output."""

import json
import os
import subprocess
import sys

import pytest
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec, Writer

from tapescope import cli
from tapescope.analysis import check
from tapescope.storage import event_values

SPEC = Spec(depth=3, units=4, histograms=False)
COMMANDS = ("check", "scaling", "report", "compare", "status")


def write(logdir, change=lambda writer: None, **texts):
    """Write a run; `change` alters the writer first, and `texts` are written last, by family."""
    writer = Writer(logdir, SPEC, 100)
    change(writer)
    for step in range(0, 100, 10):
        writer.write(step)
    for family, text in texts.items():
        writer.file.add(100, [event_values.text(writer.families[family], text)])
    writer.file.close()
    return str(logdir)


def run_all(damaged, good, output):
    """Return the exit codes of every command for a damaged run."""
    more = {"report": [f"--output={output}"], "compare": [good]}
    return {cli.main([command, damaged, *more.get(command, [])]) for command in COMMANDS}


@pytest.mark.parametrize(
    "texts",
    [
        {"status": "null"},
        {"status": "[1]"},
        {"status": '{"state": [1], "reason": {"a": 1}, "replicas": "x"}'},
        {"status": '{"replicas": 1' + "0" * 400 + "}"},
        {"status": "[" * 99999},
        {"findings": ["[1]"]},
        {"findings": "{}"},
        {"findings": ['{"step": 1e999}', "1" * 9999]},
    ],
)
def test_damaged_texts_do_not_end_a_command(tmp_path, texts):
    codes = run_all(write(tmp_path / "bad", **texts), write(tmp_path / "good"), tmp_path / "page.html")
    assert codes <= {cli.SUCCESS, cli.FOUND}


@pytest.mark.parametrize("family", ["layers", "variables", "step", "status"])
@pytest.mark.parametrize("schema", [float("inf"), None, 99])
def test_a_damaged_description_is_no_traceback(tmp_path, family, schema):
    def change(writer):
        writer.families[family] = writer.families[family]._replace(schema=schema)

    codes = run_all(write(tmp_path / "bad", change), write(tmp_path / "good"), tmp_path / "page.html")
    assert codes <= {cli.SUCCESS, cli.FOUND, cli.BAD_INPUT}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("detail", ["x", [[99]], [10**30] * 3, None, {}])
def test_details_of_wrong_types_do_not_end_a_command(tmp_path, detail):
    def change(writer):
        details = dict.fromkeys(("units", "variables", "sources", "replicas", "activations", "skipped"), detail)
        writer.families = {name: family._replace(details=details) for name, family in writer.families.items()}

    codes = run_all(write(tmp_path / "bad", change), write(tmp_path / "good"), tmp_path / "page.html")
    assert codes <= {cli.SUCCESS, cli.FOUND}


@pytest.mark.parametrize("error", [EOFError, RecursionError, MemoryError, TypeError, AssertionError])
def test_any_exception_of_a_command_is_one_line(tmp_path, monkeypatch, capsys, error):
    def fail(run):
        raise error

    monkeypatch.setattr(check, "check", fail)
    assert cli.main(["check", write(tmp_path)]) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert error.__name__ in line


def test_an_interrupted_command_is_no_traceback(tmp_path, monkeypatch, capsys):
    def interrupt(logdir):
        raise KeyboardInterrupt

    monkeypatch.setattr("tapescope.analysis.status.read_status", interrupt)
    assert cli.main(["status", "--watch", str(tmp_path)]) == cli.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_names_cannot_act_on_the_terminal(tmp_path, capsys):
    spec = SPEC._replace(layers=("a\x1b]0;title\x07", "b\x9b31m", "c\u202e"))
    synthetic.write(tmp_path / "\x1b[31mred", spec._replace(dying=0.9), range(0, 400, 10))
    cli.main(["check", str(tmp_path / "\x1b[31mred"), "--severity=info"])
    cli.main(["check", str(tmp_path / "\x1b[31mnone")])
    captured = capsys.readouterr()
    assert captured.out.strip()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(captured.out + captured.err)


@pytest.mark.parametrize("command", COMMANDS[:2])
def test_json_is_valid_for_a_damaged_run(tmp_path, capsys, command):
    cli.main([command, write(tmp_path, status='{"replicas": NaN}'), "--json"])
    for line in capsys.readouterr().out.splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_the_old_report_stays_when_the_new_one_fails(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("yesterday's report")
    monkeypatch.setattr("tapescope.analysis.report.render_page", lambda runs: "x" * 10 + str(1 / 0))
    assert cli.main(["report", write(tmp_path / "run"), f"--output={page}"]) == cli.BAD_INPUT
    assert page.read_text() == "yesterday's report"
    assert sorted(os.listdir(tmp_path)) == ["page.html", "run"]


def test_no_name_ends_a_script_of_the_report(tmp_path):
    names = ("<!--<script>", "</script><b>", "\ud800")
    synthetic.write(tmp_path / "run", SPEC._replace(layers=names), range(0, 100, 10))
    assert cli.main(["report", str(tmp_path / "run"), f"--output={tmp_path / 'page.html'}"]) == cli.SUCCESS
    scripts = (tmp_path / "page.html").read_text().split("Plotly.newPlot(document")[1:]
    assert len(scripts) > 5
    assert all("<" not in script.split("</script>")[0] for script in scripts)


@pytest.mark.process
@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("PYTHONIOENCODING=ascii {} 2>&1", cli.SUCCESS),
        ("{} | true; exit ${{PIPESTATUS[0]}}", cli.SUCCESS),
        ("{} >&-", cli.SUCCESS),
        ("{} 2>&-", cli.SUCCESS),
        ("{} >/dev/full", cli.BAD_INPUT),
    ],
    ids=["ascii", "closed pipe", "closed output", "closed errors", "full"],
)
def test_the_exit_code_holds_whatever_the_terminal_is(tmp_path, shell, code):
    command = f"{sys.executable} -W ignore -m tapescope.cli check {write(tmp_path / '日本')}"
    done = subprocess.run(["bash", "-c", shell.format(command)], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr, "Exception ignored" in done.stderr) == (code, False, False)
