"""What other tools would say of the same trainings, by the thresholds that they publish.

SageMaker Debugger, TheDeepChecker (Ben Braiek and Khomh 2023), AUTOTRAINER (Zhang et al. 2021), DeepDiagnosis (Wardat
et al. 2022), ReDo (Sokar et al. 2023) and the plots of Karpathy's makemore 3. Not their programs: their thresholds, on
the tensors that they name. Where one publishes no limit for a layer, half of it is taken; each is also given the check
for NaN and Inf, which most have.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from bench.calibration.training import Trial

BOUNDED = ("tanh", "sigmoid")
HALF = 0.5


class Alarm(NamedTuple):
    """What a tool says at a record."""

    kind: str
    layer: str | None
    strength: float
    """How far beyond its threshold; of several alarms at one record the strongest is what the tool is taken to mean."""


class Seen(NamedTuple):
    """One record, as these tools see it."""

    kernels: list[tuple[str, int]]
    """Layers with weights in forward order, and the index of their kernel."""
    layers: tuple[str, ...]
    kinds: list[str]
    columns: dict[str, np.ndarray]
    mean_abs: np.ndarray
    """Of the kernels' gradients."""
    extra: dict[str, np.ndarray]
    quiet: np.ndarray
    """Share of units that were quiet for ten records, [L]."""
    dormant: np.ndarray


def records(trial: Trial) -> Iterator[Seen]:
    """The records of a training, in order."""
    run = trial.run
    names, own = run.layers, run.details["variables"]
    kernels = [(names[i], v[0]) for i, v in enumerate(own) if v]
    sizes = np.asarray(run.details["units"])
    names_of = [c for c in run.columns if c != "unit_state"]
    columns = {c: run[c] for c in names_of}
    silent: list[np.ndarray] = []
    for t in range(len(run.steps)):
        extra = trial.extras[t]
        if not extra:
            return
        silent = [*silent, extra["quiet"]][-10:]
        every = np.all(silent, axis=0) if len(silent) == 10 else np.zeros(sizes.sum(), bool)
        quiet = np.array([part.mean() for part in np.split(every, np.cumsum(sizes)[:-1])])
        yield Seen(
            kernels,
            names,
            run.details["activations"],
            {c: v[t] for c, v in columns.items() if t < len(v)},
            np.array([extra["mean_abs"][v] for _, v in kernels]),
            extra,
            quiet,
            columns["units_dormant"][t] / sizes,
        )


def _beyond(kind: str, names, values, limit: float, below: bool = False) -> Iterator[Alarm]:
    for name, value in zip(names, values, strict=True):
        if (value < limit) if below else (value > limit):
            yield Alarm(kind, name, float(limit / max(value, 1e-45) if below else value / limit))


def _only(seen: Seen, values: np.ndarray, kinds: tuple[str, ...]) -> np.ndarray:
    return np.where([k in kinds for k in seen.kinds], values, 0)


def _not_finite(seen: Seen) -> Iterator[Alarm]:
    bad = seen.columns["gradient_nonfinite"]
    for name, v in seen.kernels[::-1]:
        if bad[v] > 0:
            yield Alarm("exploding", name, 1.0)
            return


def _ratio(seen: Seen) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.array([np.log10(seen.columns["update_ratio"][v]) for _, v in seen.kernels])


def _outside(seen: Seen, low: float, high: float) -> Iterator[Alarm]:
    for (name, _), decades in zip(seen.kernels, _ratio(seen), strict=True):
        if decades < low or decades > high:
            yield Alarm("update", name, float(max(low - decades, decades - high)))


def sagemaker(seen: Seen) -> Iterator[Alarm]:
    names = [n for n, _ in seen.kernels]
    yield from _not_finite(seen)
    yield from _beyond("vanishing", names, seen.mean_abs, 1e-7, below=True)
    yield from _beyond("dead", seen.layers, _only(seen, seen.extra["inactive"], ("relu",)), HALF)
    yield from _beyond("saturated", seen.layers, seen.extra["extreme"], HALF)
    yield from _outside(seen, -8, 1)


def the_deep_checker(seen: Seen) -> Iterator[Alarm]:
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
    yield from _beyond("dead", seen.layers, _only(seen, seen.quiet, ("relu",)), HALF)
    yield from _beyond("saturated", seen.layers, seen.extra["rho"], HALF)
    yield from _outside(seen, -4, -1)


def autotrainer(seen: Seen) -> Iterator[Alarm]:
    yield from _not_finite(seen)
    if len(seen.kernels) > 1:
        (first, _), head, tail = seen.kernels[0], seen.mean_abs[0], seen.mean_abs[-1]
        if head < 1e-3 * tail and head < 1e-4:
            yield Alarm("vanishing", first, 1.0)
        if head > 70 * tail:
            yield Alarm("exploding", first, 1.0)
    zero = [seen.columns["gradient_zero"][v] for _, v in seen.kernels]
    yield from _beyond("dead", [n for n, _ in seen.kernels], zero, 0.7)


def deep_diagnosis(seen: Seen) -> Iterator[Alarm]:
    yield from _not_finite(seen)
    yield from _beyond("vanishing", [n for n, _ in seen.kernels], seen.mean_abs, 1e-7, below=True)
    yield from _beyond("dead", seen.layers, _only(seen, seen.extra["nonpositive"], ("relu",)), 0.7)
    yield from _beyond("saturated", seen.layers, _only(seen, seen.extra["beyond_5"], BOUNDED), HALF)


def redo(seen: Seen) -> Iterator[Alarm]:
    yield from _not_finite(seen)
    yield from _beyond("dead", seen.layers, _only(seen, np.nan_to_num(seen.dormant), ("relu",)), HALF)


def makemore(seen: Seen) -> Iterator[Alarm]:
    yield from _not_finite(seen)
    yield from _beyond("saturated", seen.layers, seen.extra["tanh_97"], HALF)
    yield from _outside(seen, -4, -2)


Tool = Callable[[Seen], Iterator[Alarm]]
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
"""Which of our rules each kind of alarm is as good as."""


def alarms(trained: Sequence[Seen], tool: Tool, patience: int) -> list[Alarm]:
    """A tool's alarms, each kind and layer once, in the order of time and at one time the strongest first.

    Raised where the same holds at `patience` records in a row.
    """
    raised: dict[tuple[str, str | None], Alarm] = {}
    row: dict[tuple[str, str | None], int] = {}
    for seen in trained:
        now = sorted(tool(seen), key=lambda a: -a.strength)
        row = {(a.kind, a.layer): row.get((a.kind, a.layer), 0) + 1 for a in now}
        for alarm in now:
            # What is not finite does not come back: there is no row to wait for.
            key = (alarm.kind, alarm.layer)
            if row[key] >= patience or seen.columns["gradient_nonfinite"].any():
                raised.setdefault(key, alarm)
    return list(raised.values())
