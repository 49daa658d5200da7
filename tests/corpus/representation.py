"""Programs that learn representations: contrastive, distilled, siamese, transferred."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.corpus.program import Fit, labels, program, random

IMAGES = random(32, 8, 8, 3)
CLASSES = labels(4, 32)


def encoder(name="encoder"):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(6, 3, 2, activation="relu", name=f"{name}_conv"),
            layers.Flatten(),
            layers.Dense(8, "relu", name=f"{name}_dense"),
        ],
        name=name,
    )


class SimCLR(keras.Model):
    def __init__(self):
        super().__init__()
        self.augmenter = keras.Sequential(
            [layers.RandomFlip("horizontal", seed=2), layers.RandomTranslation(0.2, 0.2, seed=3)]
        )
        self.encoder = encoder()
        self.projection = keras.Sequential(
            [keras.Input((8,)), layers.Dense(8, "relu"), layers.Dense(8)], name="projection"
        )
        self.probe = keras.Sequential([keras.Input((8,)), layers.Dense(4)], name="linear_probe")

    def compile(self, contrastive, probe, **options):
        super().compile(**options)
        self.contrastive_optimizer, self.probe_optimizer = contrastive, probe
        self.probe_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train_step(self, data):
        images, classes = data
        first, second = self.augmenter(images, training=True), self.augmenter(images, training=True)
        with tf.GradientTape() as tape:
            a, b = (self.projection(self.encoder(x, training=True), training=True) for x in (first, second))
            a, b = keras.utils.normalize(a, axis=1), keras.utils.normalize(b, axis=1)
            similarities = ops.matmul(a, ops.transpose(b)) / 0.1
            targets = ops.arange(8)
            loss = ops.mean(
                keras.losses.sparse_categorical_crossentropy(
                    ops.concatenate([targets, targets]),
                    ops.concatenate([similarities, ops.transpose(similarities)], 0),
                    from_logits=True,
                )
            )
        weights = self.encoder.trainable_weights + self.projection.trainable_weights
        self.contrastive_optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        with tf.GradientTape() as tape:
            logits = self.probe(self.encoder(images, training=False), training=True)
            probe_loss = self.probe_loss(classes, logits)
        weights = self.probe.trainable_weights
        self.probe_optimizer.apply_gradients(zip(tape.gradient(probe_loss, weights), weights, strict=True))
        return {"c_loss": loss, "p_loss": probe_loss}


@program("keras.io: Semi-supervised image classification using contrastive pretraining with SimCLR", quick=False)
def simclr():
    model = SimCLR()
    model.compile(keras.optimizers.Adam(), keras.optimizers.Adam(), jit_compile=False)
    return Fit(model, tf.data.Dataset.from_tensor_slices((IMAGES, CLASSES)).batch(8))


class SupervisedContrastiveLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        features = ops.normalize(y_pred, axis=1)
        logits = ops.matmul(features, ops.transpose(features)) / 0.05
        same = ops.cast(ops.equal(ops.reshape(y_true, (-1, 1)), ops.reshape(y_true, (1, -1))), "float32")
        same = same / ops.sum(same, axis=1, keepdims=True)
        return -ops.sum(same * ops.log_softmax(logits), axis=1)


@program("keras.io: Supervised contrastive learning", quick=False)
def supervised_contrastive():
    body = encoder()
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(4, "relu", name="projection")(body(inputs)))
    model.compile(keras.optimizers.Adam(), SupervisedContrastiveLoss(), jit_compile=False)

    def classify():
        body.trainable = False
        inputs = keras.Input((8, 8, 3))
        x = layers.Dense(8, "relu")(layers.Dropout(0.5, seed=1)(body(inputs)))
        classifier = keras.Model(inputs, layers.Dense(4, "softmax")(x))
        classifier.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", jit_compile=False)
        return Fit(classifier, (IMAGES, CLASSES))

    return Fit(model, (IMAGES, CLASSES), then=classify)


class Siamese(keras.Model):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.tracker]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            near, far = self.network(data)
            loss = tf.maximum(near - far + 0.5, 0.0)
        gradients = tape.gradient(loss, self.network.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.network.trainable_weights, strict=True))
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}


class Distance(layers.Layer):
    def call(self, anchor, positive, negative):
        return ops.sum((anchor - positive) ** 2, -1), ops.sum((anchor - negative) ** 2, -1)


@program("keras.io: Image similarity estimation using a Siamese Network with a triplet loss", quick=False)
def siamese():
    body = encoder()
    inputs = [keras.Input((8, 8, 3), name=n) for n in ("anchor", "positive", "negative")]
    model = Siamese(keras.Model(inputs, Distance()(*(body(i) for i in inputs))))
    model.compile(keras.optimizers.Adam(1e-4), jit_compile=False)
    return Fit(
        model, tf.data.Dataset.from_tensor_slices((IMAGES, IMAGES + 0.1, IMAGES[::-1])).batch(8).map(lambda *x: (x,))
    )


class Distiller(keras.Model):
    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def compile(self, student_loss, distillation_loss, **options):
        super().compile(**options)
        self.student_loss, self.distillation_loss = student_loss, distillation_loss

    def call(self, x):
        return self.student(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        soft = ops.softmax(self.teacher(x, training=False) / 3.0, axis=1)
        distillation = self.distillation_loss(soft, ops.softmax(y_pred / 3.0, axis=1)) * 9.0
        return 0.1 * self.student_loss(y, y_pred) + 0.9 * distillation


@program("keras.io: Knowledge Distillation", unmeasured="^teacher", quick=False)
def distillation():
    teacher = keras.Sequential([encoder("teacher_body"), layers.Dense(4, name="teacher_out")], name="teacher")
    teacher.trainable = False
    model = Distiller(keras.Sequential([encoder("student_body"), layers.Dense(4)], name="student"), teacher)
    model.compile(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.KLDivergence(),
        optimizer=keras.optimizers.Adam(),
        metrics=[keras.metrics.SparseCategoricalAccuracy()],
        jit_compile=False,
    )
    return Fit(model, (IMAGES, CLASSES))


class BYOL(keras.Model):
    def __init__(self):
        super().__init__()
        self.online, self.target = encoder("online"), encoder("target")
        self.predictor = layers.Dense(8, name="predictor")
        self.target.set_weights(self.online.get_weights())
        self.target.trainable = False

    def call(self, x):
        return self.predictor(self.online(x))

    def train_step(self, images):
        flipped = images[:, :, ::-1]
        with tf.GradientTape() as tape:
            prediction = tf.math.l2_normalize(self(images, training=True), -1)
            target = tf.stop_gradient(tf.math.l2_normalize(self.target(flipped), -1))
            loss = 2 - 2 * tf.reduce_mean(tf.reduce_sum(prediction * target, -1))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for slow, fast in zip(self.target.weights, self.online.weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * fast)
        return {"loss": loss}


@program("BYOL (Grill et al. 2020), after keras.io: Self-supervised contrastive learning with SimSiam", quick=False)
def byol():
    model = BYOL()
    model.build((None, 8, 8, 3))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), jit_compile=False)
    return Fit(model, tf.data.Dataset.from_tensor_slices(IMAGES).batch(8))


@program("keras.io: Metric learning for image similarity search", quick=False)
def metric_learning():
    class Anchors(keras.Model):
        def train_step(self, data):
            anchors, positives = data[0][:, 0], data[0][:, 1]
            with tf.GradientTape() as tape:
                a, b = self(anchors, training=True), self(positives, training=True)
                similarities = ops.einsum("ae,pe->ap", a, b) / 0.2
                loss = self.compute_loss(y=ops.arange(4), y_pred=similarities)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, 2, activation="relu")(inputs))
    model = Anchors(inputs, layers.UnitNormalization()(layers.Dense(4)(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, jit_compile=False)
    return Fit(model, tf.data.Dataset.from_tensor_slices((np.stack([IMAGES, IMAGES + 0.1], 1)[:16],)).batch(4))


@program("keras.io: Building autoencoders in Keras", quick=False)
def denoising_autoencoder():
    inputs = keras.Input((8, 8, 3))
    x = layers.MaxPooling2D(2, padding="same")(layers.Conv2D(4, 3, activation="relu", padding="same")(inputs))
    x = layers.Conv2DTranspose(4, 3, 2, activation="relu", padding="same")(x)
    model = keras.Model(inputs, layers.Conv2D(3, 3, activation="sigmoid", padding="same")(x))
    model.compile("adam", "binary_crossentropy", jit_compile=False)
    return Fit(model, (IMAGES, 1 / (1 + np.exp(-IMAGES))))


@program("keras.io: Transfer learning and fine-tuning", quick=False)
def fine_tuning():
    body = encoder("body")
    body.trainable = False
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(0.5, offset=-0.1)(inputs)
    x = layers.Dropout(0.2, seed=1)(body(x, training=False))
    model = keras.Model(inputs, layers.Dense(1, name="head")(x))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["binary_accuracy"], jit_compile=False)

    def unfreeze():
        body.trainable = True
        model.compile(keras.optimizers.Adam(1e-5), loss, jit_compile=False)
        return Fit(model, (IMAGES, CLASSES // 2))

    return Fit(model, (IMAGES, CLASSES // 2), then=unfreeze)
