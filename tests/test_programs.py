"""The programs in examples/: the same weights to the bit with measuring on and off, and the right rows."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import tapescope

EXAMPLES = Path(__file__).parent.parent / "examples"
ROWS = {
    "writing_a_training_loop_from_scratch": ("dense_1", "dense_2", "predictions"),
    "dcgan": (
        *("generator/dense", "generator/leaky_re_lu", "generator/leaky_re_lu_1"),
        *("generator/conv2d_transpose", "generator/conv2d_transpose_1"),
        *("discriminator/conv2d", "discriminator/leaky_re_lu_2", "discriminator/conv2d_1"),
        *("discriminator/leaky_re_lu_3", "discriminator/dense_1"),  # of the real images, then of the generated
        *("discriminator/conv2d#2", "discriminator/leaky_re_lu_2#2", "discriminator/conv2d_1#2"),
        *("discriminator/leaky_re_lu_3#2", "discriminator/dense_1#2"),
    ),
    "variational_autoencoder": (
        *("encoder/conv_1", "encoder/conv_2", "encoder/dense", "encoder/z_mean", "encoder/z_log_var"),
        *("decoder/dense", "decoder/conv_1", "decoder/conv_2", "decoder/pixels"),
    ),
    "text_classification_with_transformer": (
        *("block/attention/query", "block/attention/key", "block/attention/value"),
        *("block/attention/attention_output", "block/feed_forward/inner", "block/feed_forward/outer"),
        *("hidden", "output"),
    ),
    "time_series_forecasting": ("lstm_1", "lstm_2", "next_hour"),
    "residual_network": (
        *("conv2d", "activation", "conv2d_1", "activation_1", "conv2d_2", "activation_2"),
        *("conv2d_3", "activation_3", "conv2d_4", "shortcut", "activation_4", "classes"),
    ),
    "wgan_gp": (
        *("critic/hidden_1", "critic/hidden_2", "critic/out"),  # generated, real, and between, for the penalty
        *("critic/hidden_1#2", "critic/hidden_2#2", "critic/out#2"),
        *("critic/hidden_1#3", "critic/hidden_2#3", "critic/out#3"),
        *("generator/hidden_1", "generator/hidden_2", "generator/out"),
    ),
}

NO_DELTA = {
    "variational_autoencoder": {"decoder/pixels"},
    "text_classification_with_transformer": {"output"},
    "residual_network": {"classes"},
    "wgan_gp": {"critic/hidden_2#3", "critic/out#3"},
}
"""Rows through whose output the loss does not go: Keras' cross-entropy takes the logits behind the last activation, and
a penalty on a gradient depends on the slopes of the layers, not on what comes out of the last ones.
"""


def weights(trained):
    models = trained if isinstance(trained, tuple) else (trained,)
    return [w for model in models for w in model.get_weights()]


def test_every_program_is_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_the_same_bits_with_measuring_on_and_off(name, tmp_path):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    epochs = 2 if name == "wgan_gp" else 1
    plain, losses, _ = program.train(False, epochs, tmp_path / "off")
    without = weights(plain)
    program.keras.backend.clear_session()
    measured, same_losses, _ = program.train(True, epochs, tmp_path / "on")
    # Keras sums the epoch's losses by TensorFlow's AddN, which starts with whichever of its terms is free: without
    # measuring, too, the autoencoder's loss is now the one, now the other of two neighbouring float32.
    np.testing.assert_array_max_ulp(np.float32(losses), np.float32(same_losses), maxulp=2)
    for on, off in zip(weights(measured), without, strict=True):
        np.testing.assert_array_equal(on, off)
    run = tapescope.Run(tmp_path / "on")
    assert set(run.layers) == set(ROWS[name])
    assert len(run.steps) >= 2
    assert not [f for f in run.findings if f["severity"] == "error"]
    assert np.all(np.isfinite(run["gradient_norm"]))
    known = np.isfinite(run["delta_norm"]).all(0)
    assert {layer for layer, there in zip(run.layers, known, strict=True) if not there} == NO_DELTA.get(name, set())
