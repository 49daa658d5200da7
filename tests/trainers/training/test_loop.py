"""The loop around the step: what it records when, its progress on the terminal, and how it ends."""

import io
import itertools
import os
import re
import signal
import threading

import pytest
import tensorflow as tf

import tapescope
from tapescope.rules.finding import Finding
from tapescope_trainers.training import loop, progress, signals
from tapescope_trainers.training.progress import Progress
from tapescope_trainers.training.step import Outcome


class FakeRecorder:
    """A Recorder that remembers what it is given."""

    def __init__(self):
        self.examples: dict[int, int] = {}
        self.validations: dict[int, dict[str, float]] = {}

    @property
    def findings(self):
        """A warning and an error, once step 6 is recorded."""
        if 6 not in self.examples:
            return []
        common = {"version": 1, "step": 6, "message": "", "evidence": {}, "advice": ""}
        return [
            Finding(rule="dead_units", severity="warning", layer="hidden", **common),
            Finding(rule="non_finite", severity="error", layer="output", **common),
        ]

    def write(self, step, reading, scalars, examples):
        assert reading == f"reading {step}"
        assert scalars["loss"] == step
        self.examples[step] = examples

    def scalars(self, step, scalars):
        self.validations[step] = scalars


def run(steps: int, received: list[str], at_step=lambda n: None, stream=None, **options):
    """Run a loop whose step only counts: measured every 3 steps, validated every 4.

    Returns:
        The loop's result and the recorder.
    """
    recorder = FakeRecorder()
    counter = iter(range(10**6))

    def step(x, y, measure):
        n = next(counter)
        at_step(n)
        return Outcome(tf.constant(float(n)), {"accuracy": tf.constant(0.0)}, f"reading {n}" if measure else None)

    result = loop.train(
        step,
        itertools.repeat((0, 0)),
        lambda: {"validation/loss": 0.5},
        recorder,
        steps=steps,
        batch_size=8,
        when=tapescope.every(3),
        validate_every=4,
        progress=Progress(steps, "steps", batch_size=8, stream=stream or io.StringIO()),
        received=received,
        **options,
    )
    return result, recorder


def test_readings_are_recorded_at_measured_steps():
    _, recorder = run(10, [])
    assert recorder.examples == {0: 8, 3: 32, 6: 56, 9: 80}


def test_validation_comes_every_validate_every_steps_and_at_the_end():
    result, recorder = run(10, [])
    assert list(recorder.validations) == [3, 7, 9]
    assert result == loop.Result(10, {"validation/loss": 0.5}, None)


def test_an_error_of_the_rules_stops_the_training_if_asked():
    result, _ = run(10, [], stop_on_error=True)
    assert result.steps == 7
    assert result.interrupted == "non_finite in output"


def test_an_error_of_the_rules_does_not_stop_the_training_by_default():
    result, _ = run(10, [])
    assert result.steps == 10
    assert result.interrupted is None


def test_a_signal_stops_the_training_before_the_next_step():
    received: list[str] = []
    result, recorder = run(10, received, at_step=lambda n: received.append("SIGTERM") if n == 4 else None)
    assert (result.steps, result.interrupted) == (5, "SIGTERM")
    assert list(recorder.examples) == [0, 3]


def test_checkpoints_are_saved_at_intervals_and_at_the_end():
    saved: list[int] = []
    run(10, [], save=lambda done, metrics: saved.append(done), save_every=4)
    assert saved == [4, 8, 10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_collected_and_the_second_raises(number):
    before = signal.getsignal(number)
    with signals.catch() as received:
        os.kill(os.getpid(), number)
        assert received == [signal.Signals(number).name]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_terminal_that_is_closed_stops_the_training_once():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    try:
        with signals.catch() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            assert received == ["SIGHUP"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.catch() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_no_signals_are_collected():
    received: list[list[str]] = []

    def enter():
        with signals.catch() as names:
            received.append(names)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert received == [[]]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_progress_without_a_terminal_is_lines(monkeypatch):
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    shown = Progress(100, "steps", batch_size=8, stream=(stream := io.StringIO()))
    shown.update(10, 0.5)
    shown.update(40, 0.25)
    shown.update(100, 0.125)
    shown.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"40/100 steps  loss 0\.25  [\d,]+ examples/s  00:00 left", lines[0])
    assert re.fullmatch(r"100/100 steps  loss 0\.125  [\d,]+ examples/s  00:00 left", lines[1])


def test_progress_without_a_terminal_is_seldom():
    shown = Progress(10**6, "steps", stream=(stream := io.StringIO()))
    for done in range(1, 1001):
        shown.update(done)
    assert stream.getvalue() == ""


def test_progress_shows_the_last_state_at_the_end():
    shown = Progress(16, "runs", stream=(stream := io.StringIO()))
    shown.update(0)
    shown.update(16)
    shown.close()
    assert stream.getvalue() == "16/16 runs  00:00 left\n"


def test_progress_does_not_count_the_first_step_in_the_rate():
    """The clock starts after the first step, which is mostly tracing: 90 units in 9 s are 80 examples/s."""
    now = [1000.0]
    shown = Progress(100, "steps", batch_size=8, stream=(stream := io.StringIO()))
    shown.update(10, 0.5)
    shown._bar.start_t = shown._bar.last_print_t = now[0]
    shown._bar._time = lambda: now[0]
    now[0] += 9.0
    shown.update(100, 0.5)
    shown.close()
    assert stream.getvalue() == "100/100 steps  loss 0.5  80 examples/s  00:00 left\n"


def test_progress_in_a_terminal_is_a_bar():
    _, _ = run(50, [], stream=(stream := Terminal()))
    text = stream.getvalue()
    last = text.rstrip("\n").split("\r")[-1]
    assert re.fullmatch(r"#{24} 50/50 steps  loss 49  [\d,]+ examples/s  00:00 left *", last)
    assert text.endswith("\n")


def test_progress_reads_the_loss_only_when_it_is_shown():
    reads: list[int] = []

    class Loss:
        def __float__(self):
            reads.append(1)
            return 0.5

    shown = Progress(1000, "steps", stream=io.StringIO())
    for done in range(1, 1001):
        shown.update(done, Loss())
    assert reads == []
    shown.close()
    assert len(reads) == 2  # for the line, and for the bar that makes it


def test_no_progress_if_it_is_not_enabled():
    shown = Progress(10, "steps", stream=(stream := Terminal()), enabled=False)
    shown.update(10, 0.5)
    shown.close()
    assert stream.getvalue() == ""


def test_validation_metrics_are_weighted_by_examples():
    batches = [(tf.constant([2.0, 1.0, 4.0]), None), (tf.constant([1.0, 0.0, 1.0]), None)]
    metrics = loop.validation_metrics(lambda sums, _: sums, batches)
    assert metrics == {"validation/loss": 3 / 5, "validation/accuracy": 1 / 5}
