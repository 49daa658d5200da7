"""Random networks, and trainings of any network with and without measuring, compared bit by bit."""

import random
import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow.python.eager import context

import tapescope

ACTIVATIONS = (None, "relu", "tanh", "sigmoid", "elu", "gelu", "silu", "softplus", "hard_sigmoid", "leaky_relu", "selu")
SELECTIONS = (None, None, "[02468]", "[13579]", "stem|logits|active")
"""Patterns for Probe's `layers`; None measures the layers that Probe chooses itself."""


def _blocks(rng: random.Random, number: int, image: bool):
    """Return the blocks that make a tensor of one, and those that make one of several."""

    def weights(name, activation):
        if image:
            return layers.Conv2D(8, rng.choice([1, 3]), padding="same", activation=activation, name=name)
        return layers.Dense(32, activation, name=name)

    def attention(x):
        rows = layers.Reshape((4, 8))(x)
        return layers.Reshape((32,))(layers.MultiHeadAttention(2, 4, name=f"attention{number}")(rows, rows))

    activation = rng.choice(ACTIVATIONS)
    norm = rng.choice([layers.BatchNormalization, layers.LayerNormalization])
    pool = rng.choice([layers.MaxPooling2D, layers.AveragePooling2D])
    merge = rng.choice([layers.Add, layers.Add, layers.Average, layers.Multiply, layers.Maximum])
    concatenate = layers.Concatenate()
    one = [
        weights(f"dense{number}", activation),
        weights(f"linear{number}", None),
        layers.Activation(rng.choice(["relu", "tanh", "sigmoid"]), name=f"active{number}"),
        norm(name=f"norm{number}"),
        layers.Dropout(0.2, seed=number, name=f"dropout{number}"),
        pool(3, 1, padding="same", name=f"pool{number}") if image else attention,
        lambda x: x * 0.3,
    ]
    several = [
        merge(name=f"sum{number}"),
        lambda xs: sum(xs[1:], xs[0]),
        lambda xs: weights(f"joined{number}", activation)(concatenate(xs)),
    ]
    return one, several


def random_network(seed: int) -> keras.Model:
    """Return a graph of 4 to 8 blocks. An output may have several consumers, and a sum of some ends the network."""
    rng = random.Random(seed)
    image = rng.random() < 0.4
    inputs = keras.Input((8, 8, 4) if image else (24,))
    first = layers.Conv2D(8, 3, padding="same", activation="relu") if image else layers.Dense(32, "relu")
    first.name = "stem"
    outputs = [first(inputs)]
    for number in range(rng.randint(4, 8)):
        one, several = _blocks(rng, number, image)
        recent = outputs[-4:]
        if len(recent) > 1 and rng.random() < 0.35:
            outputs.append(rng.choice(several)(rng.sample(recent, rng.randint(2, len(recent)))))
        else:
            outputs.append(rng.choice(one)(rng.choice(recent)))
    end = outputs[-1]
    for tensor in rng.sample(outputs[:-1], min(len(outputs) - 1, rng.randint(1, 3))):
        end = end + tensor
    if image:
        end = layers.GlobalAveragePooling2D()(end)
    return keras.Model(inputs, layers.Dense(3, name="logits")(end))


def random_options(seed: int) -> dict:
    """Return options of `train` for that network: batch size, whether TensorFlow knows it, and the measured layers."""
    keras.backend.clear_session(free_memory=False)  # Keras numbers some of the names
    names = [layer.name for layer in random_network(seed).layers[1:]]
    rng = random.Random(seed)
    known, batch = rng.random() < 0.5, rng.choice([16, 48])
    selection = rng.choice([s for s in SELECTIONS if s is None or any(re.search(s, name) for name in names)])
    return {"seed": seed, "known": known, "batch": batch, "selection": selection}


def make_step(
    network, measure, *, seed=0, selection=None, batch=16, known=True, clip=None, exact=True
) -> tuple[keras.Model, Any, tuple[tf.Tensor, tf.Tensor]]:
    """Return a model, a compiled step of it that returns the model's output and the reading, and a batch.

    Args:
      network: makes the model.
      measure: whether the step measures.
      seed: of the weights and the data.
      selection: Probe's `layers`.
      batch: number of examples.
      known: whether TensorFlow knows that number when it traces the step.
      clip: largest global norm of the gradients.
      exact: Probe's `exact`.
    """
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    model = network()
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:  # biases of 0 would hide the order in which terms are added
        variable.assign(variable + rng.normal(0, 0.1, variable.shape))
    x = tf.constant(rng.normal(size=[batch, *model.input_shape[1:]]), tf.float32)
    y = tf.constant(rng.integers(0, 3, [batch]))
    probe = tapescope.Probe(model, layers=selection, exact=exact, strict=True)
    examples = batch if known else None

    @tf.function(input_signature=[tf.TensorSpec([examples, *x.shape[1:]]), tf.TensorSpec([examples], tf.int64)])
    def step(x, y):
        with probe.tape(measure) as tape:
            out = model(x, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, out, from_logits=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        applied = gradients if clip is None else tf.clip_by_global_norm(gradients, clip)[0]
        optimizer.apply(applied, model.trainable_variables)
        return out, tape.reading(aggregated=gradients, applied=applied)

    return model, step, (x, y)


def train(network, measure: bool, *, steps=3, **options) -> list[np.ndarray]:
    """Return the weights and the last output after some steps; `options` are those of `make_step`."""
    model, step, batch = make_step(network, measure, **options)
    outputs = [step(*batch)[0].numpy() for _ in range(steps)]
    return [*model.get_weights(), outputs[-1]]


def held_sum_inputs(network, **options) -> list[str]:
    """Return the inputs of large sums that measuring holds, by name, once Grappler has rewritten the step.

    A sum of three or more terms starts with whichever input nothing else holds at that moment, so each of them is a
    race. `options` are those of `make_step`.
    """
    _, step, batch = make_step(network, True, **options)
    context.enable_run_metadata()
    step(*batch)
    graphs = [traced.post_optimization_graph for traced in context.export_run_metadata().function_graphs]
    context.disable_run_metadata()
    nodes = {node.name: node for node in max(graphs, key=lambda graph: len(graph.node)).node}

    def buffer_owner(name: str) -> str:
        node = nodes[name.split(":")[0]]
        is_view = node.op in ("ExpandDims", "Identity", "Reshape", "Squeeze", "StopGradient")
        return buffer_owner(node.input[0]) if is_view else node.name

    inputs = {name: [i for i in node.input if not i.startswith("^")] for name, node in nodes.items()}
    measuring = {name for name, node in nodes.items() if "_tapescope" in node.attr or "tapescope_twin" in name}
    readers = [name for name in measuring if nodes[name].op not in ("Shape", "ShapeN", "Size")]
    held = {buffer_owner(i) for name in readers for i in inputs[name]}
    held -= {name for name, node in nodes.items() if node.op in ("Const", "Placeholder", "ReadVariableOp")}
    large_sums = [name for name, node in nodes.items() if node.op == "AddN" and len(inputs[name]) > 2]
    step_sums = [name for name in large_sums if name not in measuring]
    return [i for name in step_sums for i in inputs[name] if buffer_owner(i) in held]


def same_bits(first, second) -> bool:
    """Return whether two lists of arrays are equal to the last bit."""
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
