"""Spike shares: against a plain loop over the definition, and in short, damaged and interrupted series."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.series.spikes import RunSpikes, SpikeCounter, count_spikes, describe_shares


def by_definition(values):
    """Return the share of spikes by definition, one value after another."""
    finite = [float(v) for v in values if np.isfinite(v)]
    judged = range(64, len(finite))
    spikes = 0
    for at in judged:
        before = np.array(finite[max(0, at - 128) : at])
        deviation = np.sqrt(np.sum((before - before.mean()) ** 2) / (len(before) - 1))
        spikes += finite[at] - before.mean() > 6 * max(deviation, 2.0**-23 * abs(before.mean()))
    return spikes / len(judged) if judged else np.nan


def share(values):
    counter = SpikeCounter()
    counter.add(values)
    return counter.share


def noisy(count, *spikes, size=9.0):
    values = 2 + 0.5 * np.exp(-np.arange(count) / 50) + 0.1 * np.random.default_rng(0).normal(size=count)
    values[list(spikes)] += size
    return values


@pytest.mark.parametrize("count", [65, 128, 129, 130, 500, 9000])
def test_the_share_is_that_of_the_definition(count):
    values = noisy(count, count - 1, count // 2)
    assert share(values) == by_definition(values) > 0


def test_values_that_are_not_finite_are_left_out():
    values = noisy(400, 200, 300)
    with_gaps = np.insert(values, [100, 199, 201, 390], [np.nan, np.inf, -np.inf, np.nan])
    assert share(with_gaps) == share(values) == 2 / (400 - 64)


def test_the_share_does_not_depend_on_the_parts():
    values = noisy(400, 70, 200, 300)
    counter = SpikeCounter()
    for part in np.split(values, [1, 2, 60, 64, 65, 128, 129, 300]):
        counter.add(part)
    for value in values:
        counter.add(value)
    assert counter.share == share(np.tile(values, 2))


@pytest.mark.parametrize("values", [[], [np.nan] * 500, np.ones(64)], ids=["none", "nan", "short"])
def test_without_enough_values_the_share_is_unknown(values):
    assert np.isnan(share(values))


def test_a_constant_series_has_no_spikes_but_for_rounding():
    values = np.full(300, 0.1, np.float32)
    values[200:] = np.nextafter(values[200:], np.float32(1))
    assert share(values) == 0


def test_a_fall_is_not_a_spike():
    assert share(noisy(300, 200, size=-9.0)) == 0


def test_values_near_the_largest_number_raise_nothing():
    assert share(np.full(200, 1e308) * np.resize([1, -1], 200)) == 0


def test_the_gradient_of_a_skipped_step_is_left_out():
    norms = np.stack([noisy(300, 200), noisy(300, 200)], 1)
    skipped = np.zeros(300)
    skipped[200] = 1
    assert count_spikes({"gradient_norm": norms}).shares["gradient"] == 1 / (300 - 64)
    assert count_spikes({"gradient_norm": norms, "skipped": skipped}).shares["gradient"] == 0


def test_records_one_by_one_give_the_share_of_all():
    columns = {"loss": noisy(300, 150), "gradient_norm": np.abs(noisy(900, 600)).reshape(300, 3)}
    spikes = RunSpikes()
    for loss, norms in zip(*columns.values(), strict=True):
        spikes.add(loss, norms)
    assert spikes.shares == count_spikes(columns).shares
    assert min(spikes.shares.values()) > 0


def test_unknown_shares_are_not_described():
    assert describe_shares({"loss": 0.004, "gradient": float("nan")}) == "loss 0.4 %"
    assert describe_shares({"loss": None}) == ""
