"""Networks whose training is timed, and the programs that train them."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tapescope
from tapescope.capture import layer_hooks
from tapescope_trainers.training import models

layers = keras.layers


def mlp():
    """Build the MLP; return it and the shape of a batch, as all functions of `NETWORKS` do."""
    hidden = [layers.Dense(512, "relu") for _ in range(4)]
    return keras.Sequential([keras.Input((784,)), *hidden, _output()]), (128, 784)


def cnn():
    """Build six convolutions, with pooling after every second one."""
    blocks = []
    for i, width in enumerate((32, 32, 64, 64, 128, 128)):
        blocks.append(layers.Conv2D(width, 3, padding="same", activation="relu"))
        if i % 2 == 1:
            blocks.append(layers.MaxPooling2D())
    return keras.Sequential([keras.Input((32, 32, 3)), *blocks, layers.Flatten(), _output()]), (64, 32, 32, 3)


def resnet():
    """Build the trainers' residual network."""
    return models.build("resnet", (16, 16), 10, width=32), (64, 256)


def transformer():
    """Build the trainers' transformer."""
    return models.build("transformer", (32, 32), 10, width=128), (64, 1024)


def embedding():
    """Build an embedding of a million rows, of which a step reads 5,120, and one dense layer."""
    rows = 1_000_000
    table = [layers.Rescaling(rows), layers.Embedding(rows, 16), layers.GlobalAveragePooling1D()]
    return keras.Sequential([keras.Input((20,)), *table, layers.Dense(64, "relu"), _output()]), (256, 20)


def chain(depth):
    """Build that many dense layers of 64 units."""
    hidden = [layers.Dense(64, "relu", kernel_initializer="he_normal") for _ in range(depth)]
    return keras.Sequential([keras.Input((64,)), *hidden, _output()]), (64, 64)


def _output():
    return layers.Dense(10, "softmax", dtype="float32")


NETWORKS = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "transformer": transformer, "embedding": embedding}
TITLES = {
    "mlp": "MLP 784-512x4-10, batch 128",
    "cnn": "CNN 32x32, six layers, batch 64",
    "resnet": "residual network, 16x16, batch 64",
    "transformer": "transformer, 32 rows, width 128, batch 64",
    "embedding": "embedding of 1,000,000 rows, batch 256 of 20",
}


class Trained:
    """A model with its optimizer and one batch.

    Args:
        name: A key of `NETWORKS`, or `chainN` for N layers of 64 units.
        dtype: `float32`, or the narrow type of a mixed precision policy.
    """

    def __init__(self, name: str, dtype: str = "float32"):
        keras.utils.set_random_seed(0)
        keras.mixed_precision.set_dtype_policy("float32" if dtype == "float32" else f"mixed_{dtype}")
        if name.startswith("chain"):
            self.model, shape = chain(int(name.removeprefix("chain")))
        else:
            self.model, shape = NETWORKS[name]()
        self.optimizer: Any = keras.optimizers.Adam(1e-4)
        self.optimizer.build(self.model.trainable_variables)
        rng = np.random.default_rng(0)
        self.x = tf.constant(rng.random(shape), tf.float32)
        self.labels = rng.integers(0, 10, shape[0])
        self.y = tf.constant(np.eye(10)[self.labels], tf.float32)

    def loss(self, output) -> Any:
        """Return the mean cross-entropy of the batch."""
        each: Any = keras.losses.categorical_crossentropy(self.y, tf.cast(output, tf.float32))
        return tf.reduce_mean(each)

    def apply(self, tape, loss) -> Any:
        """Apply the gradients and return them."""
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return gradients

    def plain(self, jit=False):
        """Return `step()`, a step as users write it without a probe."""

        @tf.function(jit_compile=jit)
        def step():
            with tf.GradientTape() as tape:
                loss = self.loss(self.model(self.x, training=True))
            self.apply(tape, loss)
            return loss

        return step

    def probed(self, jit=False, **options):
        """Return `step(measure)`, whose result is the loss and the reading, and its Probe."""
        probe = tapescope.Probe(self.model, strict=True, **options)

        @tf.function(jit_compile=jit)
        def step(measure):
            with probe.tape(measure) as tape:
                loss = self.loss(self.model(self.x, training=True))
            self.apply(tape, loss)
            return loss, tape.reading()

        return step, probe

    def summaries(self, logdir):
        """Return `step()` that writes the same quantities through `tf.summary`, each under its own tag."""
        writer = tf.summary.create_file_writer(logdir)
        chosen = [layer for layer in self.model.layers if layer_hooks.has_activation(layer)]
        outputs = keras.Model(self.model.inputs, [*(layer.output for layer in chosen), *self.model.outputs])

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                *activations, output = outputs(self.x, training=True)
                loss = self.loss(output)
            gradients = self.apply(tape, loss)
            with writer.as_default(step=tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int64)):
                for i, tensor in enumerate([*gradients, *activations]):
                    tensor = tf.cast(tensor, tf.float32)
                    tf.summary.histogram(f"histogram/{i}", tensor)
                    for name, value in (("norm", tf.norm(tensor)), ("mean", tf.reduce_mean(tensor))):
                        tf.summary.scalar(f"{name}/{i}", value)
                    tf.summary.scalar(f"zero/{i}", tf.math.zero_fraction(tensor))
            return loss

        return step
