"""WGAN-GP: a `train_step` with two networks, two optimizers and a gradient penalty, trained with `fit`.

Based on Keras' example "WGAN-GP overriding Model.train_step" (keras.io/examples/generative/wgan_gp), with points on a
ring as data. The tapes of `train_step` are unchanged: Monitor finds them and reads each layer from the tape that trains
it. Lines that tapescope changes are marked with <--. To run it: python examples/wgan_gp.py [--plain]
"""

import sys

import keras
import numpy as np
import tensorflow as tf

import tapescope

NOISE = 4


def make_network(name, inputs, outputs):
    hidden = [keras.layers.Dense(32, activation="leaky_relu", name=f"hidden_{i}") for i in (1, 2)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, keras.layers.Dense(outputs, name="out")], name=name)


class WGAN(keras.Model):
    def __init__(self, critic, generator, critic_steps=3, penalty=10.0):
        super().__init__()
        self.critic = critic
        self.generator = generator
        self.critic_steps = critic_steps
        self.penalty = penalty
        self.seed = keras.random.SeedGenerator(1)  # a variable, because tf.random has a state for each compiled program

    def compile(self, critic_optimizer, generator_optimizer):
        super().compile(jit_compile=False)  # XLA rounds each program differently
        self.critic_optimizer = critic_optimizer
        self.generator_optimizer = generator_optimizer

    def gradient_penalty(self, real, fake):
        between = real + keras.random.uniform([tf.shape(real)[0], 1], seed=self.seed) * (fake - real)
        with tf.GradientTape() as tape:
            tape.watch(between)
            scores = self.critic(between, training=True)
        norm = tf.norm(tape.gradient(scores, between), axis=1)
        return tf.reduce_mean((norm - 1) ** 2)

    def train_step(self, real):
        noise_shape = [tf.shape(real)[0], NOISE]
        for _ in range(self.critic_steps):
            with tf.GradientTape() as tape:
                fake = self.generator(keras.random.normal(noise_shape, seed=self.seed), training=True)
                difference = self.critic(fake, training=True) - self.critic(real, training=True)
                critic_loss = tf.reduce_mean(difference) + self.penalty * self.gradient_penalty(real, fake)
            gradients = tape.gradient(critic_loss, self.critic.trainable_variables)
            self.critic_optimizer.apply(gradients, self.critic.trainable_variables)
        with tf.GradientTape() as tape:
            fake = self.generator(keras.random.normal(noise_shape, seed=self.seed), training=True)
            generator_loss = -tf.reduce_mean(self.critic(fake, training=True))
        gradients = tape.gradient(generator_loss, self.generator.trainable_variables)
        self.generator_optimizer.apply(gradients, self.generator.trainable_variables)
        return {"critic_loss": critic_loss, "generator_loss": generator_loss}


def train(measure=True, epochs=100, logdir="runs/wgan_gp"):
    """Train; return the model, the critic's loss of each epoch, and the mean distance of its points from the ring."""
    keras.utils.set_random_seed(1)
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 1024)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype("float32")
    wgan = WGAN(make_network("critic", 2, 1), make_network("generator", NOISE, 2))
    wgan.compile(*(keras.optimizers.Adam(2e-3, beta_1=0.5, beta_2=0.9) for _ in range(2)))
    callbacks = [tapescope.Monitor(logdir)] if measure else []  # <--
    history = wgan.fit(points, batch_size=128, epochs=epochs, verbose=0, callbacks=callbacks)  # <-- was: no callbacks
    generated = wgan.generator(tf.random.stateless_normal([512, NOISE], [1, 2]))
    return wgan, history.history["critic_loss"], float(tf.reduce_mean(tf.abs(tf.norm(generated, axis=1) - 1)))


if __name__ == "__main__":
    print("mean distance from the ring", train(measure="--plain" not in sys.argv)[-1])
