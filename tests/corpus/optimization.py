"""Programs that differ by how the weights are changed."""

import keras
import tensorflow as tf
from keras import layers, ops

from tests.corpus.program import Fit, Loop, labels, program, random

X, Y = random(32, 6), labels(3, 32)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(kind=keras.Sequential):
    parts = [keras.Input((6,)), layers.Dense(8, "relu", name="first"), layers.Dense(8, "tanh", name="second")]
    return kind([*parts, layers.Dense(3, name="out")])


def compiled(model, **options):
    model.compile(**{"optimizer": "adam", "loss": LOGITS, "jit_compile": False, **options})
    return Fit(model, (X, Y))


@program("keras.io: Train a model with sharpness-aware minimization")
def sharpness_aware_minimization():
    class SAM(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            variables = self.trainable_variables
            gradients = tape.gradient(loss, variables)
            norm = tf.norm(tf.stack([tf.norm(g) for g in gradients]))
            steps = [g * 0.05 / (norm + 1e-12) for g in gradients]
            for variable, e in zip(variables, steps, strict=True):
                variable.assign_add(e)
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, variables)
            for variable, e in zip(variables, steps, strict=True):
                variable.assign_sub(e)
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return {"loss": loss}

    return compiled(mlp(SAM))


@program("keras.io: Optimizers, gradient_accumulation_steps", steps=(1, 3))
def accumulation_by_the_optimizer():
    fit = compiled(mlp(), optimizer=keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2))
    return fit._replace(batches=(random(32, 6), Y))


@program("A common recipe: gradient accumulation in a train_step of one's own")
def accumulation_by_hand():
    class Accumulating(keras.Sequential):
        def compile(self, **options):
            super().compile(**options)
            self.sums = [keras.Variable(ops.zeros_like(v), trainable=False) for v in self.trainable_variables]
            self.counter = keras.Variable(0, trainable=False, dtype="int32")

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            for total, gradient in zip(self.sums, tape.gradient(loss, self.trainable_variables), strict=True):
                total.assign_add(gradient)
            self.counter.assign_add(1)
            tf.cond(tf.equal(self.counter % 2, 0), self.apply_sums, lambda: None)
            return {"loss": loss}

        def apply_sums(self):
            self.optimizer.apply_gradients(
                [(s / 2, v) for s, v in zip(self.sums, self.trainable_variables, strict=True)]
            )
            for total in self.sums:
                total.assign(ops.zeros_like(total))

    fit = compiled(mlp(Accumulating), optimizer=keras.optimizers.SGD(0.1))
    fit.model.optimizer.build(fit.model.trainable_variables)
    return fit


@program("keras.io: Optimizers, use_ema", quick=False)
def moving_average_of_weights():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=None)
    return compiled(mlp(), optimizer=optimizer)._replace(options={"callbacks": [keras.callbacks.SwapEMAWeights()]})


@program("keras.io: MultiOptimizer (Keras 3.15)")
def several_optimizers():
    model = mlp()
    slow, fast = keras.optimizers.SGD(0.1, clipnorm=0.1), keras.optimizers.Adam(1e-2)
    optimizer = keras.optimizers.MultiOptimizer(lambda variable: slow if "first" in variable.path else fast)
    return compiled(model, optimizer=optimizer)


@program("keras.io: Parameter-efficient fine-tuning with LoRA")
def lora():
    model = mlp()
    for layer in model.layers:
        layer.enable_lora(2)
    return compiled(model, optimizer=keras.optimizers.AdamW(1e-2))


@program("keras.io: Quantization in Keras, int8 and LoRA", quick=False)
def int8_with_lora():
    model = mlp()
    model.quantize("int8")
    for layer in model.layers:
        layer.enable_lora(2)
    return compiled(model)


@program("keras.io: Mixed precision", says="mixed|float16", quick=False)
def mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    model = mlp()
    model.add(layers.Activation("softmax", dtype="float32"))
    return compiled(model, loss="sparse_categorical_crossentropy")


@program("keras.io: Few-Shot learning with Reptile")
def reptile():
    model, optimizer = mlp(), keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    def step(tape, x, y, rate):
        old = [tf.identity(v) for v in model.variables]
        for _ in range(2):
            with tape() as t:
                loss = LOGITS(y, model(x, training=True))
            gradients = t.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        for variable, before in zip(model.variables, old, strict=True):
            variable.assign(before + rate * (variable - before))

    batches = [(random(8, 6, seed=n), labels(3, 8, seed=n), tf.constant(0.5)) for n in range(4)]
    return Loop(model, step, batches)


@program("keras.io: Gradient Centralization for Better Training Performance", quick=False)
def gradient_centralization():
    class Centralized(keras.optimizers.RMSprop):
        def apply_gradients(self, gradients_and_variables):
            pairs = []
            for gradient, variable in gradients_and_variables:
                if len(gradient.shape) > 1:
                    gradient = gradient - tf.reduce_mean(
                        gradient, axis=list(range(len(gradient.shape) - 1)), keepdims=True
                    )
                pairs.append((gradient, variable))
            return super().apply_gradients(pairs)

    return compiled(mlp(), optimizer=Centralized(1e-3))


@program("keras.io: Adaptive gradient clipping")
def adaptive_gradient_clipping():
    def unit_norm(x):
        return ops.sqrt(ops.sum(ops.square(x), axis=list(range(max(1, len(x.shape) - 1))), keepdims=True))

    class Clipping(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            variables = self.trainable_variables
            clipped = []
            for g, v in zip(tape.gradient(loss, variables), variables, strict=True):
                limit, norm = ops.maximum(unit_norm(v), 1e-3) * 0.01, unit_norm(g)
                clipped.append(ops.where(norm < limit, g, g * (limit / ops.maximum(norm, 1e-6))))
            self.optimizer.apply_gradients(zip(clipped, variables, strict=True))
            return {"loss": loss}

    return compiled(mlp(Clipping))


@program("keras.io: Learning rate schedules", quick=False)
def learning_rate_schedule():
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 10, warmup_target=0.1, warmup_steps=2)
    return compiled(mlp(), optimizer=keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, global_clipnorm=1.0))


@program("TensorFlow guide: Basic training loops, with a tf.Module")
def module_loop():
    class Line(tf.Module):
        def __init__(self):
            super().__init__(name="line")
            self.w, self.b = tf.Variable(5.0, name="w"), tf.Variable(0.0, name="b")

        def __call__(self, x):
            return self.w * x + self.b

    model = Line()

    def step(tape, x):
        with tape() as t:
            loss = tf.reduce_mean((model(x) - 3 * x - 2) ** 2)
        dw, db = t.gradient(loss, [model.w, model.b])
        model.w.assign_sub(0.1 * dw)
        model.b.assign_sub(0.1 * db)

    return Loop(model, step, [(random(8, seed=n),) for n in range(4)])
