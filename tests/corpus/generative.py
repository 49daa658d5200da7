"""Programs that generate: adversarial networks, autoencoders, diffusion, flows."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.corpus.program import Fit, Loop, program, random

IMAGES = random(32, 8, 8, 1)


def generator(latent=4):
    return keras.Sequential(
        [
            keras.Input((latent,)),
            layers.Dense(4 * 4 * 8, name="g_dense"),
            layers.Reshape((4, 4, 8)),
            layers.BatchNormalization(),
            layers.LeakyReLU(name="g_leaky"),
            layers.Conv2DTranspose(1, 4, 2, "same", activation="tanh", name="g_image"),
        ],
        name="generator",
    )


def discriminator(channels=1, activation=None):
    return keras.Sequential(
        [
            keras.Input((8, 8, channels)),
            layers.Conv2D(8, 3, 2, "same", name="d_conv"),
            layers.LeakyReLU(0.2, name="d_leaky"),
            layers.Dropout(0.3, seed=1),
            layers.Flatten(),
            layers.Dense(1, activation, name="d_out"),
        ],
        name="discriminator",
    )


BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


@program("TensorFlow tutorial: Deep Convolutional Generative Adversarial Network", quick=False)
def dcgan():
    g, d = generator(), discriminator()
    g_optimizer, d_optimizer = keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3)
    seeds = keras.random.SeedGenerator(3)

    def step(tape, images):
        noise = keras.random.normal((8, 4), seed=seeds)
        with tape() as g_tape, tape() as d_tape:
            fake = g(noise, training=True)
            real_output, fake_output = d(images, training=True), d(fake, training=True)
            g_loss = BINARY(tf.ones_like(fake_output), fake_output)
            d_loss = BINARY(tf.ones_like(real_output), real_output) + BINARY(tf.zeros_like(fake_output), fake_output)
        g_gradients = g_tape.gradient(g_loss, g.trainable_variables)
        d_gradients = d_tape.gradient(d_loss, d.trainable_variables)
        g_optimizer.apply_gradients(zip(g_gradients, g.trainable_variables, strict=True))
        d_optimizer.apply_gradients(zip(d_gradients, d.trainable_variables, strict=True))
        return g_loss, d_loss

    return Loop([g, d], step, [(IMAGES[i : i + 8],) for i in range(0, 32, 8)])


class GAN(keras.Model):
    def __init__(self, g, d, latent=4):
        super().__init__()
        self.generator, self.discriminator, self.latent = g, d, latent
        self.seeds = keras.random.SeedGenerator(1337)
        self.d_loss, self.g_loss = keras.metrics.Mean(name="d_loss"), keras.metrics.Mean(name="g_loss")

    @property
    def metrics(self):
        return [self.d_loss, self.g_loss]

    def compile(self, d_optimizer, g_optimizer, **options):
        super().compile(**options)
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, BINARY

    def noise(self, batch):
        return keras.random.normal((batch, self.latent), seed=self.seeds)


class KerasGAN(GAN):
    def train_step(self, real):
        batch = ops.shape(real)[0]
        fake = self.generator(self.noise(batch))
        images = ops.concatenate([fake, real], axis=0)
        targets = ops.concatenate([ops.ones((batch, 1)), ops.zeros((batch, 1))], axis=0)
        targets += 0.05 * keras.random.uniform(ops.shape(targets), seed=self.seeds)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(targets, self.discriminator(images))
        gradients = tape.gradient(d_loss, self.discriminator.trainable_weights)
        self.d_optimizer.apply_gradients(zip(gradients, self.discriminator.trainable_weights, strict=True))
        with tf.GradientTape() as tape:
            predictions = self.discriminator(self.generator(self.noise(batch)))
            g_loss = self.loss_fn(ops.zeros((batch, 1)), predictions)
        gradients = tape.gradient(g_loss, self.generator.trainable_weights)
        self.g_optimizer.apply_gradients(zip(gradients, self.generator.trainable_weights, strict=True))
        self.d_loss.update_state(d_loss)
        self.g_loss.update_state(g_loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}


@program("keras.io: DCGAN to generate face images", quick=False)
def dcgan_train_step():
    gan = KerasGAN(generator(), discriminator())
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3), jit_compile=False)
    return Fit(gan, tf.data.Dataset.from_tensor_slices(IMAGES).batch(8))


class WGAN(GAN):
    def penalty(self, real, fake):
        alpha = keras.random.uniform((8, 1, 1, 1), seed=self.seeds)
        between = real + alpha * (fake - real)
        with tf.GradientTape() as inner:
            inner.watch(between)
            prediction = self.discriminator(between, training=True)
        slope = inner.gradient(prediction, [between])[0]
        norm = tf.sqrt(tf.reduce_sum(tf.square(slope), axis=[1, 2, 3]) + 1e-12)
        return tf.reduce_mean((norm - 1.0) ** 2)

    def train_step(self, real):
        for _ in range(3):
            noise = self.noise(8)
            with tf.GradientTape() as tape:
                fake = self.generator(noise, training=True)
                fake_logits, real_logits = (
                    self.discriminator(fake, training=True),
                    self.discriminator(real, training=True),
                )
                d_cost = tf.reduce_mean(fake_logits) - tf.reduce_mean(real_logits)
                d_loss = d_cost + 10.0 * self.penalty(real, fake)
            gradients = tape.gradient(d_loss, self.discriminator.trainable_variables)
            self.d_optimizer.apply_gradients(zip(gradients, self.discriminator.trainable_variables, strict=True))
        noise = self.noise(8)
        with tf.GradientTape() as tape:
            g_loss = -tf.reduce_mean(self.discriminator(self.generator(noise, training=True), training=True))
        gradients = tape.gradient(g_loss, self.generator.trainable_variables)
        self.g_optimizer.apply_gradients(zip(gradients, self.generator.trainable_variables, strict=True))
        return {"d_loss": d_loss, "g_loss": g_loss}


@program("keras.io: WGAN-GP overriding Model.train_step", quick=False)
def wgan_gradient_penalty():
    gan = WGAN(generator(), discriminator())
    gan.compile(keras.optimizers.Adam(2e-4, 0.5), keras.optimizers.Adam(2e-4, 0.5), jit_compile=False)
    return Fit(gan, tf.data.Dataset.from_tensor_slices(IMAGES).batch(8))


def translator(name):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"{name}_in")(inputs)
    y = layers.GroupNormalization(-1)(layers.Conv2D(4, 3, padding="same", name=f"{name}_res")(x))
    x = layers.Add()([x, y])
    return keras.Model(inputs, layers.Conv2D(1, 3, padding="same", activation="tanh", name=f"{name}_out")(x), name=name)


@program("TensorFlow tutorial: CycleGAN", quick=False)
def cyclegan():
    g, f = translator("g"), translator("f")
    dx, dy = discriminator(), discriminator()
    models = [g, f, dx, dy]
    optimizers = [keras.optimizers.Adam(2e-4, beta_1=0.5) for _ in models]

    def step(tape, real_x, real_y):
        with tape(persistent=True) as t:
            fake_y, fake_x = g(real_x, training=True), f(real_y, training=True)
            cycled_x, cycled_y = f(fake_y, training=True), g(fake_x, training=True)
            same_x, same_y = f(real_x, training=True), g(real_y, training=True)
            real = [d(r, training=True) for d, r in ((dx, real_x), (dy, real_y))]
            fake = [d(r, training=True) for d, r in ((dx, fake_x), (dy, fake_y))]
            cycle = 10 * (tf.reduce_mean(tf.abs(real_x - cycled_x)) + tf.reduce_mean(tf.abs(real_y - cycled_y)))
            g_loss = BINARY(tf.ones_like(fake[1]), fake[1]) + cycle + 5 * tf.reduce_mean(tf.abs(real_y - same_y))
            f_loss = BINARY(tf.ones_like(fake[0]), fake[0]) + cycle + 5 * tf.reduce_mean(tf.abs(real_x - same_x))
            d_losses = [
                0.5 * (BINARY(tf.ones_like(r), r) + BINARY(tf.zeros_like(s), s))
                for r, s in zip(real, fake, strict=True)
            ]
        gradients = [
            t.gradient(loss, m.trainable_variables) for loss, m in zip([g_loss, f_loss, *d_losses], models, strict=True)
        ]
        for each, optimizer, model in zip(gradients, optimizers, models, strict=True):
            optimizer.apply_gradients(zip(each, model.trainable_variables, strict=True))

    return Loop(models, step, [(IMAGES[i : i + 8], IMAGES[::-1][i : i + 8].copy()) for i in range(0, 32, 8)])


@program("TensorFlow tutorial: pix2pix, image-to-image translation with a conditional GAN", quick=False)
def pix2pix():
    g = translator("generator")
    first, second = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    joined = layers.Concatenate()([first, second])
    d = keras.Model(
        [first, second], layers.Conv2D(1, 3, name="patches")(layers.LeakyReLU()(layers.Conv2D(8, 3)(joined)))
    )
    g_optimizer, d_optimizer = keras.optimizers.Adam(2e-4, 0.5), keras.optimizers.Adam(2e-4, 0.5)

    def step(tape, image, target):
        with tape() as g_tape, tape() as d_tape:
            output = g(image, training=True)
            real, fake = d([image, target], training=True), d([image, output], training=True)
            g_loss = BINARY(tf.ones_like(fake), fake) + 100 * tf.reduce_mean(tf.abs(target - output))
            d_loss = BINARY(tf.ones_like(real), real) + BINARY(tf.zeros_like(fake), fake)
        g_optimizer.apply_gradients(
            zip(g_tape.gradient(g_loss, g.trainable_variables), g.trainable_variables, strict=True)
        )
        d_optimizer.apply_gradients(
            zip(d_tape.gradient(d_loss, d.trainable_variables), d.trainable_variables, strict=True)
        )

    return Loop([g, d], step, [(IMAGES[i : i + 8], IMAGES[::-1][i : i + 8].copy()) for i in range(0, 32, 8)])


class ConditionalGAN(GAN):
    def train_step(self, data):
        real, classes = data
        maps = tf.tile(classes[:, None, None, :], [1, 8, 8, 1])
        fake = self.generator(tf.concat([self.noise(8), classes], 1))
        both = tf.concat([tf.concat([fake, maps], -1), tf.concat([real, maps], -1)], 0)
        targets = tf.concat([tf.ones([8, 1]), tf.zeros([8, 1])], 0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(targets, self.discriminator(both))
        variables = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, variables), variables, strict=True))
        noise = tf.concat([self.noise(8), classes], 1)
        with tf.GradientTape() as tape:
            predictions = self.discriminator(tf.concat([self.generator(noise), maps], -1))
            g_loss = self.loss_fn(tf.zeros([8, 1]), predictions)
        variables = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, variables), variables, strict=True))
        self.d_loss.update_state(d_loss)
        self.g_loss.update_state(g_loss)
        return {m.name: m.result() for m in self.metrics}


@program("keras.io: Conditional GAN", quick=False)
def conditional_gan():
    gan = ConditionalGAN(generator(4 + 3), discriminator(1 + 3))
    gan.compile(keras.optimizers.Adam(3e-4), keras.optimizers.Adam(3e-4), jit_compile=False)
    classes = np.eye(3, dtype="float32")[np.arange(32) % 3]
    return Fit(gan, tf.data.Dataset.from_tensor_slices((IMAGES, classes)).batch(8))


class Sampling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise


class VAE(keras.Model):
    def __init__(self):
        super().__init__()
        inputs = keras.Input((8, 8, 1))
        x = layers.Conv2D(4, 3, 2, "same", activation="relu")(inputs)
        x = layers.Dense(8, "relu")(layers.Flatten()(x))
        mean, log_variance = layers.Dense(2, name="z_mean")(x), layers.Dense(2, name="z_log_var")(x)
        self.encoder = keras.Model(inputs, [mean, log_variance, Sampling()([mean, log_variance])], name="encoder")
        latent = keras.Input((2,))
        x = layers.Reshape((4, 4, 4))(layers.Dense(4 * 4 * 4, "relu")(latent))
        x = layers.Conv2DTranspose(1, 3, 2, "same", activation="sigmoid")(x)
        self.decoder = keras.Model(latent, x, name="decoder")
        self.trackers = [keras.metrics.Mean(name=n) for n in ("loss", "reconstruction_loss", "kl_loss")]

    @property
    def metrics(self):
        return self.trackers

    def train_step(self, data):
        with tf.GradientTape() as tape:
            mean, log_variance, z = self.encoder(data)
            reconstruction = self.decoder(z)
            error = ops.mean(ops.sum(keras.losses.binary_crossentropy(data, reconstruction), axis=(1, 2)))
            divergence = -0.5 * (1 + log_variance - ops.square(mean) - ops.exp(log_variance))
            divergence = ops.mean(ops.sum(divergence, axis=1))
            total = error + divergence
        gradients = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        for tracker, value in zip(self.trackers, (total, error, divergence), strict=True):
            tracker.update_state(value)
        return {t.name: t.result() for t in self.trackers}


@program("keras.io: Variational AutoEncoder", quick=False)
def vae():
    model = VAE()
    model.compile(keras.optimizers.Adam(), jit_compile=False)
    return Fit(model, tf.data.Dataset.from_tensor_slices(1 / (1 + np.exp(-IMAGES))).batch(8))


class VectorQuantizer(layers.Layer):
    def __init__(self, entries, size, **kwargs):
        super().__init__(**kwargs)
        self.entries, self.size = entries, size

    def build(self, shape):
        self.table = self.add_weight(shape=(self.size, self.entries), initializer="uniform", name="table")

    def call(self, x):
        flat = tf.reshape(x, [-1, self.size])
        distances = (
            tf.reduce_sum(flat**2, 1, keepdims=True) + tf.reduce_sum(self.table**2, 0) - 2 * tf.matmul(flat, self.table)
        )
        codes = tf.one_hot(tf.argmin(distances, 1), self.entries)
        quantized = tf.reshape(tf.matmul(codes, self.table, transpose_b=True), tf.shape(x))
        self.add_loss(0.25 * tf.reduce_mean((tf.stop_gradient(quantized) - x) ** 2))
        self.add_loss(tf.reduce_mean((quantized - tf.stop_gradient(x)) ** 2))
        return x + tf.stop_gradient(quantized - x)


class VQVAE(keras.Model):
    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential(
            [layers.Conv2D(8, 3, 2, "same", activation="relu"), layers.Conv2D(4, 1)], name="encoder"
        )
        self.quantizer = VectorQuantizer(6, 4, name="quantizer")
        self.decoder = keras.Sequential(
            [layers.Conv2DTranspose(8, 3, 2, "same", activation="relu"), layers.Conv2DTranspose(1, 3, padding="same")],
            name="decoder",
        )

    def call(self, x):
        return self.decoder(self.quantizer(self.encoder(x)))


@program("keras.io: Vector-Quantized Variational Autoencoders")
def vq_vae():
    model = VQVAE()
    model.compile(keras.optimizers.Adam(), "mse", jit_compile=False)
    return Fit(model, (IMAGES, IMAGES))


class Diffusion(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalizer = layers.Normalization(axis=None)
        self.normalizer.adapt(IMAGES)
        self.network, self.ema = self.unet(), self.unet()
        self.ema.set_weights(self.network.get_weights())
        self.ema.trainable = False
        self.seeds = keras.random.SeedGenerator(5)
        self.tracker = keras.metrics.Mean(name="n_loss")

    @staticmethod
    def unet():
        images, rates = keras.Input((8, 8, 1)), keras.Input((1, 1, 1))
        frequencies = ops.exp(ops.linspace(0.0, math.log(100.0), 2))
        angles = layers.Lambda(lambda r: 2 * math.pi * frequencies * r, output_shape=(1, 1, 2))(rates)
        e = layers.Lambda(lambda a: ops.concatenate([ops.sin(a), ops.cos(a)], -1), output_shape=(1, 1, 4))(angles)
        e = layers.UpSampling2D(8)(e)
        x = layers.Concatenate()([layers.Conv2D(4, 1)(images), e])
        residual = layers.Conv2D(4, 1)(x)
        x = layers.BatchNormalization(center=False, scale=False)(x)
        x = layers.Conv2D(4, 3, padding="same", activation="swish")(x)
        x = layers.Add()([layers.Conv2D(4, 3, padding="same")(x), residual])
        skip = x
        x = layers.AveragePooling2D(2)(x)
        x = layers.Conv2D(4, 3, padding="same", activation="swish")(x)
        x = layers.Concatenate()([layers.UpSampling2D(2, interpolation="bilinear")(x), skip])
        return keras.Model([images, rates], layers.Conv2D(1, 1, kernel_initializer="zeros")(x))

    @property
    def metrics(self):
        return [self.tracker]

    def train_step(self, images):
        images = self.normalizer(images, training=True)
        noises = keras.random.normal((8, 8, 8, 1), seed=self.seeds)
        times = keras.random.uniform((8, 1, 1, 1), seed=self.seeds)
        angles = 0.3 + times * (1.5 - 0.3)
        signal, noise = ops.cos(angles), ops.sin(angles)
        with tf.GradientTape() as tape:
            predicted = self.network([signal * images + noise * noises, noise**2], training=True)
            loss = self.loss(noises, predicted)
        gradients = tape.gradient(loss, self.network.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.network.trainable_weights, strict=True))
        self.tracker.update_state(loss)
        for weight, ema in zip(self.network.weights, self.ema.weights, strict=True):
            ema.assign(0.99 * ema + 0.01 * weight)
        return {m.name: m.result() for m in self.metrics}


@program("keras.io: Denoising Diffusion Implicit Models", unmeasured="not called inside the tape", quick=False)
def diffusion():
    model = Diffusion()
    model.compile(keras.optimizers.AdamW(1e-3, 1e-4), keras.losses.mean_absolute_error, jit_compile=False)
    return Fit(model, tf.data.Dataset.from_tensor_slices(IMAGES).batch(8))


def coupling(number):
    inputs = keras.Input((2,))
    x = layers.Dense(8, "relu", kernel_regularizer=keras.regularizers.l2(0.01))(inputs)
    shift = layers.Dense(2, "linear", name="shift")(x)
    return keras.Model(inputs, [layers.Dense(2, "tanh", name="scale")(x), shift], name=f"coupling{number}")


class RealNVP(keras.Model):
    def __init__(self):
        super().__init__()
        self.masks = np.array([[0, 1], [1, 0]] * 2, "float32")
        self.couplings = [coupling(i) for i in range(4)]
        self.tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.tracker]

    def call(self, x):
        log_determinant = 0.0
        for i in range(4)[::-1]:
            masked = x * self.masks[i]
            reversed_mask = 1 - self.masks[i]
            s, t = self.couplings[i](masked)
            s, t = s * reversed_mask, t * reversed_mask
            x = reversed_mask * (x * ops.exp(-s) - t * ops.exp(-s)) + masked
            log_determinant -= ops.sum(s, axis=1)
        return x, log_determinant

    def train_step(self, data):
        with tf.GradientTape() as tape:
            y, log_determinant = self(data)
            loss = ops.mean(0.5 * ops.sum(y**2, 1) + math.log(2 * math.pi) - log_determinant)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}


@program("keras.io: Density estimation using Real NVP", quick=False)
def real_nvp():
    model = RealNVP()
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
    return Fit(model, tf.data.Dataset.from_tensor_slices(random(64, 2)).batch(16))


@program("TensorFlow tutorial: Neural style transfer", quick=False)
def style_transfer():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="block1")(inputs)
    extractor = keras.Model(inputs, [x, layers.Conv2D(4, 3, activation="relu", name="block2")(x)])
    extractor.trainable = False
    image = tf.Variable(abs(random(1, 8, 8, 3)), name="image")
    style = [tf.linalg.einsum("bijc,bijd->bcd", f, f) for f in extractor(abs(random(1, 8, 8, 3, seed=2)))]
    optimizer = keras.optimizers.Adam(0.02)

    def step(tape):
        with tape() as t:
            features = extractor(image)
            grams = [tf.linalg.einsum("bijc,bijd->bcd", f, f) for f in features]
            loss = tf.add_n([tf.reduce_mean((a - b) ** 2) for a, b in zip(grams, style, strict=True)])
        optimizer.apply_gradients([(t.gradient(loss, image), image)])
        image.assign(tf.clip_by_value(image, 0.0, 1.0))

    return Loop([image, extractor], step, [()] * 4)
