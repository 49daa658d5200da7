"""What the document's own code trains: Keras' compile and fit, on Example 1, against the loss that it is meant to have.

Given the output of a softmax or a sigmoid layer, Keras' categorical cross-entropy takes the logits behind it and the
softmax of these. For Example 1 that is another function: its sigmoid is neither in the loss nor in the gradient.
"""

from typing import Any, NamedTuple

import numpy as np


class Shortcut(NamedTuple):
    """Relative distance of the step that `fit` takes from the gradient of two losses: 0 means it follows that one."""

    from_softmax: float
    """Cross-entropy of the softmax of the logits: the sigmoid is left out."""
    from_sigmoid: float
    """Cross-entropy of the sigmoid's outputs, normalised: the network as written."""


def measure() -> Shortcut:
    """One step of plain gradient descent at rate 1 by `fit`: weights before minus weights after is the gradient."""
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
    taken = [a - b for a, b in zip(before, model.get_weights(), strict=True)]
    model.set_weights(before)

    def distance(loss) -> float:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss())
        gradients: Any = tape.gradient(value, model.trainable_variables)
        apart = np.concatenate([np.ravel(t - g) for t, g in zip(taken, gradients, strict=True)])
        return float(np.linalg.norm(apart) / np.linalg.norm(np.concatenate([np.ravel(g) for g in gradients])))

    def logits():
        hidden, output = model.layers
        return hidden(x) @ output.kernel + output.bias

    return Shortcut(
        distance(lambda: tf.nn.softmax_cross_entropy_with_logits(y, logits())),
        distance(lambda: step.cross_entropy(y, model(x))),
    )
