"""The loop around the step: what it records when, what a person sees, and how it ends."""

import io
import os
import signal
import threading

import pytest
import tensorflow as tf

import tapescope
from tapescope.rules.finding import Finding
from tapescope_trainers.training import loop, signals
from tapescope_trainers.training.progress import Progress
from tapescope_trainers.training.step import Outcome


class Notebook:
    """In place of a Recorder: remembers what it is given."""

    def __init__(self):
        self.readings: dict[int, float] = {}
        self.validations: dict[int, dict[str, float]] = {}

    @property
    def findings(self):
        """As if the rules had found something at step 6."""
        common = {"version": 1, "step": 6, "message": "", "evidence": {}, "advice": ""}
        found = [("dead_units", "warning", "hidden"), ("non_finite", "error", "output")]
        return [Finding(rule=r, severity=s, layer=n, **common) for r, s, n in found] if 6 in self.readings else []

    def write(self, step, reading, scalars, examples):
        assert reading == f"reading {step}"
        assert scalars["loss"] == step
        self.readings[step] = examples

    def scalars(self, step, scalars):
        self.validations[step] = scalars


def run(steps: int, names: list[str], at_step=lambda n: None, stream=None, **options):
    """A loop whose step only counts."""
    notebook, counter = Notebook(), iter(range(10**6))

    def step(x, y, measure):
        n = next(counter)
        at_step(n)
        return Outcome(tf.constant(float(n)), tf.constant(0.0), f"reading {n}" if measure else None)

    result = loop.train(
        step,
        ((0, 0) for _ in iter(int, 1)),
        lambda: {"validation/loss": 0.5},
        notebook,
        steps=steps,
        batch_size=8,
        when=tapescope.every(options.pop("every", 3)),
        validate_every=options.pop("validate_every", 4),
        progress=Progress(steps, 8, stream or io.StringIO()),
        signals=names,
        **options,
    )
    return result, notebook


def test_readings_and_validations_come_at_their_steps():
    result, notebook = run(10, [])
    assert notebook.readings == {0: 8, 3: 32, 6: 56, 9: 80}
    assert list(notebook.validations) == [3, 7, 9]
    assert result == loop.Result(10, {"validation/loss": 0.5}, None)


@pytest.mark.parametrize(("stop", "steps", "why"), [(True, 7, "non_finite in output"), (False, 10, None)])
def test_an_error_that_the_rules_find_ends_it_where_asked(stop, steps, why):
    result, _ = run(10, [], stop_on_error=stop)
    assert (result.steps, result.interrupted) == (steps, why)


def test_a_signal_ends_it_before_the_next_step():
    names: list[str] = []
    result, notebook = run(10, names, at_step=lambda n: names.append("SIGTERM") if n == 4 else None)
    assert (result.steps, result.interrupted) == (5, "SIGTERM")
    assert list(notebook.readings) == [0, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_collected_and_the_second_ends_at_once(number):
    before = signal.getsignal(number)
    with signals.caught() as names:
        os.kill(os.getpid(), number)
        assert names == [signal.Signals(number).name]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_there_are_no_signals_to_catch():
    found = []

    def enter():
        with signals.caught() as names:
            found.append(names)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [[]]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_progress_is_lines(monkeypatch):
    now = iter([0.0, 2.0, 6.0, 6.0, 10.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    progress = Progress(100, 8, stream := io.StringIO())
    assert not progress.due(10)  # the clock starts here: tracing is over
    assert not progress.due(20)
    assert progress.due(40)
    progress.report(40, 0.25)  # 30 steps of 8 examples in 6 s
    assert progress.due(100)
    progress.report(100, 0.125)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "40/100 steps  loss 0.25  40 examples/s  00:12 left",
        "100/100 steps  loss 0.125  72 examples/s  00:00 left",
    ]


def test_in_a_terminal_progress_is_a_bar():
    result, _ = run(50, [], stream=(stream := Terminal()))
    last = stream.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("#" * 24 + " 50/50 steps  loss 49  ")
    assert stream.getvalue().endswith("\x1b[K\n")
    assert result.steps == 50


def test_no_progress_where_none_is_wanted():
    progress = Progress(10, 8, stream := Terminal(), enabled=False)
    assert not progress.due(10)
    progress.close()
    assert stream.getvalue() == ""


def test_the_mean_over_the_validation_is_weighted_by_examples():
    batches = [(tf.constant([2.0, 1.0, 4.0]), None), (tf.constant([1.0, 0.0, 1.0]), None)]
    found = loop.validation(lambda sums, _: sums, batches)
    assert found == {"validation/loss": 3 / 5, "validation/accuracy": 1 / 5}
