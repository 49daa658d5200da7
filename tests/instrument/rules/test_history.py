"""The history of a run: its trend, and its memory."""

import numpy as np
import pytest

from tapescope.rules.history import LONG, WINDOW, History
from tapescope.rules.record_view import Record
from tests.instrument.rules.records import LAYOUT, healthy


def test_the_trend_is_the_rank_sum_of_the_newer_half():
    history = History(LAYOUT)
    for t, loss in enumerate([5, 4, 6, 5, 4, 2, 3, 1, 3, 2.0]):
        history.add(Record(t, {**healthy(t), "loss": np.float64(loss)}))
    assert history.loss_trend == pytest.approx(12.5 / np.sqrt(25 * 11 / 12))  # all 25 pairs; 12.5 of them by chance


def test_the_loss_fall_is_the_share_of_the_first_losses_that_is_gone():
    history = History(LAYOUT)
    for t in range(40):
        history.add(Record(t, {**healthy(t), "loss": np.float64(10 if t < 20 else 1)}))
    assert history.loss_fall == pytest.approx(0.9)


def test_memory_does_not_grow():
    history = History(LAYOUT)
    for t in range(200):
        history.add(Record(t, healthy(t, replicas=2)))
    assert len(history.window) == WINDOW
    assert max(len(history.early_losses), len(history.early_norms), len(history.replica_differences)) <= LONG


def losses(values, every=10):
    """Return the history of a run with these losses."""
    history = History(LAYOUT)
    for t, loss in enumerate(values):
        history.add(Record(every * t, {**healthy(t), "loss": np.float64(loss)}))
    return history


def test_a_tenth_of_a_percent_in_a_thousand_steps_is_not_falling():
    assert losses(1 - 1e-5 * np.arange(100)).loss_stuck


def test_a_percent_in_a_hundred_steps_is_falling():
    assert not losses(1 - 1e-3 * np.arange(100)).loss_stuck


def test_a_noisy_loss_that_falls_slowly_is_falling():
    noise = 0.02 * np.random.default_rng(0).normal(size=100)
    assert losses(1 - 5e-4 * np.arange(100) + noise).loss_falling


def test_a_run_that_is_measured_densely_at_first_has_the_same_pace():
    history = History(LAYOUT)
    for t, step in enumerate([*range(50), *range(50, 350, 10)]):
        history.add(Record(step, healthy(t)))
    assert (history.had_time, history.loss_stuck, history.learned) == (True, False, True)
