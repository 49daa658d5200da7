"""Short recorded trainings of a dense chain, which the tests of the analysis compare."""

import keras
import numpy as np
from scripts.testbed.steps import measured

import tapescope

RNG = np.random.default_rng(4)
X = RNG.normal(size=[32, 6]).astype(np.float32)
Y = RNG.normal(size=[32, 2]).astype(np.float32)


def record_run(logdir, changed_layer=None, steps=10, batch=32, every=2, model_name="chain", widths=(6, 6, 6, 2)):
    """Train a dense chain eagerly, and return its run.

    Args:
        logdir: Directory of the run.
        changed_layer: Index of a layer that gets another initializer.
        steps: Number of steps.
        batch: Examples per step.
        every: Steps between two records.
        model_name: Name of the model; Keras writes it before the names of the variables.
        widths: Units of each layer.
    """
    keras.utils.set_random_seed(0)
    kinds = ("relu", "tanh", "sigmoid", "linear")
    dense = [keras.layers.Dense(n, kinds[i], name=f"layer{i}") for i, n in enumerate(widths)]
    model = keras.Sequential([keras.Input((6,)), *dense], name=model_name)
    if changed_layer is not None:
        dense[changed_layer].kernel.assign(keras.initializers.HeNormal(99)([6, 6]))
    probe = tapescope.Probe(model, window_examples=64)
    optimizer = keras.optimizers.SGD(0.05)
    with tapescope.Recorder(logdir, probe) as recorder:
        for n in range(steps):
            step = measured(
                probe,
                lambda: keras.ops.mean((model(X[:batch]) - Y[:batch]) ** 2),
                model.trainable_variables,
                optimizer,
                measure=n % every == 0,
            )
            if step.reading is not None:
                recorder.write(n, step.reading, {"loss": step.loss})
    return tapescope.Run(logdir)
