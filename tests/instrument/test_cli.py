"""The command line: what it prints, and its exit codes, on which CI relies."""

import json
import re

import numpy as np
import pytest
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec

import tapescope
from tapescope import cli
from tapescope.rules.finding import from_json
from tapescope.storage import event_file, event_values
from tensorboard_plugin_tapescope import metadata
from tests.instrument.rules.records import DETAILS, LAYERS, VARIABLES, both, healthy, put

VANISHING = put("flow_gate", 1, -3.5)


def write(logdir, change=None, count=20):
    """Write a run of made-up records; `change(t, columns)` alters each in place."""
    file = event_file.EventFile(logdir)
    for t in range(count):
        columns = healthy(t)
        if change:
            change(t, columns)
        values = []
        for family, known, names, details in (
            ("variables", metadata.VARIABLE_COLUMNS, VARIABLES, {}),
            ("layers", metadata.LAYER_COLUMNS, LAYERS, DETAILS),
            ("step", metadata.STEP_COLUMNS, (), {}),
        ):
            rows = [c.name for c in known if c.name in columns]
            dtype = np.float64 if family == "step" else np.float32
            tensor = np.array([columns[name] for name in rows], dtype)
            values.append(event_values.tensor(metadata.Family(family, tuple(rows), names, details), tensor))
        file.add(4 * t, values)
    file.close()


def test_check_without_findings(tmp_path, run_cli):
    write(tmp_path)
    assert run_cli("check", tmp_path) == (cli.SUCCESS, f"no findings in 20 records of {tmp_path}\n", "")


def test_one_record_is_singular(tmp_path, run_cli):
    write(tmp_path, count=1)
    assert run_cli("check", tmp_path) == (cli.SUCCESS, f"no findings in 1 record of {tmp_path}\n", "")


def test_check_counts_the_records_that_could_not_be_written(tmp_path, run_cli):
    write(tmp_path)
    file = event_file.EventFile(tmp_path)
    file.add(80, [event_values.text(metadata.Family("status"), json.dumps({"state": "ended", "lost": 58}))])
    file.close()
    assert run_cli("check", tmp_path)[1] == f"no findings in 20 records of {tmp_path}; 58 more could not be written\n"


def test_check_without_findings_prints_no_json(tmp_path, run_cli):
    write(tmp_path)
    assert run_cli("check", tmp_path, "--json") == (cli.SUCCESS, "", "")


def test_check_prints_findings_with_the_most_severe_first(tmp_path, run_cli):
    write(tmp_path, both(VANISHING, put("first_nonfinite_forward", None, 2, since=19)))
    code, out, _ = run_cli("check", tmp_path)
    assert code == cli.FOUND
    assert out.startswith("error: non_finite in hidden_3, step 76\n")
    assert "\nwarning: vanishing in hidden_2, step 0\n  The tanh layer `hidden_2` " in out


def test_check_prints_findings_as_json(tmp_path, run_cli):
    write(tmp_path, VANISHING)
    code, out, _ = run_cli("check", tmp_path, "--json")
    (line,) = out.splitlines()
    finding = from_json(json.loads(line))
    assert code == cli.FOUND
    assert finding.rule == "vanishing"
    assert finding.layer == "hidden_2"


@pytest.mark.parametrize(
    ("change", "severity", "code"),
    [
        (VANISHING, "error", cli.SUCCESS),
        (VANISHING, "warning", cli.FOUND),
        (put("units_dead", 0, 9.0, since=8), "warning", cli.SUCCESS),
        (put("units_dead", 0, 9.0, since=8), "info", cli.FOUND),
    ],
)
def test_check_reports_findings_from_the_given_severity_up(tmp_path, run_cli, change, severity, code):
    write(tmp_path, change)
    assert run_cli("check", tmp_path, f"--severity={severity}")[0] == code


def test_check_reports_warnings_by_default(tmp_path, run_cli):
    write(tmp_path, put("units_dead", 0, 9.0, since=8))
    assert run_cli("check", tmp_path)[0] == cli.SUCCESS


def write_begun_run(path):
    file = event_file.EventFile(path)
    file.add(0, [event_values.text(metadata.Family("status"), '{"state": "training"}')])
    file.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "has no event file"),
        (lambda path: [write(path / name, count=1) for name in "ab"], "holds 2: choose one of them: "),
        (lambda path: event_file.EventFile(path).close(), "none with tapescope's records"),
        (write_begun_run, "RUN must have a record of a step; "),
    ],
    ids=["empty", "several runs", "no record of ours", "no step"],
)
def test_a_bad_run_is_one_line(tmp_path, run_cli, make, message):
    make(tmp_path)
    code, out, error = run_cli("check", tmp_path)
    assert (code, out) == (cli.BAD_INPUT, "")
    assert error.startswith("tapescope: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_severity_is_refused(run_cli, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_cli("check", "x", "--severity=fatal")
    assert stopped.value.code == cli.BAD_INPUT
    assert "invalid choice: 'fatal'" in capsys.readouterr().err


@pytest.fixture
def two_runs(tmp_path):
    """Write runs of one and of four replicas."""
    synthetic.write(tmp_path / "one", Spec(depth=2, units=2), range(0, 50, 10))
    synthetic.write(tmp_path / "four", Spec(depth=2, units=2, replicas=4, seed=1), range(0, 50, 10))
    return tmp_path / "one", tmp_path / "four"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["check", "runs", "--sevrity=info"],
            "unrecognized arguments: --sevrity=info \\(did you mean --severity\\?\\): see tapescope check --help",
        ),
        (["chek", "runs"], "invalid choice: 'chek' .*did you mean check\\?\\): see tapescope --help"),
        (["check"], "the following arguments are required: RUN: see tapescope check --help"),
        (["status", "runs", "--every=nan"], "must be a number of seconds from 0.1 to 86400; got nan: see "),
        (["status", "runs", "--every=often"], "must be a number of seconds from 0.1 to 86400; got often: see "),
    ],
)
def test_a_bad_argument_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    out, error = capsys.readouterr()
    assert (raised.value.code, out) == (cli.BAD_INPUT, "")
    assert re.fullmatch(rf"tapescope: .*{message}.*\n", error)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"tapescope {tapescope.__version__}\n"


