"""One set-up of the study: which network, how it starts, how it trains; and the Keras model that it means."""

from typing import Any, NamedTuple

from tapescope_trainers.flags import GIVEN_PRESETS


class Setup(NamedTuple):
    """Everything that a training depends on but the seed and the number of steps."""

    network: str
    """A given network, or the activations of its hidden layers in order, as in `relu-sigmoid`, before a softmax."""
    repeat: int = 1
    """How often the hidden layers are repeated."""
    width: int = 64
    initializer: str = "glorot_uniform"
    gain: float = 1.0
    """What the initial weights of the hidden layers are multiplied with."""
    input_scale: float = 1.0
    """What the examples, 0 to 1, are multiplied with."""
    optimizer: str = "adam"
    learning_rate: float = 1e-3

    @property
    def hidden(self) -> tuple[str, ...]:
        """Activations of the hidden layers; of a given network none."""
        return () if self.network in GIVEN_PRESETS else tuple(self.network.split("-")) * self.repeat

    @property
    def name(self) -> str:
        """The run's directory: the network, and what differs from the defaults."""
        given = f"example-{1 + GIVEN_PRESETS.index(self.network)}-" if self.network in GIVEN_PRESETS else ""
        parts = [given + self.network + (f"_x{self.repeat}" if self.repeat > 1 else "")]
        labels = {"width": "w", "initializer": "", "gain": "gain", "input_scale": "in"}
        for field, label in labels.items():
            value = getattr(self, field)
            if value != self._field_defaults[field]:
                parts.append(label + (value if isinstance(value, str) else f"{value:g}"))
        return "_".join([*parts, f"{self.optimizer}{self.learning_rate:g}"])


def build(setup: Setup, shape: tuple[int, ...], classes: int) -> Any:
    """The Keras model, with fresh weights."""
    import keras  # TensorFlow takes seconds to import: the parent of the workers does without until they are done

    from tapescope_trainers.training import models

    if setup.network in GIVEN_PRESETS:
        return models.build(setup.network, shape, classes)
    # An mlp whose layers may differ in their activation.
    model = models.build(
        "mlp", shape, classes, depth=len(setup.hidden), width=setup.width, initializer=setup.initializer
    )
    for layer, activation in zip(model.layers[1:], setup.hidden, strict=False):
        layer.activation = keras.activations.get(activation)
        layer.kernel.assign(setup.gain * layer.kernel)
    return model
