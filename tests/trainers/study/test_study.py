"""The study: its statistics against closed forms, its verdicts by their rules, resuming, and the quick form."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tapescope_trainers.study import claims, command, grid, measures, shortcut, table, trial, verdicts
from tapescope_trainers.study.grid import Setup
from tapescope_trainers.study.trial import Trial
from tapescope_trainers.study.verdicts import DEPENDS, FAILS, HOLDS, REFUTED, SUPPORTED, UNDECIDED, UNTESTED, Interval

SETUP, OTHER = Setup("relu"), Setup("sigmoid")
SMALL = Setup("sigmoid-relu", width=8)


@pytest.mark.parametrize(
    ("p", "freedom", "expected"),
    [  # one degree of freedom is Cauchy's tan(pi (p - 1/2)), two have 2 c / sqrt(1 - c^2) ..., the others from tables
        (0.975, 1, np.tan(np.pi * 0.475)),
        (0.975, 2, 0.95 * np.sqrt(2 / (1 - 0.95**2))),
        (0.975, 4, 2.776445),
        (0.975, 9, 2.262157),
        (0.995, 4, 4.604095),
        (0.975, 10_000, 1.960201),
        (0.5, 7, 0.0),
    ],
)
def test_quantiles_of_students_t(p, freedom, expected):
    assert verdicts.t_quantile(p, freedom) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert verdicts.t_quantile(1 - p, freedom) == pytest.approx(-expected, rel=1e-5, abs=1e-9)


def test_an_interval_by_hand():
    """Mean 3, standard deviation sqrt(2.5), five values."""
    mean, low, high = verdicts.interval([1, 2, 3, 4, 5])
    half = 2.776445 * np.sqrt(2.5 / 5)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), rel=1e-5)
    assert verdicts.interval([7, 7, 7]) == (7, 7, 7)
    with pytest.raises(ValueError, match="--seeds=2 or more"):
        verdicts.interval([1])


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(1.0, 2.0, [2000, 5])
    covered = sum(low <= 1 <= high for _, low, high in map(verdicts.interval, draws.tolist())) / len(draws)
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "says"),
    [
        (0.6, 0.8, 0.5, None, HOLDS),
        (0.2, 0.4, 0.5, None, FAILS),
        (0.4, 0.6, 0.5, None, UNDECIDED),
        (0.5, 0.6, 0.5, None, UNDECIDED),
        (-3.0, -2.0, None, -1, HOLDS),
        (-0.5, 0.5, None, -1, FAILS),
        (-1.5, -0.5, None, -1, UNDECIDED),
        (np.nan, np.nan, 0.5, None, UNDECIDED),
    ],
)
def test_the_side_of_the_threshold(low, high, above, below, says):
    assert verdicts.side(Interval((low + high) / 2, low, high), above, below) == says


def test_a_test_has_one_threshold():
    for both in ((None, None), (1.0, 2.0)):
        with pytest.raises(ValueError, match="only one of them"):
            verdicts.side(Interval(0, 0, 0), *both)


def outcomes(*says: str, part: str = "", decides: bool = True) -> list[verdicts.Outcome]:
    test = verdicts.Test("", "", measures.accuracy, SETUP, above=0, part=part, decides=decides)
    return [
        verdicts.Outcome(test._replace(where=f"case {n}"), Interval(0, 0, 0), 5, word) for n, word in enumerate(says)
    ]


@pytest.mark.parametrize(
    ("says", "word", "on_what"),
    [
        ((HOLDS, HOLDS), SUPPORTED, ""),
        ((FAILS, FAILS), REFUTED, ""),
        ((HOLDS, FAILS, HOLDS), DEPENDS, "holds: case 0 · case 2; fails: case 1"),
        ((FAILS, UNDECIDED), DEPENDS, "fails: case 0; undecided: case 1"),
        ((UNDECIDED,), DEPENDS, "undecided: case 0"),
    ],
)
def test_the_verdict_by_its_rule(says, word, on_what):
    given = outcomes(*says)
    assert verdicts.verdict(given) == word
    assert verdicts.parts(given) == [verdicts.Part("", word, on_what, tuple(given))]


@pytest.mark.parametrize(
    ("one", "two", "word"),
    [
        ((HOLDS, HOLDS), (HOLDS,), SUPPORTED),
        ((FAILS,), (FAILS, FAILS), REFUTED),
        ((HOLDS,), (FAILS,), DEPENDS),
        ((HOLDS, FAILS), (FAILS,), DEPENDS),
    ],
)
def test_the_verdict_on_a_claim_of_two_parts(one, two, word):
    assert verdicts.verdict([*outcomes(*one, part="1"), *outcomes(*two, part="2")]) == word


def test_what_does_not_decide_is_no_part_of_the_verdict():
    assert verdicts.verdict([*outcomes(HOLDS), *outcomes(FAILS, decides=False)]) == SUPPORTED
    assert verdicts.verdict(outcomes(FAILS, decides=False)) == UNTESTED


def accuracies(*values: float) -> list[Trial]:
    return [Trial(accuracy, 0.5, None) for accuracy in values]


def test_effects_are_paired_by_seed():
    """The seeds differ by tens of points, the set-ups by one: only the pairs show that."""
    test = verdicts.Test("x", "accuracy", measures.accuracy, SETUP, OTHER, above=0.5)
    trials = {SETUP: accuracies(51, 71, 91.1), OTHER: accuracies(50, 70, 90)}
    found = verdicts.outcome(test, trials)
    assert found.effect.mean == pytest.approx(31 / 30)
    assert found.says == HOLDS
    assert verdicts.outcome(test._replace(against=None, above=50), trials).says == UNDECIDED


def test_the_page_follows_from_the_numbers():
    """The same tests with the numbers exchanged give the opposite page."""
    test = verdicts.Test("here", "gap", measures.accuracy, SETUP, OTHER, above=1, wrong="It is not so.")
    claim = verdicts.Claim("z", "One is better", (test,))
    good, bad = accuracies(90, 91, 92), accuracies(80, 81, 82.5)
    page = table.markdown([claim], {SETUP: good, OTHER: bad}, None, 10)
    assert "| (z) One is better | gap (here) | 9.83 [9.12, 10.55], claimed > 1 | **supported** |" in page
    assert "It is not so." not in page
    page = table.markdown([claim], {SETUP: bad, OTHER: good}, shortcut.Shortcut(1e-8, 0.9), 10)
    assert "-9.83 [-10.55, -9.12], claimed > 1 | **refuted** |" in page
    assert "- (z) It is not so. *Measured:* here: -9.83 [-10.55, -9.12]." in page
    assert "90 % away from the gradient through the sigmoid" in page


def test_every_claim_has_tests_that_can_be_trained():
    assert [claim.letter for claim in claims.CLAIMS] == list("abcdefghi")
    setups = claims.setups(claims.CLAIMS)
    assert len({s.name for s in setups}) == len(setups)
    for claim in claims.CLAIMS:
        assert any(test.decides for test in claim.tests)
        wheres = [(test.part, test.where) for test in claim.tests if test.decides]
        assert len(set(wheres)) == len(wheres), f"({claim.letter}) says on what it depends: conditions need own names"
        for test in claim.tests:
            assert (test.above is None) != (test.below is None)
    axes = ("repeat", "width", "initializer", "learning_rate", "optimizer", "gain", "input_scale")
    assert all(len({getattr(s, axis) for s in setups}) > 1 for axis in axes)
    assert set(claims.setups(claims.QUICK)) == claims.QUICK_SETUPS <= set(setups)
    assert all(any(test.decides for test in claim.tests) for claim in claims.QUICK)


def test_a_set_up_is_the_network_that_it_says():
    model = grid.build(Setup("relu-sigmoid", 2, width=5, gain=3.0), (8, 8), 10)
    hidden, output = model.layers[1:-1], model.layers[-1]
    assert [layer.activation.__name__ for layer in hidden] == ["relu", "sigmoid"] * 2
    assert output.activation.__name__ == "softmax"
    assert [layer.units for layer in hidden] == [5] * 4
    limits = [np.sqrt(6 / sum(layer.kernel.shape)) for layer in model.layers[1:]]
    largest = [
        np.abs(layer.kernel.numpy()).max() / limit for layer, limit in zip(model.layers[1:], limits, strict=True)
    ]
    assert all(2 < x <= 3 for x in largest[:-1])  # Glorot's limit, three times
    assert largest[-1] <= 1


def test_resuming_trains_only_what_is_missing(tmp_path):
    logdir, ticks = str(tmp_path), []
    trial.train(SMALL, [0, 1], 48, logdir, lambda: ticks.append(1))
    assert len(ticks) == 2
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    trial.train(SMALL, [0, 1], 48, logdir, lambda: ticks.append(1))
    assert len(ticks) == 2
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}

    whole = trial.load(SMALL, 1, 48, logdir)
    os.remove(os.path.join(trial.path(SMALL, 1, logdir), trial.DONE))  # as if it had been interrupted
    with pytest.raises(ValueError, match="is not complete"):
        trial.load(SMALL, 1, 48, logdir)
    trial.train(SMALL, [0, 1], 48, logdir, lambda: ticks.append(1))
    again = trial.load(SMALL, 1, 48, logdir)
    assert len(ticks) == 3
    assert len(list((tmp_path / SMALL.name / "seed-1").glob("*.tfevents.*"))) == 1
    # Alone or second of two in one program, a seed gives the same run.
    assert again.accuracy == whole.accuracy
    np.testing.assert_allclose(again.run["gradient_norm"], whole.run["gradient_norm"], rtol=1e-4)
    assert trial.completed(SMALL, 1, 49, logdir) is None  # of another length


def test_measures_of_a_run(tmp_path):
    """Shares from the records against the network itself, evaluated where the records end."""
    steps = 48
    trial.train(SMALL, [3], steps, str(tmp_path))
    t = trial.load(SMALL, 3, steps, str(tmp_path))
    assert t.rows("start").sum() == trial.FIRST_STEPS
    assert t.rows("end").sum() == trial.LAST_STEPS
    assert t.layers("relu") == [1]
    whole = t.between(0.0, 2.0, 0, "start")
    assert whole == 1.0  # all that a sigmoid gives
    low, high = t.between(0.0, 0.5, 0, "start"), t.between(0.5, 2.0, 0, "start")
    assert low + high == pytest.approx(1)
    mean = t.mean("activation_mean", 0, "start")
    assert 0.5 * high <= mean <= 0.5 * low + high
    states = t.run.units("hidden_2")[1]
    from tensorboard_plugin_tapescope.metadata import UNIT_STATES

    assert t.dead([1], "start") == (states[0] == UNIT_STATES.index("dead")).mean()
    assert t.dead([1], "end") == (states[-1] == UNIT_STATES.index("dead")).mean()
    delta = t.run["delta_norm"][t.rows("end")]
    assert measures.backward_gain("end")(t) == pytest.approx(np.log10(delta[:, 0] / delta[:, 1]).mean())
    ratio = t.run["update_ratio"][t.rows("end")].mean(0)
    names = dict(zip(t.run.variables, ratio, strict=True))
    expected = np.log10(names["hidden_1/kernel"] / names["hidden_2/kernel"])
    assert measures.learning(t) == pytest.approx(expected, rel=1e-5)


def test_what_keras_trains_in_place_of_example_1():
    found = shortcut.measure()
    assert found.from_softmax < 1e-4
    assert found.from_sigmoid > 0.1


@pytest.mark.parametrize(
    ("visible", "workers", "dealt"),
    [("", 2, [None, None]), ("3", 2, [None, None]), ("0,2", 3, ["0", "2", "0"]), ("-1", 1, [None])],
)
def test_devices_are_dealt_to_the_workers(monkeypatch, visible, workers, dealt):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert command._devices(workers) == dealt


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=1", "seeds"),
        ("--workers=0", "workers"),
        ("--sedes=3", "sedes"),
        ("runs", "unexpected argument 'runs'"),
    ],
)
def test_bad_input_is_one_line(flag, message, capsys):
    with pytest.raises(SystemExit) as exit:
        command.main(["tapescope-study", flag])
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert error.startswith("tapescope-study: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_quick_form_stopped_and_resumed(tmp_path):
    """Stopped after the first run it says so and keeps what is complete; the same command goes on to the table."""
    program = [sys.executable, "-m", "tapescope_trainers.study", "--quick", "--workers=2", f"--logdir={tmp_path}"]

    def done() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in tmp_path.glob(f"*/*/{trial.DONE}")}

    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as child:
        until = time.monotonic() + 120
        while not done() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        child.terminate()
        _, error = child.communicate(timeout=60)
    assert child.returncode == 1, error
    assert "ended by SIGTERM; the same command goes on from here" in error
    assert not (tmp_path / "study.md").exists()
    before, total = done(), 2 * len(claims.setups(claims.QUICK))
    assert 0 < len(before) < total

    second = subprocess.run(program, capture_output=True, text=True, timeout=200)
    assert second.returncode == 0, second.stderr
    assert f"{total - len(before)}/{total - len(before)} runs" in second.stderr
    after = done()
    assert len(after) == total
    assert before.items() <= after.items()
    assert all("validation/accuracy" in json.loads(p.read_text())["metrics"] for p in after)
    page = (tmp_path / "study.md").read_text()
    rows = re.findall(r"^\| \((\w)\) .* \| \*\*(supported|refuted|depends)\*\*", page, re.MULTILINE)
    assert [letter for letter, _ in rows] == list("abcdefghi")
    assert "decides nothing" in page
    assert "does not train the network that it describes" in page

    with pytest.raises(SystemExit) as exit:  # all is there: only the table is made
        command.main(["tapescope-study", "--quick", f"--logdir={tmp_path}", f"--table={tmp_path}/again.md"])
    assert exit.value.code == 0
    assert (tmp_path / "again.md").read_text() == page
    assert done() == after
