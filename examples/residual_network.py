"""A small ResNet in a custom loop, with gradients clipped by their global norm, on generated 16 x 16 images.

Based on Keras' example "Trains a ResNet on the CIFAR10 dataset" (keras.io/zh/examples/cifar10_resnet), its first
version with two blocks. Lines that tapescope changes are marked with <--.
To run it: python examples/residual_network.py [--plain]
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tapescope

CLASSES = 4


def make_data(images=512):
    """Generate noisy images of stripes; the class is the direction of the stripes."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:16, :16]
    labels = rng.integers(CLASSES, size=images)
    angle = np.pi * labels / CLASSES
    phase = rng.uniform(0, 6, images)
    along = np.cos(angle)[:, None, None] * row + np.sin(angle)[:, None, None] * column
    stripes = np.sin(along + phase[:, None, None])[..., None] * rng.normal(1, 0.3, [images, 1, 1, 3])
    return (stripes + rng.normal(size=[images, 16, 16, 3])).astype("float32"), labels


def residual_unit(x, filters, strides=1, activation="relu"):
    x = layers.Conv2D(filters, 3, strides, padding="same", kernel_regularizer=keras.regularizers.L2(1e-4))(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def make_model():
    inputs = keras.Input((16, 16, 3))
    x = residual_unit(inputs, 8)
    for filters, strides in ((8, 1), (16, 2)):
        y = residual_unit(residual_unit(x, filters, strides), filters, activation=None)
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides, padding="same", name="shortcut")(x)
        x = layers.Activation("relu")(layers.add([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classes")(x))


def train(measure=True, epochs=8, logdir="runs/resnet"):
    """Train; return the model, the loss of each step, and the accuracy on the last 128 images."""
    keras.utils.set_random_seed(1)
    x, y = make_data()
    model = make_model()
    batches = tf.data.Dataset.from_tensor_slices((x[:-128], y[:-128])).shuffle(384, seed=1).batch(32)
    optimizer = keras.optimizers.Adam(3e-3)
    loss_fn = keras.losses.SparseCategoricalCrossentropy()

    probe = tapescope.Probe(model)  # <--
    when = tapescope.every(10) if measure else tapescope.never()  # <--

    @tf.function
    def train_step(x, y, measure):
        with probe.tape(measure) as tape:  # <-- was: with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True)) + tf.add_n(model.losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        clipped, _ = tf.clip_by_global_norm(gradients, 1.0)
        optimizer.apply(clipped, model.trainable_variables)
        return loss, tape.reading(applied=clipped)  # <-- was: return loss

    losses = []
    with tapescope.Recorder(logdir, probe, when) as recorder:  # <--
        for _ in range(epochs):
            for batch in batches:
                loss, reading = train_step(*batch, when(len(losses)))
                recorder.write(len(losses), reading, scalars={"loss": loss})  # <--
                losses.append(float(loss))
    right = np.argmax(model(x[-128:], training=False), axis=1) == y[-128:]
    return model, losses, float(right.mean())


if __name__ == "__main__":
    print("accuracy", train(measure="--plain" not in sys.argv)[-1])
