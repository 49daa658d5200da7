"""What measuring costs: ratios to the plain step, all programs interleaved in one run, medians.

    python bench/overhead.py [--repeats=40] [--json=FILE]

Programs, on an MLP, a CNN, a residual network and a transformer: the plain step; every step measured, with and without
histograms; and the same quantities through tf.summary inside the step. With XLA: all but the last.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import tapescope

layers = keras.layers


def mlp():
    hidden = [layers.Dense(512, "relu") for _ in range(4)]
    return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10, "softmax")]), (128, 784)


def cnn():
    blocks = []
    for i, width in enumerate((32, 32, 64, 64, 128, 128)):
        blocks.append(layers.Conv2D(width, 3, padding="same", activation="relu"))
        blocks += [layers.MaxPooling2D()] * (i % 2)
    stack = [keras.Input((32, 32, 3)), *blocks, layers.Flatten(), layers.Dense(10, "softmax")]
    return keras.Sequential(stack), (64, 32, 32, 3)


def resnet():
    from tapescope_trainers import models

    return models.build("resnet", (16, 16), 10, width=32), (64, 256)


def transformer():
    from tapescope_trainers import models

    return models.build("transformer", (32, 32), 10, width=128), (64, 1024)


NETWORKS = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "transformer": transformer}


def programs(make, jit):
    """By name, a function that runs one step and waits for it."""
    keras.utils.set_random_seed(0)
    model, shape = make()
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.random(shape), tf.float32)
    y = tf.constant(np.eye(10)[rng.integers(0, 10, shape[0])], tf.float32)
    writer = tf.summary.create_file_writer(tempfile.mkdtemp())
    outputs = keras.Model(model.inputs, [layer.output for layer in model.layers if hasattr(layer, "activation")])

    def loss_of(out):
        return tf.reduce_mean(keras.losses.categorical_crossentropy(y, out))

    def measured(histograms):
        probe = tapescope.Probe(model, histograms=histograms)

        @tf.function(jit_compile=jit)
        def step(measure):
            with probe.tape(measure) as tape:
                loss = loss_of(model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss, tape.reading()

        return step

    @tf.function
    def summaries():
        with tf.GradientTape() as tape:
            seen = outputs(x, training=True)
            loss = loss_of(seen[-1])
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        with writer.as_default(step=tf.cast(optimizer.iterations.value, tf.int64)):
            for i, tensor in enumerate([*gradients, *seen]):
                tf.summary.histogram(f"histogram/{i}", tensor)
                for name, value in (("norm", tf.norm(tensor)), ("mean", tf.reduce_mean(tensor))):
                    tf.summary.scalar(f"{name}/{i}", value)
                tf.summary.scalar(f"zero/{i}", tf.math.zero_fraction(tensor))
        return loss, None

    full, lean = measured(True), measured(False)
    table = {
        "plain": lambda: full(False),
        "measured, no histograms": lambda: lean(True),
        "measured, all": lambda: full(True),
    }
    return table if jit else table | {"tf.summary in the step": summaries}


def measure(make, jit, repeats):
    """Milliseconds by program: to the first result (tracing, compiling), and the median of interleaved steps."""
    table, first = programs(make, jit), {}
    for name, run in table.items():
        start = time.perf_counter()
        run()[0].numpy()
        first[name] = 1000 * (time.perf_counter() - start)
    times = {name: [] for name in table}
    for _ in range(repeats):
        for name, run in table.items():
            start = time.perf_counter()
            run()[0].numpy()
            times[name].append(1000 * (time.perf_counter() - start))
    return {
        name: {"first_ms": first[name], "ms": statistics.median(t), "ratio": statistics.median(t) / plain}
        for plain in [statistics.median(times["plain"])]
        for name, t in times.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--json")
    given = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}, Keras {keras.__version__}"
    print(f"{machine}; every step measured; medians of {given.repeats} interleaved steps\n")
    print("| network | program | ms | ratio to plain | at every 10th step | first call, s |\n|---|---|---|---|---|---|")
    results = {}
    for jit in (False, True):
        for name in given.networks.split(","):
            label = f"{name}{', XLA' if jit else ''}"
            results[label] = measure(NETWORKS[name], jit, given.repeats)
            for program, r in results[label].items():
                tenth = 1 + (r["ratio"] - 1) / 10
                numbers = f"{r['ms']:.2f} | {r['ratio']:.3f} | {tenth:.3f} | {r['first_ms'] / 1e3:.1f}"
                print(f"| {label} | {program} | {numbers} |", flush=True)
            keras.utils.clear_session()
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine, "repeats": given.repeats, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