@pytest.mark.parametrize("output", ["", ".", "missing/report.html"])
@pytest.mark.parametrize("command", ["report", "coordinates"])
def test_a_page_that_cannot_be_written_is_refused_first(two_runs, tmp_path, monkeypatch, run_cli, command, output):
    monkeypatch.chdir(tmp_path)
    arguments = [command, two_runs[0]] if command == "report" else [command, "--steps=1000000"]
    code, _, error = run_cli(*arguments, f"--output={output}")
    assert code == cli.BAD_INPUT
    assert error == f"tapescope: --output must be a file in a directory that exists; got {output!r}\n"


def test_compare_of_a_run_with_itself_is_equal(two_runs, run_cli):
    code, out, _ = run_cli("compare", two_runs[0], two_runs[0])
    assert code == cli.SUCCESS
    assert "equal within 0.001" in out


def test_compare_of_different_runs_is_found(two_runs, run_cli):
    assert run_cli("compare", *two_runs)[0] == cli.FOUND


def test_compare_names_few_of_many_unmatched_layers(tmp_path, run_cli):
    synthetic.write(tmp_path / "deep", Spec(depth=100, histograms=False), range(1))
    synthetic.write(tmp_path / "flat", Spec(depth=2, histograms=False), range(1))
    _, out, _ = run_cli("compare", tmp_path / "deep", tmp_path / "flat")
    assert re.match("1 record compared, .*\nonly in one of the two runs: ([^,]+, ){7}[^,]+ and [0-9]+ more\n", out)


def test_compare_prints_json(two_runs, run_cli):
    _, out, _ = run_cli("compare", *two_runs, "--json")
    assert json.loads(out)["equal"] is False


def test_scaling_prints_a_row_for_each_run(two_runs, run_cli):
    code, out, _ = run_cli("scaling", *two_runs)
    header, first, second, verdict = out.splitlines()
    assert code == cli.SUCCESS
    assert header.split()[0] == "replicas"
    assert first.split()[0] == "1"
    assert second.split()[0] == "4"
    assert verdict.startswith("Does a larger batch pay? ")


def test_a_noise_scale_that_is_unknown_is_a_question_mark(two_runs, run_cli):
    _, out, _ = run_cli("scaling", two_runs[0])
    assert out.splitlines()[1].split()[-2] == "?"


def test_scaling_prints_json_without_nan(two_runs, run_cli):
    _, out, _ = run_cli("scaling", *two_runs, "--json")
    first, second = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert first["noise_scale"] is None
    assert second["replicas"] == 4


def test_scaling_of_one_record_is_one_line(tmp_path, run_cli):
    synthetic.write(tmp_path, Spec(depth=2, units=2), range(1))
    code, _, error = run_cli("scaling", tmp_path)
    assert code == cli.BAD_INPUT
    assert "has fewer than two records; at least two are needed to compute the step time" in error


def test_report_writes_a_page_with_the_drawing_code(two_runs, tmp_path, run_cli):
    page = tmp_path / "page.html"
    code, out, _ = run_cli("report", *two_runs, f"--output={page}")
    assert code == cli.SUCCESS
    assert out == f"wrote {page}\n"
    assert page.stat().st_size > 1e6


def stuck_and_vanishing(t, columns):
    """Let the first weights be ten times too small, and the gradient vanish by it."""
    VANISHING(t, columns)
    columns["flow_weight"][2] = -1.6


def test_a_cause_is_printed_before_what_follows_from_it(tmp_path, run_cli):
    write(tmp_path, stuck_and_vanishing)
    _, text, _ = run_cli("check", tmp_path)
    assert text.index("poor_initialization") < text.index("vanishing")
    assert "Probably follows from poor_initialization" in text


def test_json_says_what_a_finding_follows_from_and_where_it_is_explained(tmp_path, run_cli):
    write(tmp_path, stuck_and_vanishing)
    found = {line["rule"]: line for line in map(json.loads, run_cli("check", tmp_path, "--json")[1].splitlines())}
    assert set(found["vanishing"]) == {
        *("rule", "version", "severity", "layer", "step", "message", "evidence", "advice", "follows_from", "link")
    }
    assert found["vanishing"]["follows_from"] == "poor_initialization"
    assert found["poor_initialization"]["follows_from"] is None
    assert found["vanishing"]["link"] == "docs/rules.md#vanishing"
