"""The coordinate check of the maximal update parametrization: do outputs and their changes depend on a model's width?

A network is built at several widths and trained for a few steps on one batch. If it is parametrized such that learning
rates carry over from one width to another, the root mean square of each layer's output, and of what the steps changed
in it, does not grow with the width, and the change does not vanish either. G. Yang et al., "Tensor Programs V", 2022,
appendix D.1.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapescope_trainers import flags
from tapescope_trainers.logs import import_tensorflow

LARGEST_SLOPE = 0.25
"""Powers of the width from which on a layer depends on it. Between two widths noise makes less; a parametrization that
is not the maximal one makes half a power or a whole one."""


class LayerSlopes(NamedTuple):
    """How one layer depends on the width."""

    layer: str
    output: tuple[float, ...]
    """Root mean square of the layer's output after the steps, at each width; the median over the seeds."""
    change: tuple[float, ...]
    """Root mean square of what the steps changed in that output."""
    output_slope: float
    """Power of the width with which `output` grows."""
    change_slope: float
    """The same of `change`."""
    verdict: str
    """"ok", or what is wrong: "output grows", "change grows", "change vanishes"."""


class Coordinates(NamedTuple):
    """The result of a coordinate check."""

    model: str
    widths: tuple[int, ...]
    steps: int
    layers: tuple[LayerSlopes, ...]

    @property
    def independent(self) -> bool:
        """True if no layer depends on the width."""
        return all(layer.verdict == "ok" for layer in self.layers)

    def __str__(self) -> str:
        """Return the check as lines of a table, and the verdict."""
        width = max(len("layer"), *(len(layer.layer) for layer in self.layers))
        lines = [f"{'layer':{width}}  output ~ width^  change ~ width^  verdict"]
        for layer in self.layers:
            lines.append(
                f"{layer.layer:{width}}  {layer.output_slope:15.2f}  {layer.change_slope:15.2f}  {layer.verdict}"
            )
        bad = sum(layer.verdict != "ok" for layer in self.layers)
        verdict = "no layer depends on the width" if not bad else f"{bad} of {len(self.layers)} layers depend on it"
        lines.append(f"{self.model} at widths {', '.join(map(str, self.widths))}, {self.steps} steps: {verdict}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the check as JSON can hold it."""
        layers = [layer._asdict() for layer in self.layers]
        return self._asdict() | {"layers": layers, "independent": self.independent}


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Return the power of the width with which values grow, by least squares in both logarithms; NaN where one is 0."""
    x, y = np.log(np.asarray(widths, np.float64)), np.asarray(values, np.float64)
    if not (y > 0).all() or not np.isfinite(y).all():
        return float("nan")
    x = x - x.mean()
    return float(np.sum(x * np.log(y)) / np.sum(x * x))


def judge(layer: str, widths: Sequence[int], output: Sequence[float], change: Sequence[float]) -> LayerSlopes:
    """Return a layer's slopes and verdict. An output that shrinks is allowed: that of the last layer does, at first."""
    output_slope, change_slope = slope(widths, output), slope(widths, change)
    verdict = "ok"
    if not np.isfinite([*output, *change]).all():
        verdict = "not finite"
    elif output_slope > LARGEST_SLOPE:
        verdict = "output grows"
    elif change_slope > LARGEST_SLOPE:
        verdict = "change grows"
    elif not change_slope >= -LARGEST_SLOPE:
        verdict = "change vanishes"
    return LayerSlopes(layer, tuple(output), tuple(change), output_slope, change_slope, verdict)


def check(
    model: str,
    data: str,
    widths: Sequence[int],
    *,
    width_argument: str = "width",
    steps: int = 4,
    seeds: int = 3,
    batch_size: int = 64,
    optimizer: str | None = None,
    learning_rate: float = 1e-3,
    loss: str | None = None,
) -> Coordinates:
    """Build and train a model at several widths, and return how its layers depend on them.

    Args:
        model: A preset with a width, or `package.module:build`, a function with an argument for the width.
        data: As `--data` of tapescope-train.
        widths: At least two, rising.
        width_argument: Name of the function's argument.
        steps: Steps on one batch.
        seeds: Weights of which the median is taken.
        batch_size: Examples of the batch.
        optimizer: Name in Keras; by default that with which the model is compiled, else Adam.
        learning_rate: Of that optimizer.
        loss: As `--loss` of tapescope-train.

    Raises:
        ValueError: An argument cannot be right, or the model or the data cannot be used.
    """
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"`learning_rate` must be a positive number; got {learning_rate}")
    if len(widths) < 2 or sorted(set(widths)) != list(widths) or widths[0] < 1:
        raise ValueError(f"--widths must be at least two rising whole numbers, such as 64,128,256; got {widths}")
    flags.check_data(data)
    import_tensorflow()
    import keras

    from tapescope_trainers import user_code

    scalable = ", ".join(preset for preset in flags.PRESETS if preset not in flags.EXAMPLE_PRESETS)
    if not user_code.is_reference(model) and model not in flags.PRESETS:
        raise ValueError(f"--model must be {scalable} or package.module:build; got {model}")
    if model in flags.EXAMPLE_PRESETS:
        raise ValueError(f"--model={model} has a fixed width: use {scalable} or your own function")
    if loss is not None and model in flags.PRESETS:
        raise ValueError(f"--loss={loss} is of your own model: leave it out, or name a function by --model")
    values: dict[int, list[Any]] = {}
    names: list[str] = []
    for width in widths:
        for seed in range(seeds):
            keras.backend.clear_session()  # the same names at all widths
            keras.utils.set_random_seed(seed)
            train, x, y = _prepare(model, data, width_argument, width, seed, batch_size, optimizer, learning_rate, loss)
            try:
                found, rms = _measure(train, x, y, steps)
            except Exception as error:
                failure = user_code.find_failure(error)
                if failure is None:
                    raise
                raise ValueError(failure) from error
            names = names or found
            if len(found) != len(names):
                raise ValueError(f"--model={model} must have as many layers at all widths; got {len(found)} at {width}")
            values.setdefault(width, []).append(rms)
    medians = np.array([np.median(values[width], axis=0) for width in widths])  # [W, 2, L]
    layers = [judge(name, widths, *medians[:, :, i].T.tolist()) for i, name in enumerate(names)]
    return Coordinates(model, tuple(widths), steps, tuple(layers))


