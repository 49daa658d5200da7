"""The share of a run's steps that are spikes, of the loss and of the gradient's norm: how calm a run was.

A value is a spike if it lies more than DEVIATIONS standard deviations above the mean of the WINDOW values before it.
Window, deviations and the half window that is needed first are those of OLMo-core's `SkipStepOptimizer`
(https://github.com/allenai/OLMo-core). The share is the *spike score* of Team OLMo, "2 OLMo 2 Furious", 2025, section
3.1, which there looks at 1000 values and seven deviations.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.tables import Table

WINDOW = 128
"""Values before one that it is compared with."""
DEVIATIONS = 6.0
"""Standard deviations above their mean from which on a value is a spike."""
LEAST_VALUES = WINDOW // 2
"""Values that must be known before the first one is judged."""
COLUMNS = {"loss": "loss_spike_share", "gradient": "gradient_spike_share"}
"""Columns of the step with the shares so far."""
NEEDED = ("loss", "gradient_norm", "skipped")
"""Columns of which the shares are computed."""
_RESOLUTION = 2.0**-23
"""Relative rounding of float32: values that are constant but for it have no spikes."""
_CHUNK = 4096
"""Windows that are reduced at once: 4 MiB."""


class SpikeCounter:
    """The spikes of one series, which is given a part at a time. Values that are not finite are left out."""

    def __init__(self):
        self.judged = 0
        """Number of values with enough values before them."""
        self.spikes = 0
        """Number of these that are spikes."""
        self._recent = np.zeros(0)

    def add(self, values: Any) -> None:
        """Add the next values of the series.

        Args:
          values: one, or several in their order.
        """
        values = np.asarray(values, np.float64).reshape(-1)
        known = len(self._recent)
        series = np.concatenate([self._recent, values[np.isfinite(values)]])
        self._recent = series[-WINDOW:]
        for at in range(max(known, LEAST_VALUES), min(len(series), WINDOW)):
            self._judge(series[None, :at], series[at : at + 1])
        if len(series) <= WINDOW:
            return
        windows = np.lib.stride_tricks.sliding_window_view(series, WINDOW)[:-1]
        for start in range(max(known - WINDOW, 0), len(windows), _CHUNK):
            part = windows[start : start + _CHUNK]
            self._judge(part, series[WINDOW + start : WINDOW + start + len(part)])

    def _judge(self, before: np.ndarray, values: np.ndarray) -> None:
        """Count the spikes among values [N], each compared with those before it, [N, W]."""
        with np.errstate(over="ignore", invalid="ignore"):  # values near the largest float64
            mean = before.mean(1)
            deviation = np.maximum(before.std(1, ddof=1), _RESOLUTION * np.abs(mean))
            self.spikes += int(np.count_nonzero(values - mean > DEVIATIONS * deviation))
        self.judged += len(values)

    @property
    def share(self) -> float:
        """The share of spikes among the judged values; NaN before the first."""
        return self.spikes / self.judged if self.judged else float("nan")


class RunSpikes:
    """The spikes of a run's loss and of its gradient's norm."""

    def __init__(self):
        self._counters = {name: SpikeCounter() for name in COLUMNS}

    def add(self, loss: Any, gradient_norm: Any, skipped: Any = 0.0) -> None:
        """Add the next records, one or T of them.

        Args:
          loss: [] or [T].
          gradient_norm: of each variable, [V] or [T, V].
          skipped: whether a loss scale skipped the step, [] or [T]. The gradient of such a step is left out.
        """
        self._counters["loss"].add(loss)
        norms = np.where(np.asarray(skipped, np.float64) > 0, np.nan, total_norm(gradient_norm))
        self._counters["gradient"].add(norms)

    @property
    def shares(self) -> dict[str, float]:
        """The share of spikes of "loss" and "gradient"; NaN where too few steps are known."""
        return {name: counter.share for name, counter in self._counters.items()}


def total_norm(norms: Any) -> np.ndarray:
    """Return the L2 norm over all variables from the norm of each, [..., V] to [...]; NaN where none is known."""
    norms = np.asarray(norms, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sqrt(np.nansum(np.square(norms), -1))
    return np.where(np.isnan(norms).all(-1), np.nan, total)


def count_spikes(columns: Mapping[str, np.ndarray]) -> RunSpikes:
    """Return the spikes of recorded steps.

    Args:
      columns: those of NEEDED, [T] and [T, V]; any may be absent.
    """
    spikes = RunSpikes()
    norms = columns.get("gradient_norm", np.zeros([0, 1]))
    skipped = columns.get("skipped")
    known = skipped is not None and len(skipped) == len(norms)
    spikes.add(columns.get("loss", np.zeros(0)), norms, skipped if known else 0.0)
    return spikes


def recorded_shares(step: Table | None) -> dict[str, float | None]:
    """Return the shares in the last record of the step; None where it has none, as one of an older version."""
    shares: dict[str, float | None] = {}
    for name, column in COLUMNS.items():
        shares[name] = None
        if step is not None and len(step.values) and column in step.family.columns:
            share = float(tables.column(step, column)[-1])
            shares[name] = share if 0 <= share <= 1 else None
    return shares


def describe_shares(shares: Mapping[str, float | None]) -> str:
    """Return shares as a phrase, such as `loss 0.4 %, gradient 0 %`; empty where none is known."""
    known = {name: share for name, share in shares.items() if share is not None and share == share}
    return ", ".join(f"{name} {100 * share:.2g} %" for name, share in known.items())
