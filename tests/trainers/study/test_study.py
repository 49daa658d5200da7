"""The study: its statistics against closed forms, its verdicts by their rules, resuming, and the table."""

import os
import queue
import re
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

import tapescope
from tapescope_trainers.study import claims, command, grid, measures, shortcut, table, trial, verdicts
from tapescope_trainers.study.grid import Setup
from tapescope_trainers.study.trial import Trial
from tapescope_trainers.study.verdicts import DEPENDS, FAILS, HOLDS, REFUTED, SUPPORTED, UNDECIDED, UNTESTED, Interval
from tensorboard_plugin_tapescope.metadata import UNIT_STATES

SETUP = Setup("relu")
BASELINE = Setup("sigmoid")
SMALL = Setup("sigmoid-relu", width=8)
STEPS = 48


def test_interval_by_hand():
    """Mean 3, standard deviation sqrt(2.5), five values; the quantile is from a table."""
    half_width = 2.776445 * np.sqrt(2.5 / 5)
    expected = Interval(3, 3 - half_width, 3 + half_width)
    assert verdicts.interval([1, 2, 3, 4, 5]) == pytest.approx(expected, rel=1e-5)


def test_interval_of_equal_values_is_a_point():
    assert verdicts.interval([7, 7, 7]) == (7, 7, 7)


def test_interval_needs_two_values():
    with pytest.raises(ValueError, match=r"two or more elements; got 1: use --seeds=2 or more"):
        verdicts.interval([1])


def test_interval_covers_the_true_mean_at_its_level():
    draws = np.random.default_rng(0).normal(1.0, 2.0, [2000, 5])
    covered = sum(low <= 1 <= high for _, low, high in map(verdicts.interval, draws.tolist())) / len(draws)
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "result"),
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
def test_interval_compared_with_a_threshold(low, high, above, below, result):
    assert verdicts.compare(Interval((low + high) / 2, low, high), above, below) == result


@pytest.mark.parametrize("thresholds", [(None, None), (1.0, 2.0)])
def test_exactly_one_threshold_is_required(thresholds):
    with pytest.raises(ValueError, match="exactly one of `above` and `below`"):
        verdicts.compare(Interval(0, 0, 0), *thresholds)


def outcomes(*results: str, part: str = "", decides: bool = True) -> list[verdicts.Outcome]:
    """Return outcomes with these results, under conditions `case 0`, `case 1`, ..."""
    test = verdicts.Test(
        condition="", quantity="", measure=measures.accuracy, setup=SETUP, above=0, part=part, decides=decides
    )
    return [
        verdicts.Outcome(test._replace(condition=f"case {n}"), Interval(0, 0, 0), result)
        for n, result in enumerate(results)
    ]


@pytest.mark.parametrize(
    ("results", "verdict", "conditions"),
    [
        ((HOLDS, HOLDS), SUPPORTED, ""),
        ((FAILS, FAILS), REFUTED, ""),
        ((HOLDS, FAILS, HOLDS), DEPENDS, "holds: case 0 · case 2; fails: case 1"),
        ((FAILS, UNDECIDED), DEPENDS, "fails: case 0; undecided: case 1"),
        ((UNDECIDED,), DEPENDS, "undecided: case 0"),
    ],
)
def test_verdict_on_a_claim_of_one_part(results, verdict, conditions):
    tested = outcomes(*results)
    assert verdicts.verdict(tested) == verdict
    assert verdicts.parts(tested) == [verdicts.Part("", verdict, conditions, tuple(tested))]


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ((HOLDS, HOLDS), (HOLDS,), SUPPORTED),
        ((FAILS,), (FAILS, FAILS), REFUTED),
        ((HOLDS,), (FAILS,), DEPENDS),
        ((HOLDS, FAILS), (FAILS,), DEPENDS),
    ],
)
def test_verdict_on_a_claim_of_two_parts(first, second, verdict):
    assert verdicts.verdict([*outcomes(*first, part="1"), *outcomes(*second, part="2")]) == verdict


def test_a_test_that_does_not_decide_leaves_the_verdict():
    assert verdicts.verdict([*outcomes(HOLDS), *outcomes(FAILS, decides=False)]) == SUPPORTED


def test_a_claim_without_deciding_tests_is_untested():
    assert verdicts.verdict(outcomes(FAILS, decides=False)) == UNTESTED