class _Training(NamedTuple):
    model: Any
    optimizer: Any
    loss: Callable[[Any, Any], Any]


def _prepare(
    model: str,
    data: str,
    width_argument: str,
    width: int,
    seed: int,
    batch_size: int,
    optimizer: str | None,
    learning_rate: float,
    loss: str | None,
) -> tuple[_Training, Any, Any]:
    import tensorflow as tf

    from tapescope_trainers import user_code
    from tapescope_trainers.training import data as datasets
    from tapescope_trainers.training import models, objective, step, user_data

    own_data = user_code.is_reference(data)
    if not user_code.is_reference(model):
        examples = datasets.from_arrays(data, user_data.load(data, 0)) if own_data else datasets.load(data)
        built = models.build(model, examples.shape, examples.classes, width=width)
        batches = datasets.batches(examples, batch_size, seed=0)

        def mean_loss(y, outputs):
            return tf.reduce_mean(step.cross_entropy(y, outputs))
    else:
        loaded = user_data.load(data, 0) if own_data else user_data.from_builtin(datasets.load(data))
        built = objective.build_model(model, {width_argument: width}, "none")
        mean_loss = objective.make(built, loss, None, loaded).mean
        batches = user_data.batches(loaded, batch_size, seed=0)
    x, y = next(iter(batches))
    chosen: Any = getattr(built, "optimizer", None) if optimizer is None else None
    if chosen is None:
        chosen = _make_optimizer(optimizer or "adam", learning_rate)
    chosen.build(built.trainable_variables)
    return _Training(built, chosen, mean_loss), x, y


def _make_optimizer(name: str, learning_rate: float) -> Any:
    import keras

    try:
        optimizer: Any = keras.optimizers.get(name)
    except (ValueError, TypeError):
        raise ValueError(f"--optimizer must be the name of an optimizer of Keras, such as adam; got {name}") from None
    optimizer.learning_rate = learning_rate
    return optimizer


def _measure(training: _Training, x: Any, y: Any, steps: int) -> tuple[list[str], np.ndarray]:
    """Return the names of the layers, and the root mean squares of their outputs and of the changes, [2, L]."""
    import tensorflow as tf

    import tapescope

    model, optimizer, loss = training
    probe = tapescope.Probe(model)
    names, before = _outputs(probe, model, x)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        pairs = [(g, v) for g, v in zip(gradients, model.trainable_variables, strict=True) if g is not None]
        optimizer.apply([g for g, _ in pairs], [v for _, v in pairs])
    _, after = _outputs(probe, model, x)
    rms = [np.sqrt(np.mean(np.square(a))) for a in after]
    changes = [np.sqrt(np.mean(np.square(a - b))) for a, b in zip(after, before, strict=True)]
    return names, np.array([rms, changes])


def _outputs(probe: Any, model: Any, x: Any) -> tuple[list[str], list[np.ndarray]]:
    """Return the names and the outputs of the layers that a Probe measures, without dropout."""
    with probe.tape(True) as tape:
        model(x, training=False)
    calls: Any = tape.calls
    if not calls:
        raise ValueError("the model must have a layer with an activation, which is what is compared; it has none")
    return [call.name for call in calls], [np.asarray(call.a, np.float64) for call in calls]


def write_figure(coordinates: Coordinates, path: str | os.PathLike[str]) -> None:
    """Write a page with both quantities of each layer by width. It needs no network.

    Raises:
        OSError: The page cannot be written.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, subplot_titles=("RMS of the output", "RMS of its change"), shared_xaxes=True)
    colours = ("#12b5cb", "#e52592", "#f9ab00", "#9334e6", "#7cb342", "#e8710a", "#425066")
    for i, layer in enumerate(coordinates.layers):
        for column, values in ((1, layer.output), (2, layer.change)):
            figure.add_trace(
                go.Scatter(
                    x=coordinates.widths,
                    y=values,
                    name=layer.layer,
                    legendgroup=layer.layer,
                    showlegend=column == 1,
                    mode="lines+markers",
                    line={"color": colours[i % len(colours)], "dash": "solid" if layer.verdict == "ok" else "dot"},
                ),
                1,
                column,
            )
    figure.update_xaxes(type="log", title="width", tickvals=coordinates.widths)
    figure.update_yaxes(type="log")
    figure.update_layout(title=str(coordinates).splitlines()[-1])
    figure.write_html(os.fspath(path), include_plotlyjs=True)
