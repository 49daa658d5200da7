"""Programs for images and points."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.corpus.program import FUSED, Fit, Loop, labels, program, random

IMAGES = random(32, 8, 8, 3)
CLASSES = labels(4, 32)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier(model, **options):
    options = {"optimizer": "adam", "loss": LOGITS, "metrics": ["accuracy"], "jit_compile": False, **options}
    model.compile(**options)
    return Fit(model, (IMAGES, CLASSES))


@program("keras.io: Simple MNIST convnet", quick=False)
def convnet():
    parts = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(2)]
    parts += [layers.Conv2D(6, 3, activation="relu"), layers.Flatten(), layers.Dropout(0.5, seed=1)]
    model = keras.Sequential([*parts, layers.Dense(4, "softmax")])
    return classifier(model, loss="sparse_categorical_crossentropy")


@program(
    "TensorFlow tutorial: Training a neural network on MNIST with Keras, compiled as Keras chooses",
    differs="XLA compiles each of the two programs as a whole",
    quick=False,
)
def convnet_under_xla():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(8, "relu"), layers.Dense(4)])
    return classifier(model, jit_compile=True)


class Patches(layers.Layer):
    def call(self, images):
        return ops.reshape(ops.image.extract_patches(images, 2), (-1, 16, 12))


class PatchEncoder(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.projection, self.position = layers.Dense(8), layers.Embedding(16, 8)

    def call(self, patch):
        return self.projection(patch) + self.position(ops.expand_dims(ops.arange(16), 0))


@program("keras.io: Image classification with Vision Transformer", unmeasured=FUSED, quick=False)
def vision_transformer():
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomFlip("horizontal", seed=1)(inputs)
    x = PatchEncoder()(Patches()(x))
    for i in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([layers.MultiHeadAttention(2, 4, dropout=0.1, seed=i)(y, y), x])
        y = layers.Dense(16, keras.activations.gelu)(layers.LayerNormalization(epsilon=1e-6)(x))
        x = layers.Add()([layers.Dense(8, keras.activations.gelu)(layers.Dropout(0.1, seed=i)(y)), x])
    x = layers.Flatten()(layers.LayerNormalization(epsilon=1e-6)(x))
    return classifier(keras.Model(inputs, layers.Dense(4)(x)), optimizer=keras.optimizers.AdamW(1e-3, 1e-4))


class Mixer(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens = keras.Sequential([layers.Dense(16, "gelu"), layers.Dense(16)], name="tokens")
        self.channels = keras.Sequential([layers.Dense(8, "gelu"), layers.Dense(8)], name="channels")
        self.normalize = layers.LayerNormalization()

    def call(self, x):
        y = ops.transpose(self.normalize(x), (0, 2, 1))
        x = x + ops.transpose(self.tokens(y), (0, 2, 1))
        return x + self.channels(self.normalize(x))


@program("keras.io: Image classification with modern MLP models", quick=False)
def mlp_mixer():
    inputs = keras.Input((8, 8, 3))
    x = keras.Sequential([Mixer(name="mixer1"), Mixer(name="mixer2")])(layers.Dense(8)(Patches()(inputs)))
    return classifier(keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x))))


@program("keras.io: Image segmentation with a U-Net-like architecture", quick=False)
def unet():
    inputs = keras.Input((8, 8, 3))
    x = previous = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(4, 3, 2, "same")(inputs)))
    x = layers.SeparableConv2D(6, 3, padding="same")(layers.Activation("relu")(x))
    x = layers.MaxPooling2D(3, 2, "same")(layers.BatchNormalization()(x))
    previous = x = layers.add([x, layers.Conv2D(6, 1, 2, "same")(previous)])
    for filters in (6, 4):
        x = layers.Conv2DTranspose(filters, 3, padding="same")(layers.Activation("relu")(x))
        x = layers.UpSampling2D(2)(layers.BatchNormalization()(x))
        x = previous = layers.add([x, layers.Conv2D(filters, 1, padding="same")(layers.UpSampling2D(2)(previous))])
    model = keras.Model(inputs, layers.Conv2D(3, 3, activation="softmax", padding="same")(x))
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    return Fit(model, (IMAGES, labels(3, 32, 8, 8)))


@program("keras.io: Grad-CAM class activation visualization", quick=False)
def grad_cam():
    inputs = keras.Input((8, 8, 3))
    convolution = layers.Conv2D(4, 3, activation="relu", name="last_conv")(inputs)
    model = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(convolution)))
    visible = keras.Model(inputs, [convolution, model.output])

    def heatmap():
        with tf.GradientTape() as tape:
            output, predictions = visible(IMAGES[:1])
            score = predictions[:, 1]
        slopes = tf.reduce_mean(tape.gradient(score, output), axis=(0, 1, 2))
        assert tf.nn.relu(output[0] @ slopes[:, None]).shape == (6, 6, 1)

    class Show(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            heatmap()

    fit = classifier(model)
    return fit._replace(options={"callbacks": [Show()]}, then=heatmap)


class StochasticDepth(layers.Layer):
    def __init__(self, drop, seed, **kwargs):
        super().__init__(**kwargs)
        self.drop, self.seeds = drop, keras.random.SeedGenerator(seed)

    def call(self, x, training=None):
        if not training:
            return x
        kept = keras.random.uniform((ops.shape(x)[0], 1, 1), seed=self.seeds)
        return x / (1 - self.drop) * ops.floor(1 - self.drop + kept)


@program("keras.io: Compact Convolutional Transformers", unmeasured=FUSED, quick=False)
def compact_convolutional_transformer():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, 1, "same", activation="relu", use_bias=False)(inputs)
    x = layers.Reshape((16, 8))(layers.MaxPooling2D(3, 2, "same")(x))
    y = layers.LayerNormalization(epsilon=1e-5)(x)
    x = layers.Add()([StochasticDepth(0.1, 1)(layers.MultiHeadAttention(2, 4)(y, y)), x])
    y = layers.Dense(8, "gelu")(layers.LayerNormalization(epsilon=1e-5)(x))
    x = layers.Add()([StochasticDepth(0.1, 2)(y), x])
    weights = layers.Softmax(axis=1)(layers.Dense(1)(x))
    pooled = layers.Flatten()(layers.Dot(1)([weights, x]))
    return classifier(keras.Model(inputs, layers.Dense(4)(pooled)))


class Orthogonal(keras.regularizers.Regularizer):
    def __call__(self, x):
        x = ops.reshape(x, (-1, 3, 3))
        return 0.001 * ops.sum(ops.square(ops.matmul(x, ops.transpose(x, (0, 2, 1))) - ops.eye(3)))


@program("keras.io: Point cloud classification with PointNet", quick=False)
def pointnet():
    inputs = keras.Input((12, 3))
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.0)(layers.Conv1D(8, 1)(inputs)))
    x = layers.Dense(8, "relu")(layers.GlobalMaxPooling1D()(x))
    bias = keras.initializers.Constant(np.eye(3).flatten())
    x = layers.Dense(9, kernel_initializer="zeros", bias_initializer=bias, activity_regularizer=Orthogonal())(x)
    x = layers.Dot(axes=(2, 1))([inputs, layers.Reshape((3, 3))(x)])
    x = layers.GlobalMaxPooling1D()(layers.Conv1D(8, 1, activation="relu")(x))
    model = keras.Model(inputs, layers.Dense(4, "softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    return Fit(model, (random(32, 12, 3), CLASSES))


@program("keras.io: Image Super-Resolution using an Efficient Sub-Pixel CNN", quick=False)
def super_resolution():
    inputs = keras.Input((None, None, 1))
    x = layers.Conv2D(8, 5, activation="relu", padding="same", kernel_initializer="orthogonal")(inputs)
    x = layers.Conv2D(4, 3, activation="relu", padding="same", kernel_initializer="orthogonal")(x)
    outputs = layers.Lambda(lambda t: tf.nn.depth_to_space(t, 2), output_shape=(None, None, 1))(x)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.MeanSquaredError(), jit_compile=False)
    return Fit(model, (random(32, 4, 4, 1), random(32, 8, 8, 1)))


@program("keras.io: 3D volumetric rendering with NeRF", quick=False)
def nerf():
    class NeRF(keras.Model):
        def train_step(self, inputs):
            images, (rays, t) = inputs
            with tf.GradientTape() as tape:
                predictions = self(rays, training=True)
                rgb, density = ops.sigmoid(predictions[..., :-1]), ops.relu(predictions[..., -1])
                distances = ops.concatenate([t[:, 1:] - t[:, :-1], 1e3 * ops.ones_like(t[:, :1])], -1)
                alpha = 1.0 - ops.exp(-density * distances)
                weights = alpha * tf.math.cumprod(1.0 - alpha + 1e-10, axis=-1, exclusive=True)
                loss = self.compute_loss(y=images, y_pred=ops.sum(weights[..., None] * rgb, -2))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    x = inputs = keras.Input((4, 6))
    for i in range(3):
        x = layers.Dense(8, "relu")(x)
        if i == 1:
            x = layers.concatenate([x, inputs])
    model = NeRF(inputs, layers.Dense(4)(x))
    model.compile(keras.optimizers.Adam(), keras.losses.MeanSquaredError(), jit_compile=False)
    t = np.sort(abs(random(32, 4)), -1)
    return Fit(model, tf.data.Dataset.from_tensor_slices((abs(random(32, 3)), (random(32, 4, 6), t))).batch(8))


@program("keras.io: Object localization with two heads", quick=False)
def two_heads():
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Conv2D(6, 3, 2, activation="relu")(inputs))
    heads = {"box": layers.Dense(4, "sigmoid", name="box")(x), "class": layers.Dense(4, "softmax", name="class")(x)}
    model = keras.Model(inputs, heads)
    losses = {"box": "huber", "class": "sparse_categorical_crossentropy"}
    model.compile("adam", losses, loss_weights={"box": 2.0, "class": 1.0}, jit_compile=False)
    boxes = abs(random(32, 4))
    return Fit(model, tf.data.Dataset.from_tensor_slices((IMAGES, {"box": boxes, "class": CLASSES})).batch(8))


@program("TensorFlow tutorial: Custom training: walkthrough", quick=False)
def eager_loop():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(8, "relu"), layers.Dense(3)])
    optimizer = keras.optimizers.SGD(0.01)

    def step(tape, x, y):
        with tape() as t:
            loss = LOGITS(y, model(x, training=True))
        gradients = t.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return Loop(model, step, [(random(8, 4, seed=n), labels(3, 8, seed=n)) for n in range(4)], eager=True)
