"""The answer of a replay: whether the step came out as recorded, and which examples, layer and change explain it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from tapescope.rules.finding import format_factor
from tapescope.storage import captured_step
from tapescope.storage.printable import to_json
from tapescope.storage.run import Run
from tapescope.storage.text_file import write_whole
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.series import spikes

SHOWN_EXAMPLES = 5
"""Heaviest examples whose inputs are written for the tab."""
USUAL_RECORDS = 10
"""Records before the step whose median is the usual value."""
GROWN_FACTOR = 10.0
"""Times the usual value from which on a layer's output has grown."""
_SHOWN = 10
"""Examples that are printed as text."""


class Example(NamedTuple):
    """One example of the step, alone."""

    index: int
    """In the training arrays; where these are not known, in the batch."""
    loss: float
    gradient_norm: float
    """L2 norm of the gradient of its loss with respect to all trainable variables."""


class OddLayer(NamedTuple):
    """The first layer in forward order that is not finite, or whose output has grown."""

    layer: str
    reason: str
    """"not finite" or "grown"."""
    value: float
    """Largest absolute value of its output."""
    usual: float
    """Median of that over the last records before the step; NaN where there is none."""


class Variant(NamedTuple):
    """The step with one thing changed."""

    change: str
    gradient_norm: float
    """L2 norm of the gradient that the optimizer got."""
    loss_after: float
    """Loss after the step, on the batch without its heaviest example."""


class Replay(NamedTuple):
    """Results of a step that was run again."""

    step: int
    reproduced: bool
    """Whether loss and gradient norms are the recorded ones to the bit."""
    difference: float | None
    """Largest relative difference of loss and gradient norms from the recorded ones; 0 if reproduced, None where the
    step has not been recorded, or one of two numbers is not finite."""
    examples: tuple[Example, ...]
    """The heaviest first: those that are not finite, then by gradient norm."""
    loss: float
    recorded_loss: float
    """NaN where the step was not recorded."""
    gradient_norm: float
    """L2 norm of the finite elements of the whole gradient."""
    recorded_gradient_norm: float
    first_layer: OddLayer | None
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]
    """Sentences on what could not be answered, and why."""

    def to_json(self) -> str:
        """Return the answer as one line of JSON, with null for numbers that are not finite."""
        return to_json(
            {
                **self._asdict(),
                "examples": [example._asdict() for example in self.examples],
                "first_layer": self.first_layer and self.first_layer._asdict(),
                "variants": [variant._asdict() for variant in self.variants],
            }
        )

    def __str__(self) -> str:
        return "\n".join(_lines(self))


class Recorded(NamedTuple):
    """The recorded numbers that a replay is compared with."""

    loss: float
    gradient_norm: Mapping[str, float]
    """By variable."""


class MeasuredStep(NamedTuple):
    """Columns of a reading on the host."""

    gradient_norm: dict[str, float]
    """L2 norm by variable."""
    applied_norm: float
    """L2 norm of the whole gradient that the optimizer got."""
    nonfinite: bool
    """Whether the gradient has a NaN or Inf."""
    layers: tuple[str, ...]
    largest: list[float]
    """Largest absolute value of each layer's output, [L]."""
    first_nonfinite: int
    """Index of the first layer in forward order that is not finite, or -1."""


def make_answer(
    run: Run,
    step: int,
    loss: float,
    measured: MeasuredStep,
    recorded: Recorded | None,
    *,
    examples: Sequence[Example],
    variants: Sequence[Variant],
    notes: Sequence[str],
) -> Replay:
    """Return the answer: the step as it came out, compared with what was recorded."""
    reproduced, difference = compare(Recorded(loss, measured.gradient_norm), recorded)
    return Replay(
        step=step,
        reproduced=reproduced,
        difference=difference,
        examples=tuple(examples),
        loss=loss,
        recorded_loss=math.nan if recorded is None else recorded.loss,
        gradient_norm=total_norm(list(measured.gradient_norm.values())),
        recorded_gradient_norm=math.nan if recorded is None else total_norm(list(recorded.gradient_norm.values())),
        first_layer=find_first_layer(run, step, measured.layers, measured.first_nonfinite, measured.largest),
        variants=tuple(variants),
        notes=tuple(notes),
    )


