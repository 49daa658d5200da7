"""Networks to train with and without measuring: small ones of each kind that TensorFlow rewrites, and any by chance."""

import random
import re

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow.python.eager import context

import tapescope

ACTIVATIONS = (None, "relu", "tanh", "sigmoid", "elu", "gelu", "silu", "softplus", "hard_sigmoid", "leaky_relu", "selu")
SELECTIONS = (None, None, "[02468]", "[13579]", "stem|logits|active")
"""For Probe's `layers`: those that it takes by itself, or some by their names."""


def _blocks(rng: random.Random, number: int, image: bool):
    """Makes of one tensor, of several, and whether it takes several."""

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
    together = layers.Concatenate()
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
        lambda xs: weights(f"joined{number}", activation)(together(xs)),
    ]
    return one, several


def by_chance(seed: int) -> keras.Model:
    """A graph of 4 to 8 blocks; what they make may go into several, and much of it is added up in the end."""
    rng = random.Random(seed)
    image = rng.random() < 0.4
    given = keras.Input((8, 8, 4) if image else (24,))
    first = layers.Conv2D(8, 3, padding="same", activation="relu") if image else layers.Dense(32, "relu")
    first.name = "stem"
    made = [first(given)]
    for number in range(rng.randint(4, 8)):
        one, several = _blocks(rng, number, image)
        recent = made[-4:]
        if len(recent) > 1 and rng.random() < 0.35:
            made.append(rng.choice(several)(rng.sample(recent, rng.randint(2, len(recent)))))
        else:
            made.append(rng.choice(one)(rng.choice(recent)))
    end = made[-1]
    for tensor in rng.sample(made[:-1], min(len(made) - 1, rng.randint(1, 3))):
        end = end + tensor
    if image:
        end = layers.GlobalAveragePooling2D()(end)
    return keras.Model(given, layers.Dense(3, name="logits")(end))


def how_by_chance(seed: int) -> dict:
    """For `trained` and that network: the size of a batch, whether TensorFlow knows it, and which layers are rows."""
    keras.backend.clear_session()  # it numbers some of the names
    names = [layer.name for layer in by_chance(seed).layers[1:]]
    rng = random.Random(seed)
    known, batch = rng.random() < 0.5, rng.choice([16, 48])
    selection = rng.choice([s for s in SELECTIONS if s is None or any(re.search(s, name) for name in names)])
    return {"seed": seed, "known": known, "batch": batch, "selection": selection}


def _step(network, measure, *, seed=0, selection=None, batch=16, known=True, clip=None) -> tuple:
    """A model, a compiled step of it, which gives what comes out, and what to give that."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model, optimizer = network(), keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:  # biases of 0 would hide in which order things are added
        variable.assign(variable + rng.normal(0, 0.1, variable.shape))
    x = tf.constant(rng.normal(size=[batch, *model.input_shape[1:]]), tf.float32)
    y = tf.constant(rng.integers(0, 3, [batch]))
    probe = tapescope.Probe(model, layers=selection, strict=True)

    number = batch if known else None

    @tf.function(input_signature=[tf.TensorSpec([number, *x.shape[1:]]), tf.TensorSpec([number], tf.int64)])
    def step(x, y):
        with probe.tape(measure) as tape:
            out = model(x, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, out, from_logits=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        applied = gradients if clip is None else tf.clip_by_global_norm(gradients, clip)[0]
        optimizer.apply(applied, model.trainable_variables)
        return out, tape.reading(aggregated=gradients, applied=applied)

    return model, step, (x, y)


def trained(network, measure: bool, *, steps=3, **how) -> list:
    """The weights, and what came out last, after some steps of the network that `network()` makes.

    Of `how`, `known` is whether TensorFlow knows the number of examples when it traces the step, `clip` the gradients'
    largest global norm.
    """
    model, step, given = _step(network, measure, **how)
    outs = [step(*given)[0].numpy() for _ in range(steps)]
    return [*model.get_weights(), outs[-1]]


def contacts(network, **how) -> list[str]:
    """The inputs of sums of three and more which measuring holds, once TensorFlow has rewritten the step.

    Such a sum starts with whichever input nothing holds at that moment, so each contact is a race.
    """
    _, step, given = _step(network, True, **how)
    context.enable_run_metadata()
    step(*given)
    graphs = [made.post_optimization_graph for made in context.export_run_metadata().function_graphs]
    context.disable_run_metadata()
    nodes = {node.name: node for node in max(graphs, key=lambda graph: len(graph.node)).node}

    def memory(name: str) -> str:
        node = nodes[name.split(":")[0]]
        view = node.op in ("ExpandDims", "Identity", "Reshape", "Squeeze", "StopGradient")
        return memory(node.input[0]) if view else node.name

    data = {name: [i for i in node.input if not i.startswith("^")] for name, node in nodes.items()}
    measuring = [name for name, node in nodes.items() if "_tapescope" in node.attr or "tapescope_twin" in name]
    held = {memory(i) for name in measuring if nodes[name].op not in ("Shape", "ShapeN", "Size") for i in data[name]}
    held -= {name for name, node in nodes.items() if node.op in ("Const", "Placeholder", "ReadVariableOp")}
    sums = [name for name, node in nodes.items() if node.op == "AddN" and len(data[name]) > 2]
    return [i for name in sums if name not in measuring for i in data[name] if memory(i) in held]


def same_bits(first, second) -> bool:
    """Whether two lists of arrays are equal to the last bit."""
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