def accuracies(*values: float) -> list[Trial]:
    return [Trial(accuracy, 0.5, None) for accuracy in values]


def test_effects_are_paired_by_seed():
    """The seeds differ by tens of points and the set-ups by one, which only the pairs show."""
    trials = {SETUP: accuracies(51, 71, 91.1), BASELINE: accuracies(50, 70, 90)}
    paired = verdicts.Test(
        condition="", quantity="", measure=measures.accuracy, setup=SETUP, baseline=BASELINE, above=0.5
    )
    outcome = verdicts.run_test(paired, trials)
    assert outcome.effect.mean == pytest.approx(31 / 30)
    assert outcome.result == HOLDS
    assert verdicts.run_test(paired._replace(baseline=None, above=50), trials).result == UNDECIDED


GOOD = accuracies(90, 91, 92)
BAD = accuracies(80, 81, 82.5)


def page(trials: dict[Setup, list[Trial]], keras_shortcut: shortcut.Shortcut | None = None) -> str:
    """Return the page of one claim with one test."""
    test = verdicts.Test(
        condition="here",
        quantity="gap",
        measure=measures.accuracy,
        setup=SETUP,
        baseline=BASELINE,
        above=1,
        correction="It is not so.",
    )
    return table.markdown([verdicts.Claim("z", "One is better", (test,))], trials, keras_shortcut, 10)


def test_page_of_a_supported_claim():
    text = page({SETUP: GOOD, BASELINE: BAD})
    assert "| (z) One is better | gap (here) | 9.83 [9.12, 10.55], claimed > 1 | **supported** |" in text
    assert "It is not so." not in text


def test_page_of_a_refuted_claim_has_the_correction():
    text = page({SETUP: BAD, BASELINE: GOOD})
    assert "-9.83 [-10.55, -9.12], claimed > 1 | **refuted** |" in text
    assert "- (z) It is not so. *Measured:* here: -9.83 [-10.55, -9.12]." in text


def test_page_reports_the_keras_shortcut():
    text = page({SETUP: GOOD, BASELINE: BAD}, shortcut.Shortcut(from_softmax=1e-8, from_sigmoid=0.9))
    assert "90 % away from the gradient through the sigmoid" in text


def test_claims_are_a_to_i():
    assert [claim.letter for claim in claims.CLAIMS] == list("abcdefghi")


@pytest.mark.parametrize("tested", [claims.CLAIMS, claims.QUICK], ids=["all", "quick"])
def test_every_claim_has_a_deciding_test(tested):
    assert [claim.letter for claim in tested if any(test.decides for test in claim.tests)] == list("abcdefghi")


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.letter)
def test_deciding_conditions_of_a_claim_have_different_names(claim):
    conditions = [(test.part, test.condition) for test in claim.tests if test.decides]
    assert len(set(conditions)) == len(conditions)


def test_every_test_has_one_threshold():
    tests = [test for claim in claims.CLAIMS for test in claim.tests]
    assert [test for test in tests if (test.above is None) == (test.below is None)] == []


def test_setups_have_different_names():
    setups = claims.setups(claims.CLAIMS)
    assert len({setup.name for setup in setups}) == len(setups)


@pytest.mark.parametrize(
    "axis", ["repeat", "width", "initializer", "learning_rate", "optimizer", "gain", "input_scale"]
)
def test_setups_vary_along(axis):
    assert len({getattr(setup, axis) for setup in claims.setups(claims.CLAIMS)}) > 1


def test_quick_setups_are_a_part_of_all():
    assert set(claims.setups(claims.QUICK)) == claims.QUICK_SETUPS
    assert set(claims.setups(claims.CLAIMS)) >= claims.QUICK_SETUPS


def test_a_setup_builds_its_layers():
    model = grid.build(Setup("relu-sigmoid", 2, width=5), (8, 8), 10)
    assert [layer.activation.__name__ for layer in model.layers[1:]] == ["relu", "sigmoid"] * 2 + ["softmax"]
    assert [layer.units for layer in model.layers[1:]] == [5, 5, 5, 5, 10]


