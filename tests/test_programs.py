"""The programs in examples/: measuring does not change their weights, and their runs have the right rows."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tapescope

EXAMPLES = Path(__file__).parent.parent / "examples"
ROWS = {
    "writing_a_training_loop_from_scratch": "dense_1 dense_2 predictions",
    "dcgan": """
        generator/dense generator/leaky_re_lu generator/leaky_re_lu_1
        generator/conv2d_transpose generator/conv2d_transpose_1
        discriminator/conv2d discriminator/leaky_re_lu_2 discriminator/conv2d_1
        discriminator/leaky_re_lu_3 discriminator/dense_1
        discriminator/conv2d#2 discriminator/leaky_re_lu_2#2 discriminator/conv2d_1#2
        discriminator/leaky_re_lu_3#2 discriminator/dense_1#2
    """,
    "variational_autoencoder": """
        encoder/conv_1 encoder/conv_2 encoder/dense encoder/z_mean encoder/z_log_var
        decoder/dense decoder/conv_1 decoder/conv_2 decoder/pixels
    """,
    "text_classification_with_transformer": """
        block/attention/query block/attention/key block/attention/value
        block/attention/attention_output block/feed_forward/inner block/feed_forward/outer
        hidden output
    """,
    "time_series_forecasting": "lstm_1 lstm_2 next_hour",
    "residual_network": """
        conv2d activation conv2d_1 activation_1 conv2d_2 activation_2
        conv2d_3 activation_3 conv2d_4 shortcut activation_4 classes
    """,
    "wgan_gp": """
        critic/hidden_1 critic/hidden_2 critic/out
        critic/hidden_1#2 critic/hidden_2#2 critic/out#2
        critic/hidden_1#3 critic/hidden_2#3 critic/out#3
        generator/hidden_1 generator/hidden_2 generator/out
    """,
}
"""The rows of each program. The discriminator reads the real images (first) and the generated ones. The critic reads
generated points, real points, and points between them for the penalty.
"""

NO_DELTA = {
    "variational_autoencoder": {"decoder/pixels"},
    "text_classification_with_transformer": {"output"},
    "residual_network": {"classes"},
    "wgan_gp": {"critic/hidden_2#3", "critic/out#3"},
}
"""Rows on whose output the loss does not depend. Keras' cross-entropy reads the logits before the last activation. A
penalty on a gradient depends on the slopes of the last layers and not on their outputs.
"""


class Trained(NamedTuple):
    """One program's results without and with measuring."""

    name: str
    plain_weights: list[np.ndarray]
    plain_losses: Any
    weights: list[np.ndarray]
    losses: Any
    run: tapescope.Run


def all_weights(models):
    models = models if isinstance(models, tuple) else (models,)
    return [weight for model in models for weight in model.get_weights()]


def test_every_program_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ROWS)


pytestmark = pytest.mark.slow
NIGHTLY = ("variational_autoencoder", "text_classification_with_transformer", "time_series_forecasting")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.nightly if name in NIGHTLY else ()) for name in ROWS],
)
def trained(request, tmp_path_factory):
    """One program, trained without and with measuring."""
    name = request.param
    directory = tmp_path_factory.mktemp(name)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    epochs = 2 if name == "wgan_gp" else 1
    program.keras.backend.clear_session(free_memory=False)
    plain, plain_losses, _ = program.train(False, epochs, directory / "plain")
    plain_weights = all_weights(plain)
    program.keras.backend.clear_session(free_memory=False)
    measured, losses, _ = program.train(True, epochs, directory / "measured")
    return Trained(
        name=name,
        plain_weights=plain_weights,
        plain_losses=plain_losses,
        weights=all_weights(measured),
        losses=losses,
        run=tapescope.Run(directory / "measured"),
    )


def test_measuring_does_not_change_the_weights(trained):
    for weight, other in zip(trained.weights, trained.plain_weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def test_measuring_does_not_change_the_losses(trained):
    """Keras sums the losses of an epoch by AddN, whose order TensorFlow itself does not keep: two ulp are allowed."""
    np.testing.assert_array_max_ulp(np.float32(trained.plain_losses), np.float32(trained.losses), maxulp=2)


def test_the_run_has_the_rows_of_the_program(trained):
    assert set(trained.run.layers) == set(ROWS[trained.name].split())


def test_several_steps_are_recorded(trained):
    assert len(trained.run.steps) >= 2


def test_a_healthy_program_has_no_error(trained):
    assert [finding for finding in trained.run.findings if finding["severity"] == "error"] == []


def test_gradient_norms_are_finite(trained):
    assert np.all(np.isfinite(trained.run["gradient_norm"]))


def test_only_known_rows_have_no_delta_norm(trained):
    finite = np.isfinite(trained.run["delta_norm"]).all(0)
    without = {layer for layer, known in zip(trained.run.layers, finite, strict=True) if not known}
    assert without == NO_DELTA.get(trained.name, set())
