"""DCGAN: a convolutional generator and discriminator, each with its optimizer and tape, on handwritten digits.

Based on TensorFlow's tutorial "Deep Convolutional Generative Adversarial Network"
(tensorflow.org/tutorials/generative/dcgan). One probe has both networks, and each layer is read from the tape that
trains it. Lines that tapescope changes are marked with <--. To run it: python examples/dcgan.py [--plain]
"""

import sys

import keras
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

import tapescope

BATCH = 64
NOISE = 32


def make_generator():
    return keras.Sequential(
        [
            keras.Input((NOISE,)),
            layers.Dense(2 * 2 * 32, use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Reshape((2, 2, 32)),
            layers.Conv2DTranspose(16, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(1, 3, strides=2, padding="same", use_bias=False, activation="tanh"),
        ],
        name="generator",
    )


def make_discriminator():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, strides=2, padding="same"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Conv2D(32, 3, strides=2, padding="same"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(1),
        ],
        name="discriminator",
    )


def train(measure=True, epochs=12, logdir="runs/dcgan"):
    """Train; return both networks, both losses of each step, and the share of fakes that the discriminator detects."""
    keras.utils.set_random_seed(1)
    images = (load_digits().images[..., None] / 8 - 1).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices(images).shuffle(2000, seed=1).batch(BATCH, drop_remainder=True)
    generator = make_generator()
    discriminator = make_discriminator()
    generator_optimizer = keras.optimizers.Adam(1e-3)
    discriminator_optimizer = keras.optimizers.Adam(1e-3)
    noise_seed = keras.random.SeedGenerator(1)  # a variable, because tf.random has a state for each compiled program
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    probe = tapescope.Probe([generator, discriminator])  # <--
    when = tapescope.every(20) if measure else tapescope.never()  # <--

    @tf.function
    def train_step(images, measure):
        noise = keras.random.normal([BATCH, NOISE], seed=noise_seed)
        # was: with tf.GradientTape() as gen_tape, tf.GradientTape() as disc_tape:
        with probe.tape(measure) as gen_tape, probe.tape(measure) as disc_tape:  # <--
            generated = generator(noise, training=True)
            real = discriminator(images, training=True)
            fake = discriminator(generated, training=True)
            gen_loss = cross_entropy(tf.ones_like(fake), fake)
            disc_loss = cross_entropy(tf.ones_like(real), real) + cross_entropy(tf.zeros_like(fake), fake)
        gen_gradients = gen_tape.gradient(gen_loss, generator.trainable_variables)
        disc_gradients = disc_tape.gradient(disc_loss, discriminator.trainable_variables)
        generator_optimizer.apply(gen_gradients, generator.trainable_variables)
        discriminator_optimizer.apply(disc_gradients, discriminator.trainable_variables)
        detected = tf.reduce_mean(tf.cast(fake < 0, tf.float32))
        return gen_loss, disc_loss, detected, gen_tape.reading(disc_tape)  # <-- the last one is new

    losses = []
    with tapescope.Recorder(logdir, probe, when) as recorder:  # <--
        for _ in range(epochs):
            for batch in batches:
                step = len(losses)
                gen_loss, disc_loss, detected, reading = train_step(batch, when(step))
                losses.append((float(gen_loss), float(disc_loss)))
                recorder.write(step, reading, scalars={"loss": gen_loss, "loss_discriminator": disc_loss})  # <--
    return (generator, discriminator), losses, float(detected)


if __name__ == "__main__":
    print("share of fakes that the discriminator detects:", train(measure="--plain" not in sys.argv)[-1])
