"""Variational autoencoder with a custom `train_step`, trained with `fit` on handwritten digits.

Based on Keras' example "Variational AutoEncoder" (keras.io/examples/generative/vae). Lines that tapescope changes are
marked with <--. To run it: python examples/variational_autoencoder.py [--plain]
"""

import sys

import keras
import tensorflow as tf
from keras import layers, ops
from sklearn.datasets import load_digits

import tapescope

LATENT = 2


class Sampling(layers.Layer):
    """A layer that draws z from the normal distribution that the encoder describes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_var = inputs
        return mean + ops.exp(0.5 * log_var) * keras.random.normal(ops.shape(mean), seed=self.seed_generator)


def make_encoder():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, activation="relu", strides=2, padding="same", name="conv_1")(inputs)
    x = layers.Conv2D(16, 3, activation="relu", strides=2, padding="same", name="conv_2")(x)
    x = layers.Dense(16, activation="relu", name="dense")(layers.Flatten()(x))
    mean = layers.Dense(LATENT, name="z_mean")(x)
    log_var = layers.Dense(LATENT, name="z_log_var")(x)
    return keras.Model(inputs, [mean, log_var, Sampling(name="z")([mean, log_var])], name="encoder")


def make_decoder():
    inputs = keras.Input((LATENT,))
    x = layers.Dense(2 * 2 * 16, activation="relu", name="dense")(inputs)
    x = layers.Reshape((2, 2, 16))(x)
    x = layers.Conv2DTranspose(16, 3, activation="relu", strides=2, padding="same", name="conv_1")(x)
    x = layers.Conv2DTranspose(8, 3, activation="relu", strides=2, padding="same", name="conv_2")(x)
    outputs = layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same", name="pixels")(x)
    return keras.Model(inputs, outputs, name="decoder")


class VAE(keras.Model):
    """An encoder and a decoder; the loss is the reconstruction loss plus the Kullback-Leibler divergence."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.trackers = [keras.metrics.Mean(name=name) for name in ("loss", "reconstruction_loss", "kl_loss")]

    @property
    def metrics(self):
        return self.trackers

    def train_step(self, data):
        with tf.GradientTape() as tape:  # unchanged: Monitor finds this tape
            mean, log_var, z = self.encoder(data, training=True)
            pixels = keras.losses.binary_crossentropy(data, self.decoder(z, training=True))
            reconstruction = ops.mean(ops.sum(pixels, axis=(1, 2)))
            kl = ops.mean(ops.sum(-0.5 * (1 + log_var - ops.square(mean) - ops.exp(log_var)), axis=1))
            loss = reconstruction + kl
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        for tracker, value in zip(self.trackers, (loss, reconstruction, kl), strict=True):
            tracker.update_state(value)
        return {m.name: m.result() for m in self.metrics}


def train(measure=True, epochs=15, logdir="runs/vae"):
    """Train; return the model, the loss of each epoch, and the last loss."""
    keras.utils.set_random_seed(1)
    images = (load_digits().images[..., None] / 16).astype("float32")
    vae = VAE(make_encoder(), make_decoder())
    vae.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=False)  # XLA rounds each program differently
    callbacks = [tapescope.Monitor(logdir)] if measure else []  # <--
    history = vae.fit(images, epochs=epochs, batch_size=128, verbose=0, callbacks=callbacks)  # <-- was: no callbacks
    return vae, history.history["loss"], history.history["loss"][-1]


if __name__ == "__main__":
    print("loss", train(measure="--plain" not in sys.argv)[-1])
