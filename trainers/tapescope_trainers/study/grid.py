"""The set-ups of the study: a network, its initial weights, its training; and the Keras model of each."""

from typing import Any, NamedTuple

from tapescope_trainers.flags import EXAMPLE_PRESETS


class Setup(NamedTuple):
    """Everything that a training depends on, except the seed and the number of steps."""

    network: str
    """A preset of an Example, or the activations of the hidden layers in order, as in `relu-sigmoid`."""
    repeat: int = 1
    """How often the hidden layers are repeated."""
    width: int = 64
    initializer: str = "glorot_uniform"
    gain: float = 1.0
    """Factor on the initial weights of the hidden layers."""
    input_scale: float = 1.0
    """Factor on the examples, which are 0 to 1."""
    optimizer: str = "adam"
    learning_rate: float = 1e-3

    @property
    def hidden(self) -> tuple[str, ...]:
        """Activations of the hidden layers; empty for an Example."""
        return () if self.network in EXAMPLE_PRESETS else tuple(self.network.split("-")) * self.repeat

    @property
    def name(self) -> str:
        """The name of the run's directory: the network, and what differs from the defaults."""
        network = self.network
        if self.network in EXAMPLE_PRESETS:
            network = f"example-{1 + EXAMPLE_PRESETS.index(self.network)}-{self.network}"
        if self.repeat > 1:
            network += f"_x{self.repeat}"
        parts = [network]
        labels = {"width": "w", "initializer": "", "gain": "gain", "input_scale": "in"}
        for field, label in labels.items():
            value = getattr(self, field)
            if value != self._field_defaults[field]:
                parts.append(label + (value if isinstance(value, str) else f"{value:g}"))
        return "_".join([*parts, f"{self.optimizer}{self.learning_rate:g}"])


def build(setup: Setup, shape: tuple[int, ...], classes: int) -> Any:
    """Return the Keras model of a set-up, with new weights.

    Args:
        setup: The set-up.
        shape: Shape of one example.
        classes: Number of outputs.
    """
    import keras  # here, because TensorFlow takes seconds to import and the parent of the workers needs it late

    from tapescope_trainers.training import models

    if setup.network in EXAMPLE_PRESETS:
        return models.build(setup.network, shape, classes)
    model = models.build(
        "mlp", shape, classes, depth=len(setup.hidden), width=setup.width, initializer=setup.initializer
    )
    # An mlp has one activation for all layers; these may differ.
    for layer, activation in zip(model.layers[1:], setup.hidden, strict=False):
        layer.activation = keras.activations.get(activation)
        layer.kernel.assign(setup.gain * layer.kernel)
    return model
