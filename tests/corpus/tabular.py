"""Programs for tables, recommendations, graphs, densities and equations."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.corpus.program import Fit, Loop, labels, program, random

USERS, ITEMS = labels(20, 32), labels(30, 32, seed=2)


@program("keras.io: Collaborative Filtering for Movie Recommendations", quick=False)
def collaborative_filtering():
    class RecommenderNet(keras.Model):
        def __init__(self):
            super().__init__()
            options = {"embeddings_initializer": "he_normal", "embeddings_regularizer": keras.regularizers.l2(1e-6)}
            self.user, self.user_bias = layers.Embedding(20, 4, **options), layers.Embedding(20, 1)
            self.movie, self.movie_bias = layers.Embedding(30, 4, **options), layers.Embedding(30, 1)

        def call(self, inputs):
            user, movie = self.user(inputs[:, 0]), self.movie(inputs[:, 1])
            match = ops.sum(user * movie, 1, keepdims=True)
            return ops.nn.sigmoid(match + self.user_bias(inputs[:, 0]) + self.movie_bias(inputs[:, 1]))

    model = RecommenderNet()
    model.compile("adam", keras.losses.BinaryCrossentropy(), jit_compile=False)
    return Fit(model, (np.stack([USERS, ITEMS], 1), abs(random(32)) % 1))


@program("TensorFlow Recommenders: Basic retrieval with a two-tower model", quick=False)
def two_towers():
    class Retrieval(keras.Model):
        def __init__(self):
            super().__init__()
            self.user = keras.Sequential([layers.Embedding(20, 8), layers.Dense(4, "relu")], name="user_tower")
            self.item = keras.Sequential([layers.Embedding(30, 8), layers.Dense(4, "relu")], name="item_tower")

        def train_step(self, data):
            with tf.GradientTape() as tape:
                scores = tf.matmul(self.user(data["user"]), self.item(data["item"]), transpose_b=True)
                targets = tf.eye(tf.shape(scores)[0])
                loss = tf.reduce_sum(keras.losses.categorical_crossentropy(targets, scores, from_logits=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    model = Retrieval()
    model.compile(keras.optimizers.Adagrad(0.1), jit_compile=False)
    return Fit(model, tf.data.Dataset.from_tensor_slices({"user": USERS, "item": ITEMS}).batch(8))


@program(
    "DeepFM (Guo et al. 2017), after keras.io: Structured data learning with Wide, Deep, and Cross networks",
    quick=False,
)
def deepfm():
    sparse, numbers = keras.Input((3,), dtype="int32", name="sparse"), keras.Input((2,), name="numbers")
    vectors = layers.Embedding(30, 4, name="factors")(sparse)
    first = layers.Flatten()(layers.Embedding(30, 1, name="first_order")(sparse))
    second = 0.5 * ops.sum(ops.sum(vectors, 1) ** 2 - ops.sum(vectors**2, 1), -1, keepdims=True)
    deep = layers.Concatenate()([layers.Flatten()(vectors), numbers])
    deep = layers.Dense(8, "relu")(deep)
    deep = layers.Dense(1)(layers.Dropout(0.2, seed=1)(deep))
    outputs = layers.Activation("sigmoid")(ops.sum(first, 1, keepdims=True) + second + deep)
    model = keras.Model({"sparse": sparse, "numbers": numbers}, outputs)
    model.compile("adam", "binary_crossentropy", metrics=["AUC"], jit_compile=False)
    data = {"sparse": labels(30, 32, 3), "numbers": random(32, 2)}, labels(2, 32)
    return Fit(model, tf.data.Dataset.from_tensor_slices(data).batch(8))


class GatedLinearUnit(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.linear, self.gate = layers.Dense(units), layers.Dense(units, activation="sigmoid")

    def call(self, x):
        return self.linear(x) * self.gate(x)


@program("keras.io: Classification with Gated Residual and Variable Selection Networks", quick=False)
def gated_residual_network():
    inputs = keras.Input((6,))
    x = layers.Dense(8, "elu")(inputs)
    x = layers.Dropout(0.1, seed=1)(layers.Dense(8)(x))
    x = layers.LayerNormalization()(layers.Dense(8)(inputs) + GatedLinearUnit(8)(x))
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(x))
    model.compile("adam", "binary_crossentropy", jit_compile=False)
    return Fit(model, (random(32, 6), labels(2, 32)), {"class_weight": {0: 1.0, 1: 3.0}})


EDGES = labels(12, 2, 40, seed=5)
NODES = random(12, 6)


class GraphConvolution(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.prepare, self.update = layers.Dense(units, "gelu"), layers.Dense(units, "gelu")

    def call(self, x):
        messages = self.prepare(tf.gather(x, EDGES[1]))
        gathered = tf.math.unsorted_segment_mean(messages, EDGES[0], 12)
        return tf.nn.l2_normalize(self.update(tf.concat([x, gathered], 1)), -1)


@program("keras.io: Node Classification with Graph Neural Networks", quick=False)
def graph_network():
    class NodeClassifier(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = GraphConvolution(8, name="conv1"), GraphConvolution(8, name="conv2")
            self.preprocess, self.logits = layers.Dense(8, "gelu", name="preprocess"), layers.Dense(3, name="logits")

        def call(self, indices):
            x = self.preprocess(NODES)
            x = self.first(x) + x
            x = self.second(x) + x
            return self.logits(tf.gather(x, indices))

    model = NodeClassifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    return Fit(model, (labels(12, 32), labels(3, 32)))


@program("keras.io: Graph attention network (GAT) for node classification", quick=False)
def graph_attention():
    class Attention(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 4), initializer="glorot_uniform", name="kernel")
            self.score = self.add_weight(shape=(8, 1), initializer="glorot_uniform", name="score")

        def call(self, x):
            x = ops.matmul(x, self.kernel)
            pairs = ops.reshape(ops.take(x, EDGES.T, axis=0), (-1, 8))
            scores = ops.exp(ops.clip(ops.leaky_relu(ops.matmul(pairs, self.score)), -2, 2))[:, 0]
            total = ops.segment_sum(scores, EDGES[0], 12) + 1e-9
            weights = scores / ops.take(total, EDGES[0])
            return ops.relu(ops.segment_sum(ops.take(x, EDGES[1], axis=0) * weights[:, None], EDGES[0], 12))

    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.attention, self.out = Attention(), layers.Dense(3, name="out")

        def call(self, x):
            return self.out(self.attention(x))

        def train_step(self, data):
            indices, classes = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=classes, y_pred=ops.take(self(NODES), indices, axis=0))
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            return {"loss": loss}

    model = Network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, jit_compile=False)
    return Fit(model, (labels(12, 32), labels(3, 32)))


@program("Mixture density network (Bishop 1994), after a tutorial with Keras", quick=False)
def mixture_density():
    inputs = keras.Input((1,))
    x = layers.Dense(8, "tanh")(inputs)
    parts = [layers.Dense(3, "softmax", name="weights")(x), layers.Dense(3, name="means")(x)]
    parts.append(layers.Dense(3, lambda z: tf.nn.elu(z) + 1 + 1e-6, name="deviations")(x))
    model = keras.Model(inputs, layers.Concatenate()(parts))

    def likelihood(y, mixture):
        weights, means, deviations = tf.split(mixture, 3, -1)
        exponent = -0.5 * ((y - means) / deviations) ** 2 - tf.math.log(deviations) - 0.5 * math.log(2 * math.pi)
        return -tf.reduce_logsumexp(tf.math.log(weights + 1e-9) + exponent, -1)

    model.compile(keras.optimizers.Adam(1e-2, clipvalue=0.5), likelihood, jit_compile=False)
    return Fit(model, (random(32, 1), random(32, 1, seed=3)))


class Bayesian(layers.Layer):
    def __init__(self, units, activation=None, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.units, self.activation = units, keras.activations.get(activation)
        self.seeds = keras.random.SeedGenerator(seed)

    def build(self, shape):
        size = (shape[-1], self.units)
        self.mean = self.add_weight(shape=size, initializer="glorot_uniform", name="mean")
        self.rho = self.add_weight(shape=size, initializer=keras.initializers.Constant(-3.0), name="rho")

    def call(self, x):
        deviation = ops.softplus(self.rho)
        kernel = self.mean + deviation * keras.random.normal(self.mean.shape, seed=self.seeds)
        divergence = ops.sum(-ops.log(deviation) + (deviation**2 + self.mean**2) / 2 - 0.5)
        self.add_loss(divergence / 1000)
        return self.activation(ops.matmul(x, kernel))


@program("keras.io: Probabilistic Bayesian Neural Networks", quick=False)
def bayesian_layers():
    parts = [keras.Input((6,)), layers.BatchNormalization(), Bayesian(8, "sigmoid", 1, name="bayesian1")]
    model = keras.Sequential([*parts, Bayesian(8, "sigmoid", 2, name="bayesian2"), layers.Dense(1)])
    model.compile(keras.optimizers.RMSprop(1e-3), "mse", metrics=["mae"], jit_compile=False)
    return Fit(model, (random(32, 6), random(32, 1)))


@program("Physics-informed network (Raissi et al. 2019), after a tutorial on the heat equation")
def physics_informed():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(8, "tanh"), layers.Dense(8, "tanh"), layers.Dense(1)])
    optimizer = keras.optimizers.Adam(1e-2)

    def step(tape, x, t, x0, u0):
        with tape() as outer:
            with tf.GradientTape() as second:
                second.watch(x)
                with tf.GradientTape(persistent=True) as first:
                    first.watch([x, t])
                    u = model(tf.concat([x, t], 1))
                u_x, u_t = first.gradient(u, x), first.gradient(u, t)
            u_xx = second.gradient(u_x, x)
            residual = tf.reduce_mean((u_t - 0.1 * u_xx) ** 2)
            loss = residual + tf.reduce_mean((model(tf.concat([x0, tf.zeros_like(x0)], 1)) - u0) ** 2)
        gradients = outer.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    batches = [tuple(tf.constant(random(8, 1, seed=5 * n + i)) for i in range(4)) for n in range(4)]
    return Loop(model, step, batches)


@program("keras.io: Imbalanced classification: credit card fraud detection", quick=False)
def imbalanced_classes():
    parts = [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.3, seed=1), layers.Dense(8, "relu")]
    model = keras.Sequential([*parts, layers.Dense(1, "sigmoid")])
    metrics = [keras.metrics.Precision(name="precision"), keras.metrics.Recall(name="recall")]
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=metrics, jit_compile=False)
    weights = np.where(np.arange(32) % 8 == 0, 8.0, 1.0).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((random(32, 6), np.arange(32) % 8 == 0, weights)).batch(8)
    return Fit(model, data, {"validation_data": data})