def test_a_setup_scales_the_weights_of_hidden_layers():
    model = grid.build(Setup("relu-sigmoid", 2, width=5, gain=3.0), (8, 8), 10)
    glorot_limits = [np.sqrt(6 / sum(layer.kernel.shape)) for layer in model.layers[1:]]
    largest = [np.abs(layer.kernel.numpy()).max() for layer in model.layers[1:]]
    *hidden, output = np.divide(largest, glorot_limits)
    assert np.min(hidden) > 2
    assert np.max(hidden) <= 3
    assert output <= 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train one small set-up with the seeds 0 and 1, and return the directory."""
    logdir = str(tmp_path_factory.mktemp("study"))
    trial.train(SMALL, [0, 1], STEPS, logdir)
    return logdir


def files(logdir: str) -> dict[Path, int]:
    """Return all files with their modification times."""
    return {path: path.stat().st_mtime_ns for path in Path(logdir).rglob("*") if path.is_file()}


@pytest.mark.slow
def test_complete_runs_are_not_trained_again(trained):
    before = files(trained)
    runs: list[int] = []
    trial.train(SMALL, [0, 1], STEPS, trained, on_run=lambda: runs.append(1))
    assert runs == []
    assert files(trained) == before


@pytest.mark.slow
def test_an_interrupted_run_is_trained_again_with_the_same_result(trained):
    """Alone, or second of two in one program, a seed gives the same run."""
    before = trial.load(SMALL, 1, STEPS, trained)
    os.remove(os.path.join(trial.path(SMALL, 1, trained), trial.DONE))
    with pytest.raises(ValueError, match="is not complete"):
        trial.load(SMALL, 1, STEPS, trained)
    runs: list[int] = []
    trial.train(SMALL, [0, 1], STEPS, trained, on_run=lambda: runs.append(1))
    after = trial.load(SMALL, 1, STEPS, trained)
    assert runs == [1]
    assert len(list(Path(trial.path(SMALL, 1, trained)).glob("*.tfevents.*"))) == 1
    assert after.accuracy == before.accuracy
    np.testing.assert_allclose(after.run["gradient_norm"], before.run["gradient_norm"], rtol=1e-4)


def test_a_run_of_another_length_is_not_complete(trained):
    assert trial.read_metrics(SMALL, 0, STEPS + 1, trained) is None


@pytest.fixture
def one_trial(trained):
    return trial.load(SMALL, 0, STEPS, trained)


def test_phases_of_a_trial(one_trial):
    assert one_trial.rows("start").sum() == trial.FIRST_STEPS
    assert one_trial.rows("end").sum() == trial.LAST_STEPS


def test_layers_of_a_trial_by_activation(one_trial):
    assert one_trial.layers("relu") == [1]


def test_shares_of_outputs_add_up(one_trial):
    """All outputs of a sigmoid are between 0 and 1; the mean lies between the bounds that two shares give."""
    low = one_trial.share_between(0.0, 0.5, 0, "start")
    high = one_trial.share_between(0.5, 2.0, 0, "start")
    assert one_trial.share_between(0.0, 2.0, 0, "start") == 1.0
    assert low + high == pytest.approx(1)
    assert 0.5 * high <= one_trial.mean("activation_mean", 0, "start") <= 0.5 * low + high


@pytest.mark.parametrize(("phase", "window"), [("start", 0), ("end", -1)])
def test_dead_share_is_that_of_the_unit_states(one_trial, phase, window):
    states = one_trial.run.units("hidden_2")[1]
    assert one_trial.dead_share([1], phase) == (states[window] == UNIT_STATES.index("dead")).mean()


def test_backward_gain_of_two_layers(one_trial):
    delta = one_trial.run["delta_norm"][one_trial.rows("end")]
    assert measures.backward_gain("end")(one_trial) == pytest.approx(np.log10(delta[:, 0] / delta[:, 1]).mean())


def test_relative_update_of_two_layers(one_trial):
    ratio = one_trial.run["update_ratio"][one_trial.rows("end")].mean(0)
    by_name = dict(zip(one_trial.run.variables, ratio, strict=True))
    expected = np.log10(by_name["hidden_1/kernel"] / by_name["hidden_2/kernel"])
    assert measures.relative_update(one_trial) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_keras_trains_a_softmax_in_place_of_example_1():
    distances = shortcut.measure()
    assert distances.from_softmax < 1e-4
    assert distances.from_sigmoid > 0.1


@pytest.mark.parametrize(
    ("visible", "workers", "assigned"),
    [("", 2, [None, None]), ("3", 2, [None, None]), ("0,2", 3, ["0", "2", "0"]), ("-1", 1, [None])],
)
def test_devices_are_assigned_to_workers_in_turn(monkeypatch, visible, workers, assigned):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert command._assign_devices(workers) == assigned


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=1", "flag --seeds=1: must be an integer in the range [2, 1000]"),
        ("--seeds=nan", "flag --seeds=nan: must be an integer in the range [2, 1000]"),
        ("--workers=0", "flag --workers=0: must be an integer in the range [1, 256]"),
        ("--quick=maybe", "flag --quick=maybe: must be true or false"),
        ("--logdir=", "--logdir= cannot be created"),
        ("--table=/dev/null/study.md", "--table=/dev/null/study.md cannot be created"),
        ("--table=/", "--table=/ must be a file; it is a directory"),
        ("--sedes=3", "Unknown command line flag 'sedes'. Did you mean: seeds ?"),
        ("runs", "unexpected argument 'runs'"),
    ],
)
def test_bad_input_is_one_line(flag, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        command.main(["tapescope-study", flag])
    error = capsys.readouterr().err
    assert exit_info.value.code == command.EXIT_BAD_INPUT
    assert error.startswith(f"tapescope-study: {message}")
    assert error.count("\n") == 1


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.main(["tapescope-study", "--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"tapescope-study {tapescope.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BrokenProcessPool(), command.EXIT_STOPPED, "a worker was killed, perhaps for want of memory"),
        (OSError(28, "No space left on device"), command.EXIT_BAD_INPUT, "No space left on device"),
        (KeyboardInterrupt(), command.EXIT_INTERRUPTED, "stopped at once"),
    ],
)
def test_a_failure_of_the_training_is_one_line(tmp_path, monkeypatch, capsys, error, code, message):
    def fail(*args):
        raise error

    monkeypatch.setattr(command, "train", fail)
    with pytest.raises(SystemExit) as exit_info:
        command.main(["tapescope-study", f"--logdir={tmp_path}", "--quick"])
    written = capsys.readouterr().err
    assert exit_info.value.code == code
    assert message in written
    assert written.count("\n") == 1


def test_workers_leave_signals_to_their_parent(monkeypatch):
    ignored = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: ignored.setdefault(number, handler))
    devices = queue.Queue()
    devices.put(None)
    monkeypatch.setattr(command, "_shared", None)
    command._start_worker(command._Shared(None, None), devices, 1)
    assert ignored == dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)


@pytest.mark.process
def test_the_command_stops_at_a_signal_and_then_trains_what_is_missing(tmp_path, monkeypatch, capsys):
    """Two small set-ups with three seeds in one process. SIGTERM comes after the first run, seconds before the last."""
    setups = {claims.EXAMPLE_1, claims.EXAMPLE_3}
    monkeypatch.setattr(claims, "QUICK", claims.restricted(claims.CLAIMS, setups))
    options = command.Options(logdir=str(tmp_path), table=None, seeds=3, workers=1, quick=True)

    def complete() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*/*/{trial.DONE}")}

    def stop_after_first_run() -> None:
        while not complete() and waiting.is_set():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    waiting = threading.Event()
    waiting.set()
    thread = threading.Thread(target=stop_after_first_run)
    thread.start()
    code = command.run(options)
    waiting.clear()
    thread.join()
    assert code == command.EXIT_STOPPED
    assert "Stopped by SIGTERM. The same command trains what is missing." in capsys.readouterr().err
    assert not (tmp_path / "study.md").exists()
    before = complete()
    assert 0 < len(before) < 6

    assert command.run(options) == 0
    assert f"{6 - len(before)}/{6 - len(before)} runs" in capsys.readouterr().err
    assert len(complete()) == 6
    assert before.items() <= complete().items()
    text = (tmp_path / "study.md").read_text()
    assert re.search(r"^\| \(h\) .* \| \*\*(supported|refuted|depends)\*\*", text, re.MULTILINE)
    assert "decides nothing" in text

    assert command.run(options._replace(table=str(tmp_path / "again.md"))) == 0
    assert (tmp_path / "again.md").read_text() == text
