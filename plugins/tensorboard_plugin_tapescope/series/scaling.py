"""Scaling figures: how many examples a second a run processes, and how much of perfect scaling that is."""

from collections.abc import Mapping

import numpy as np

from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series.matching import list_names, renumber
from tensorboard_plugin_tapescope.series.noise_scale import examples_per_step


def batch_size(steps: np.ndarray, examples_seen: np.ndarray) -> float:
    """Return the median number of examples a step over all replicas; NaN for fewer than two usable records."""
    return _finite_median(examples_per_step(steps, examples_seen)[1:])


def wall_clock_rate(seconds: np.ndarray, examples_seen: np.ndarray) -> float:
    """Return examples per second from the first record to the last, measuring and validation included.

    Where the clock goes back between two records, no time counts.

    Args:
      seconds: wall time of each record, [T].
      examples_seen: examples up to and with each record, [T].
    """
    if len(seconds) < 2:
        return float("nan")
    passed = float(np.clip(np.diff(seconds), 0, None).sum())
    return float(examples_seen[-1] - examples_seen[0]) / passed if passed > 0 else float("nan")


def unmeasured_rate(steps: np.ndarray, examples_seen: np.ndarray, step_ms: np.ndarray) -> float:
    """Return examples per second of the steps that are not measured; NaN where it is not known.

    Args:
      steps: recorded steps, [T].
      examples_seen: examples up to and with each record, [T].
      step_ms: time of a step that is not measured, in milliseconds, [T].
    """
    milliseconds = _finite_median(step_ms)
    return 1000 * batch_size(steps, examples_seen) / milliseconds if milliseconds > 0 else float("nan")


def base_rate(rates: np.ndarray, replicas: np.ndarray) -> float:
    """Return examples per second and replica of the fastest of the runs with the fewest replicas.

    Args:
      rates: examples per second of each run, [K].
      replicas: number of replicas of each run, [K].
    """
    rates = np.asarray(rates, np.float64)
    replicas = np.asarray(replicas, np.float64)
    usable = np.isfinite(rates) & (rates > 0) & (replicas > 0)
    if not usable.any():
        return float("nan")
    fewest = replicas[usable].min()
    return float(rates[usable & (replicas == fewest)].max() / fewest)


def scaling_efficiency(rates: np.ndarray, replicas: np.ndarray) -> np.ndarray:
    """Return each run's rate over that of perfect scaling, [K]: `base_rate` times its replicas; NaN if unknown."""
    replicas = np.asarray(replicas, np.float64)
    perfect = base_rate(rates, replicas) * np.where(replicas > 0, replicas, np.nan)
    return np.asarray(rates, np.float64) / perfect


def describe_other_networks(layers: Mapping[str, Family]) -> str:
    """Return a sentence about the runs that have other layers than the first, "" if there are none.

    Args:
      layers: the description of the layers of each run by its name.
    """
    networks = {run: (renumber(family.names), family.details.get("units")) for run, family in layers.items()}
    first = next(iter(networks), "")
    others = [run for run, network in networks.items() if network != networks[first]]
    return f"Not comparable with {first}, because their layers differ: {list_names(others)}." if others else ""


def _finite_median(values: np.ndarray) -> float:
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")
