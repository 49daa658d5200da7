"""`tapescope check`: what it prints, and its exit codes, which CI relies on."""

import json

import numpy as np
import pytest

from tapescope import cli
from tapescope.rules.finding import from_json
from tapescope.storage import event_file
from tensorboard_plugin_tapescope import metadata
from tests.instrument.rules.test_rules import LAYERS, VARIABLES, both, healthy, put

DETAILS = {
    "units": [20, 20, 20, 5],
    "activations": ["relu", "tanh", "elu", "softmax"],
    "variables": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "sources": [[], [0], [1], [2]],
    "skipped": {},
}


def write(logdir, change=None, count=20):
    """A run of made-up records."""
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
            kind = np.float64 if family == "step" else np.float32
            tensor = np.array([columns[name] for name in rows], kind)
            values.append(event_file.tensor(metadata.Family(family, tuple(rows), names, details), tensor))
        file.add(4 * t, values)
    file.close()


def check(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = cli.main(["check", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_nothing_found(tmp_path, capsys):
    write(tmp_path)
    assert check(capsys, tmp_path) == (cli.NONE, f"nothing found in 20 records of {tmp_path}\n", "")
    assert check(capsys, tmp_path, "--json") == (cli.NONE, "", "")


def test_findings_in_words_the_gravest_first(tmp_path, capsys):
    write(tmp_path, both(put("flow_gate", 1, -3.5), put("first_nonfinite_forward", None, 2, since=19)))
    code, out, _ = check(capsys, tmp_path)
    assert code == cli.FOUND
    assert out.startswith("error: non_finite in hidden_3, step 76\n")
    assert "\nwarning: vanishing in hidden_2, step 0\n  The tanh layer `hidden_2` makes the gradient 2," in out


def test_findings_as_json(tmp_path, capsys):
    write(tmp_path, put("flow_gate", 1, -3.5))
    code, out, _ = check(capsys, tmp_path, "--json")
    (found,) = map(json.loads, out.splitlines())
    assert code == cli.FOUND
    assert (from_json(found).rule, from_json(found).layer) == ("vanishing", "hidden_2")


def test_severity_is_the_mildest_that_counts(tmp_path, capsys):
    write(tmp_path, put("flow_gate", 1, -3.5))
    assert check(capsys, tmp_path, "--severity=error")[0] == cli.NONE
    assert check(capsys, tmp_path, "--severity=warning")[0] == cli.FOUND
    write(tmp_path / "noted", put("units_dead", 0, 9.0, since=8))
    assert check(capsys, tmp_path / "noted")[0] == cli.NONE
    assert check(capsys, tmp_path / "noted", "--severity=info")[0] == cli.FOUND


def begun(path):
    """A run that was killed before its first record."""
    file = event_file.EventFile(path)
    file.add(0, [event_file.text(metadata.Family("status"), '{"state": "training"}')])
    file.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "has no event file"),
        (lambda path: [write(path / name, count=1) for name in "ab"], "is no run but holds 2; name one of them: "),
        (lambda path: event_file.EventFile(path).close(), "none with tapescope's records"),
        (begun, "has no record of a step"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, capsys, make, says):
    make(tmp_path)
    code, out, error = check(capsys, tmp_path)
    assert (code, out) == (cli.BAD_INPUT, "")
    assert error.startswith("tapescope: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_wrong_severity_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        check(capsys, "x", "--severity=fatal")
    assert stopped.value.code == cli.BAD_INPUT
    assert "invalid choice: 'fatal'" in capsys.readouterr().err