def write_answer(logdir: str | os.PathLike[str], replay: Replay, inputs: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write an answer into the run's directory, where the Gradients tab finds it. A run that is read-only stays so.

    Args:
      logdir: the run's directory.
      replay: the answer.
      inputs: of the heaviest examples, in their order: arrays by name. Those of few numbers are shown.
    """
    fields = json.loads(replay.to_json())
    for example, arrays in zip(fields["examples"], inputs, strict=False):
        shown = {n: a for n, a in arrays.items() if a.size <= metadata.MAX_REPLAY_VALUES and a.dtype.kind in "fiub"}
        example["inputs"] = [
            {"name": name, "shape": array.shape, "values": array.astype(float).ravel().tolist()}
            for name, array in shown.items()
        ]
    try:
        os.makedirs(captured_step.directory(logdir), exist_ok=True)
        path = os.path.join(captured_step.directory(logdir), f"replay-{replay.step}.json")
        write_whole(path, to_json(fields))
    except OSError as error:
        logging.info("tapescope: the answer is not written for the Gradients tab: %s", error)


def read_recorded(run: Run, step: int) -> Recorded | None:
    """Return the numbers that a run recorded at a step; None if it was not measured."""
    (found,) = np.nonzero(run.steps == step)
    if not len(found):
        return None
    norms = run["gradient_norm"][found[0]].tolist()
    return Recorded(float(run["loss"][found[0]]), dict(zip(run.variables, norms, strict=True)))


def compare(now: Recorded, before: Recorded | None) -> tuple[bool, float | None]:
    """Return whether loss and gradient norms are equal to the bit, and the largest relative difference.

    A NaN equals a NaN. Variables are matched by name, or by their place where Keras has numbered the names of a model
    that was built again. The loss is compared as float32, in which the steps compute it.
    """
    if before is None:
        return False, None
    norms = before.gradient_norm
    recorded = (
        [norms[name] for name in now.gradient_norm] if now.gradient_norm.keys() <= norms.keys() else norms.values()
    )
    pairs = [(now.loss, before.loss), *zip(now.gradient_norm.values(), recorded, strict=False)]
    if math.isnan(before.loss):
        pairs = pairs if math.isnan(now.loss) else pairs[1:]  # a loop of the user's own need not record its loss
    a, b = np.array(pairs, np.float32).T.astype(np.float64)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    if equal.all():
        return True, 0.0
    with np.errstate(all="ignore"):
        differences = np.where(equal, 0.0, np.abs(a - b) / np.maximum(np.abs(a), np.abs(b)))
    largest = float(differences.max())
    return False, largest if math.isfinite(largest) else None


def total_norm(norms: Sequence[float]) -> float:
    """Return the L2 norm of a gradient from those of its variables; an absent one is NaN and counts as 0."""
    norm = float(spikes.total_norm(norms))
    return 0.0 if math.isnan(norm) else norm


def order_examples(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Return examples with the heaviest first."""

    def weight(example: Example) -> tuple[bool, float, float]:
        finite = math.isfinite(example.loss) and math.isfinite(example.gradient_norm)
        return finite, -example.gradient_norm if finite else 0.0, -example.loss if math.isfinite(example.loss) else 0.0

    return tuple(sorted(examples, key=weight))


def find_first_layer(
    run: Run, step: int, layers: Sequence[str], first_nonfinite: int, largest: Sequence[float]
) -> OddLayer | None:
    """Return the first layer of a step that is not finite, or whose output has grown against the records before.

    Args:
      run: the step is of.
      step: its number.
      layers: names of the L layers, in forward order.
      first_nonfinite: index of the first layer that is not finite; -1 if all are.
      largest: largest absolute value of each layer's output, [L].
    """
    before = np.flatnonzero(run.steps < step)[-USUAL_RECORDS:]
    usual = np.full(len(layers), np.nan)
    if len(before) and len(run.layers) == len(layers):
        recorded = np.maximum(np.abs(run["activation_min"][before]), np.abs(run["activation_max"][before]))
        is_known = np.isfinite(recorded).any(axis=0)
        usual[is_known] = np.nanmedian(recorded[:, is_known], axis=0)
    if first_nonfinite >= 0:
        at = first_nonfinite
        return OddLayer(layers[at], "not finite", float(largest[at]), float(usual[at]))
    with np.errstate(all="ignore"):
        grown = np.flatnonzero(np.asarray(largest) > GROWN_FACTOR * usual)
    if not len(grown):
        return None
    at = int(grown[0])
    return OddLayer(layers[at], "grown", float(largest[at]), float(usual[at]))


def usual_norm(run: Run, step: int) -> float:
    """Return the median norm of the whole gradient over the last records before a step; NaN where there is none."""
    before = np.flatnonzero(run.steps < step)[-USUAL_RECORDS:]
    norms = [total_norm(row) for row in run["gradient_norm"][before]] if len(before) else []
    finite = [norm for norm in norms if math.isfinite(norm)]
    return float(np.median(finite)) if finite else math.nan


def _lines(replay: Replay) -> list[str]:
    lines = []
    if replay.reproduced:
        lines.append(f"step {replay.step} is reproduced to the bit: {_numbers(replay.loss, replay.gradient_norm)}")
    else:
        lines.append(f"step {replay.step} is not reproduced: {_numbers(replay.loss, replay.gradient_norm)}")
        recorded = _numbers(replay.recorded_loss, replay.recorded_gradient_norm)
        far = "" if replay.difference is None else f", a relative difference of {replay.difference:.3g}"
        lines.append(f"  recorded: {recorded}{far}")
    if replay.first_layer:
        odd = replay.first_layer
        grown = f": up to {odd.value:.3g}, {format_factor(odd.value / odd.usual)} the usual" if odd.usual > 0 else ""
        is_grown = odd.reason == "grown"
        what = "has grown" if is_grown else "is not finite"
        lines.append(f"first layer that {what}: {odd.layer}{grown if is_grown else ''}")
    if replay.examples:
        lines.append(f"examples, the heaviest of {len(replay.examples)} first:")
        lines.append("   index          loss  gradient norm")
        lines += [f"{e.index:8d} {e.loss:13.6g} {e.gradient_norm:14.6g}" for e in replay.examples[:_SHOWN]]
    if replay.variants:
        lines.append("the step with one change: gradient norm, loss of the other examples after it:")
        lines += [f"  {v.change}: {v.gradient_norm:.4g}, {v.loss_after:.4g}" for v in replay.variants]
    return [*lines, *(f"note: {note}" for note in replay.notes)]


def _numbers(loss: float, norm: float) -> str:
    return f"loss {loss:.9g}, gradient norm {norm:.9g}"
