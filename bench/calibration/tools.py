"""The alarms of other tools for the same trainings, by their published thresholds.

SageMaker Debugger, TheDeepChecker (Ben Braiek and Khomh 2023), AUTOTRAINER (Zhang et al. 2021), DeepDiagnosis (Wardat
et al. 2022), ReDo (Sokar et al. 2023) and the plots of Karpathy's makemore 3. These are their thresholds on the tensors
that they name, not their programs. Where a tool publishes no limit for a layer, half of the layer is used. Each tool
also gets the check for NaN and Inf that most of them have.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from bench.calibration.training import Trial

BOUNDED = ("tanh", "sigmoid")
HALF = 0.5


class Alarm(NamedTuple):
    """One alarm of a tool at a record."""

    kind: str
    layer: str | None
    strength: float
    """How far beyond its threshold; of several alarms at one record the strongest counts as the tool's answer."""


class Observation(NamedTuple):
    """The quantities of one record that these tools use."""

    kernels: list[tuple[str, int]]
    """Layers with weights, in forward order, and the variable index of their kernel."""
    layers: tuple[str, ...]
    activations: list[str]
    columns: dict[str, np.ndarray]
    mean_abs: np.ndarray
    """Mean absolute element of each kernel's gradient."""
    extra: dict[str, np.ndarray]
    quiet: np.ndarray
    """[L] Share of units that were quiet for ten records."""
    dormant: np.ndarray
    """[L] Share of dormant units."""


def observations(trial: Trial) -> Iterator[Observation]:
    """Yield the records of a training in order."""
    run = trial.run
    kernels = [(run.layers[i], variables[0]) for i, variables in enumerate(run.details["variables"]) if variables]
    sizes = np.asarray(run.details["units"])
    columns = {name: run[name] for name in run.columns if name != "unit_state"}
    recent: list[np.ndarray] = []
    for t in range(len(run.steps)):
        extra = trial.extras[t]
        if not extra:
            return
        recent = [*recent, extra["quiet"]][-10:]
        lasting = np.all(recent, axis=0) if len(recent) == 10 else np.zeros(sizes.sum(), bool)
        yield Observation(
            kernels=kernels,
            layers=run.layers,
            activations=run.details["activations"],
            columns={name: values[t] for name, values in columns.items() if t < len(values)},
            mean_abs=np.array([extra["mean_abs"][v] for _, v in kernels]),
            extra=extra,
            quiet=np.array([part.mean() for part in np.split(lasting, np.cumsum(sizes)[:-1])]),
            dormant=columns["units_dormant"][t] / sizes,
        )


def _beyond(kind: str, names, values, limit: float, below: bool = False) -> Iterator[Alarm]:
    for name, value in zip(names, values, strict=True):
        if (value < limit) if below else (value > limit):
            strength = limit / max(value, 1e-45) if below else value / limit
            yield Alarm(kind, name, float(strength))


def _with_activation(seen: Observation, values: np.ndarray, kinds: tuple[str, ...]) -> np.ndarray:
    return np.where([k in kinds for k in seen.activations], values, 0)


def _not_finite(seen: Observation) -> Iterator[Alarm]:
    bad = seen.columns["gradient_nonfinite"]
    for name, v in seen.kernels[::-1]:
        if bad[v] > 0:
            yield Alarm("exploding", name, 1.0)
            return


def _ratio(seen: Observation) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.array([np.log10(seen.columns["update_ratio"][v]) for _, v in seen.kernels])


def _outside(seen: Observation, low: float, high: float) -> Iterator[Alarm]:
    for (name, _), decades in zip(seen.kernels, _ratio(seen), strict=True):
        if decades < low or decades > high:
            yield Alarm("update", name, float(max(low - decades, decades - high)))


def sagemaker(seen: Observation) -> Iterator[Alarm]:
    """Apply the thresholds of SageMaker Debugger."""
    names = [n for n, _ in seen.kernels]
    yield from _not_finite(seen)
    yield from _beyond("vanishing", names, seen.mean_abs, 1e-7, below=True)
    yield from _beyond("dead", seen.layers, _with_activation(seen, seen.extra["inactive"], ("relu",)), HALF)
    yield from _beyond("saturated", seen.layers, seen.extra["extreme"], HALF)
    yield from _outside(seen, -8, 1)


