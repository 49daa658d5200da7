"""Keras' shortcut to the logits: what `compile` and `fit` train for the document's Example 1, in place of its loss.

Given the output of a softmax or sigmoid layer, Keras' categorical cross-entropy uses the softmax of the logits behind
it. For Example 1 that is another function: its sigmoid is neither in the loss nor in the gradient.
"""

from typing import Any, NamedTuple

import numpy as np


class Shortcut(NamedTuple):
    """Relative distance of the step that `fit` takes from the gradient of two losses; 0 means that it follows one."""

    from_softmax: float
    """Cross-entropy of the softmax of the logits: the sigmoid is left out."""
    from_sigmoid: float
    """Cross-entropy of the sigmoid's outputs, normalised: the network as written."""


def measure() -> Shortcut:
    """Compare one step of `fit` with two gradients.

    Gradient descent at rate 1: the weights before minus the weights after are the gradient that `fit` used.
    """
    import keras
    import tensorflow as tf

    from tapescope_trainers.training import data, models, step

    keras.utils.set_random_seed(0)
    examples = data.load("digits")
    model: Any = models.build("relu_sigmoid", examples.shape, examples.classes)
    x, y = next(iter(data.batches(examples, 256, seed=0)))
    before = model.get_weights()
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="categorical_crossentropy")
    model.fit(x, y, batch_size=len(x), epochs=1, verbose=0)
    used = np.concatenate([np.ravel(a - b) for a, b in zip(before, model.get_weights(), strict=True)])
    model.set_weights(before)

    def distance(loss) -> float:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss())
        gradients: Any = tape.gradient(value, model.trainable_variables)
        expected = np.concatenate([np.ravel(gradient) for gradient in gradients])
        return float(np.linalg.norm(used - expected) / np.linalg.norm(expected))

    def logits():
        hidden, output = model.layers
        return hidden(x) @ output.kernel + output.bias

    return Shortcut(
        from_softmax=distance(lambda: tf.nn.softmax_cross_entropy_with_logits(y, logits())),
        from_sigmoid=distance(lambda: step.cross_entropy(y, model(x))),
    )
