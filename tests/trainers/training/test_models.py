"""The networks: Examples 1 to 3 as in the text, the others by their flags."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tapescope_trainers import flags
from tapescope_trainers.training import models

SHAPED = [preset for preset in flags.PRESETS if preset not in flags.EXAMPLE_PRESETS]


def outline(model: keras.Model) -> list[tuple]:
    """Return name, type, units and activation of each dense layer."""
    return [
        (layer.name, type(layer).__name__, getattr(layer, "units", None), getattr(layer, "activation", None).__name__)
        for layer in model.layers
        if isinstance(layer, keras.layers.Dense)
    ]


def test_example_1_is_that_of_the_text():
    model = models.build("relu_sigmoid", (28, 28), 10)
    assert type(model) is keras.Sequential
    assert model.input_shape == (None, 784)
    assert [type(layer) for layer in model.layers] == [keras.layers.Dense] * 2
    assert outline(model) == [("hidden", "Dense", 64, "relu"), ("output", "Dense", 10, "sigmoid")]


def test_example_2_is_that_of_the_text():
    model = models.build("sigmoid_relu", (28, 28), 10)
    assert type(model) is keras.Sequential
    assert [type(layer) for layer in model.layers] == [keras.layers.Dense] * 2
    assert outline(model) == [("hidden", "Dense", 64, "sigmoid"), ("output", "Dense", 10, "relu")]


def test_example_3_is_that_of_the_text():
    model = models.build("parallel_branches", (28, 28), 10)
    relu, sigmoid, merged = (model.get_layer(n) for n in ("relu_branch", "sigmoid_branch", "merged"))
    assert type(merged) is keras.layers.Concatenate
    assert [tensor.name for tensor in merged.input] == [relu.output.name, sigmoid.output.name]
    assert relu.input is sigmoid.input is model.input
    assert outline(model) == [
        ("relu_branch", "Dense", 64, "relu"),
        ("sigmoid_branch", "Dense", 64, "sigmoid"),
        ("output", "Dense", 10, "softmax"),
    ]
    assert model.count_params() == 2 * 785 * 64 + 129 * 10


@pytest.mark.parametrize("preset", flags.PRESETS)
@pytest.mark.parametrize("precision", flags.PRECISIONS)
def test_every_preset_returns_float32(preset, precision):
    model = models.build(preset, (8, 8, 3), 7, mixed_precision=precision)
    output = model(np.random.default_rng(0).random([4, 192], np.float32))
    assert output.shape == (4, 7)
    assert output.dtype == tf.float32
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("preset", SHAPED)
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_sets_the_compute_type(preset, precision):
    model = models.build(preset, (8, 8, 3), 7, mixed_precision=precision)
    assert model.layers[1].compute_dtype == precision


@pytest.mark.parametrize("preset", SHAPED)
def test_outputs_are_probabilities(preset):
    output = models.build(preset, (8, 8, 3), 7)(np.random.default_rng(0).random([4, 192], np.float32))
    np.testing.assert_allclose(tf.reduce_sum(output, -1), 1, rtol=1e-5)


@pytest.mark.parametrize("activation", flags.ACTIVATIONS)
def test_activation_is_set(activation):
    model = models.build("mlp", (8, 8), 10, activation=activation, depth=3, width=5)
    assert outline(model)[:-1] == [(f"hidden_{n}", "Dense", 5, activation) for n in (1, 2, 3)]


@pytest.mark.parametrize("initializer", flags.INITIALIZERS)
def test_initializer_is_set(initializer):
    model = models.build("mlp", (8, 8), 10, initializer=initializer)
    config = model.layers[1].kernel_initializer.get_config()
    assert config == keras.initializers.get(initializer).get_config()
    assert type(model.layers[1].kernel_initializer) is type(keras.initializers.get(initializer))


@pytest.mark.parametrize(("preset", "part", "per_block"), [("cnn", "conv_", 1), ("resnet", "conv_", 2)])
def test_depth_and_width_of_the_image_networks(preset, part, per_block):
    model = models.build(preset, (8, 8), 10, depth=3, width=12)
    convolutions = [layer for layer in model.layers if part in layer.name]
    assert len(convolutions) == 3 * per_block
    assert {layer.filters for layer in convolutions} == {12}


def test_depth_and_width_of_the_transformer():
    model = models.build("transformer", (8, 8), 10, depth=3, width=12)
    assert len([layer for layer in model.layers if layer.name.endswith("_attention")]) == 3
    assert model.get_layer("embed").units == 12


def test_the_transformer_depends_on_positions():
    model = models.build("transformer", (8, 8), 10)
    x = np.random.default_rng(0).random([1, 8, 8], np.float32)
    reversed_rows = x[:, ::-1]
    assert not np.allclose(model(x.reshape(1, 64)), model(reversed_rows.reshape(1, 64)), atol=1e-4)


@pytest.mark.parametrize("preset", ["cnn", "resnet", "transformer"])
def test_flat_examples_are_refused(preset):
    with pytest.raises(ValueError, match=r"got shape \(64,\): use --preset=mlp"):
        models.build(preset, (64,), 10)