def the_deep_checker(seen: Observation) -> Iterator[Alarm]:
    """Apply the thresholds of TheDeepChecker."""
    names = [n for n, _ in seen.kernels]
    yield from _not_finite(seen)
    yield from _beyond("vanishing", names, seen.mean_abs, 1e-6, below=True)
    yield from _beyond("exploding", names, seen.mean_abs, 1e6)
    with np.errstate(all="ignore"):
        ratios = seen.mean_abs[:-1] / seen.mean_abs[1:]  # of a layer to the one after it
    for kind, row in (("vanishing", ratios <= 0.5), ("exploding", ratios >= 2)):
        for at in range(len(row) - 3):
            if row[at : at + 4].all():
                yield Alarm(kind, names[at], 1.0)
                break
    yield from _beyond("dead", seen.layers, _with_activation(seen, seen.quiet, ("relu",)), HALF)
    yield from _beyond("saturated", seen.layers, seen.extra["rho"], HALF)
    yield from _outside(seen, -4, -1)


def autotrainer(seen: Observation) -> Iterator[Alarm]:
    """Apply the thresholds of AUTOTRAINER."""
    yield from _not_finite(seen)
    if len(seen.kernels) > 1:
        first, _ = seen.kernels[0]
        head = seen.mean_abs[0]
        tail = seen.mean_abs[-1]
        if head < 1e-3 * tail and head < 1e-4:
            yield Alarm("vanishing", first, 1.0)
        if head > 70 * tail:
            yield Alarm("exploding", first, 1.0)
    zero = [seen.columns["gradient_zero"][v] for _, v in seen.kernels]
    yield from _beyond("dead", [n for n, _ in seen.kernels], zero, 0.7)


def deep_diagnosis(seen: Observation) -> Iterator[Alarm]:
    """Apply the thresholds of DeepDiagnosis."""
    yield from _not_finite(seen)
    yield from _beyond("vanishing", [n for n, _ in seen.kernels], seen.mean_abs, 1e-7, below=True)
    yield from _beyond("dead", seen.layers, _with_activation(seen, seen.extra["nonpositive"], ("relu",)), 0.7)
    yield from _beyond("saturated", seen.layers, _with_activation(seen, seen.extra["beyond_5"], BOUNDED), HALF)


def redo(seen: Observation) -> Iterator[Alarm]:
    """Apply the threshold of ReDo."""
    yield from _not_finite(seen)
    yield from _beyond("dead", seen.layers, _with_activation(seen, np.nan_to_num(seen.dormant), ("relu",)), HALF)


def makemore(seen: Observation) -> Iterator[Alarm]:
    """Apply the thresholds of the plots in makemore 3."""
    yield from _not_finite(seen)
    yield from _beyond("saturated", seen.layers, seen.extra["tanh_97"], HALF)
    yield from _outside(seen, -4, -2)


Tool = Callable[[Observation], Iterator[Alarm]]
TOOLS: dict[str, Tool] = {
    "SageMaker Debugger": sagemaker,
    "TheDeepChecker": the_deep_checker,
    "AUTOTRAINER": autotrainer,
    "DeepDiagnosis": deep_diagnosis,
    "ReDo": redo,
    "makemore 3": makemore,
}

MEANT = {
    "vanishing": {"vanishing", "no_gradient"},
    "exploding": {"exploding", "non_finite", "gradient_spike", "update_too_large"},
    "dead": {"dead_units", "dying_units"},
    "saturated": {"saturation"},
    "update": {"update_too_large", "update_too_small"},
}
"""Rules that each kind of alarm counts as."""


def alarms(observed: Sequence[Observation], tool: Tool, patience: int) -> list[Alarm]:
    """Return a tool's alarms, each kind and layer once, ordered by time and then by strength.

    An alarm counts once it holds at `patience` records in a row.
    """
    raised: dict[tuple[str, str | None], Alarm] = {}
    in_a_row: dict[tuple[str, str | None], int] = {}
    for seen in observed:
        now = sorted(tool(seen), key=lambda a: -a.strength)
        in_a_row = {(a.kind, a.layer): in_a_row.get((a.kind, a.layer), 0) + 1 for a in now}
        for alarm in now:
            # A non-finite gradient does not recover, so there may be no further records to wait for.
            key = (alarm.kind, alarm.layer)
            if in_a_row[key] >= patience or seen.columns["gradient_nonfinite"].any():
                raised.setdefault(key, alarm)
    return list(raised.values())
