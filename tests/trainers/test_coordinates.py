"""The coordinate check: slopes against a closed form, and models that depend on their width and that do not."""

import json
import textwrap

import numpy as np
import pytest

from tapescope import cli
from tapescope_trainers import coordinates

WIDTHS = [32, 128, 512]
MODELS = """
    import keras

    def build(width):
        hidden = keras.initializers.VarianceScaling(1.0, "fan_in")
        readout = keras.initializers.VarianceScaling(1.0 / width, "fan_in")
        model = keras.Sequential([
            keras.Input((8, 8)),
            keras.layers.Flatten(),
            keras.layers.Dense(width, "tanh", kernel_initializer=hidden, name="first"),
            keras.layers.Dense(width, "tanh", kernel_initializer=hidden, name="second"),
            keras.layers.Dense(10, "softmax", kernel_initializer=readout, name="readout"),
        ])
        model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
        return model

    def unscaled(width):
        model = build(width)
        model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
        return model

    class Scaled(keras.layers.Dense):
        def __init__(self, units, scale, deviation, **options):
            kernel = keras.initializers.RandomNormal(stddev=deviation)
            super().__init__(units, use_bias=False, kernel_initializer=kernel, **options)
            self.scale = scale

        def call(self, inputs):
            return self.activation(self.scale * keras.ops.matmul(inputs, self.kernel))

    class FailsInTraining(keras.Sequential):
        def call(self, x, training=False):
            if training:
                raise RuntimeError("only in training")
            return super().call(x)

    def failing(width):
        model = FailsInTraining(build(width).layers)
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    def maximal_update(width):
        '''The parametrization of Tensor Programs V for Adam, with multipliers in place of learning rates.'''
        model = keras.Sequential([
            keras.Input((8, 8)),
            keras.layers.Flatten(),
            Scaled(width, 1.0, 0.125, activation="tanh", name="first"),
            Scaled(width, 1 / width, width**0.5, activation="tanh", name="second"),
            Scaled(10, 1 / width, 1.0, activation="softmax", name="readout"),
        ])
        model.compile(keras.optimizers.Adam(0.02, epsilon=1e-12), "sparse_categorical_crossentropy")
        return model
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "widemodels.py").write_text(textwrap.dedent(MODELS))
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "widemodels.py")


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_the_slope_is_the_power_of_the_width(power):
    assert coordinates.slope(WIDTHS, 3 * np.array(WIDTHS, float) ** power) == pytest.approx(power)


def test_the_slope_is_that_of_least_squares():
    values = np.array([1.0, 3.0, 2.0])
    expected = np.polyfit(np.log(WIDTHS), np.log(values), 1)[0]
    assert coordinates.slope(WIDTHS, values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("output", "change", "verdict"),
    [
        ([1, 1, 1], [1, 1, 1], "ok"),
        ([4, 2, 1], [1, 1, 1], "ok"),
        ([1, 2, 4], [1, 1, 1], "output grows"),
        ([1, 1, 1], [1, 2, 4], "change grows"),
        ([1, 1, 1], [4, 2, 1], "change vanishes"),
        ([1, 1, 1], [0, 0, 0], "change vanishes"),
        ([1, 1, np.nan], [1, 1, 1], "not finite"),
    ],
)
def test_verdicts_of_a_layer(output, change, verdict):
    assert coordinates.judge("a", WIDTHS, output, change).verdict == verdict


@pytest.mark.slow
def test_a_learning_rate_that_does_not_shrink_with_the_width_is_found(models, capsys):
    code = cli.main(["coordinates", f"--model={models}:unscaled", "--widths=32,128,512", "--seeds=1", "--json"])
    found = json.loads(capsys.readouterr().out)
    by_name = {layer["layer"]: layer for layer in found["layers"]}
    assert code == cli.FOUND
    assert not found["independent"]
    assert by_name["second"]["verdict"] == "change grows"
    assert (len(by_name["second"]["output"]), found["widths"]) == (3, WIDTHS)


@pytest.mark.slow
def test_the_maximal_update_parametrization_is_independent(models, capsys):
    code = cli.main(["coordinates", f"--model={models}:maximal_update", "--widths=64,256,1024", "--seeds=2"])
    out = capsys.readouterr().out
    assert "no layer depends on the width" in out, out
    assert code == cli.SUCCESS


def test_the_changes_are_those_of_the_outputs(models):
    found = coordinates.check(f"{models}:build", "digits", [32, 64], seeds=1, steps=1, batch_size=16)
    import keras

    from tapescope_trainers.training import data, user_data

    examples = user_data.from_builtin(data.load("digits"))
    x, y = next(iter(user_data.batches(examples, 16, seed=0)))
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    namespace: dict = {}
    exec(textwrap.dedent(MODELS), namespace)
    model = namespace["build"](32)
    first = keras.Sequential(model.layers[:2])
    before = np.asarray(first(x), np.float64)
    model.train_on_batch(x, y)
    change = np.asarray(first(x), np.float64) - before
    assert found.layers[0].change[0] == pytest.approx(np.sqrt(np.mean(change**2)), rel=1e-3)


@pytest.mark.nightly
def test_the_figure_needs_no_network(models, tmp_path, capsys):
    assert cli.main(["coordinates", "--widths=16,32", "--seeds=1", "--steps=1", "--output=page.html"]) in (0, 1)
    assert capsys.readouterr().out.splitlines()[-1] == "wrote page.html"
    assert "<script src=" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=relu_sigmoid"], "--model=relu_sigmoid has a fixed width"),
        (["--model=nothing"], "--model must be mlp, cnn, resnet, transformer or package.module:build; got nothing"),
        (["--data=digit"], "--data=digit must be one of digits, "),
        (["--loss=mse"], "--loss=mse is of your own model"),
        (["--widths=64"], "--widths must be at least two rising"),
        (["--widths=64,32"], "--widths must be at least two rising"),
        (["--model=no_such_module:build"], "cannot be imported"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert cli.main(["coordinates", *arguments]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--steps", "--seeds", "--batch_size"])
@pytest.mark.parametrize("value", ["0", "x"])
def test_a_count_that_is_none_is_named(flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["coordinates", f"{flag}={value}"])
    assert ended.value.code == cli.BAD_INPUT
    assert f"argument {flag}: must be a whole number from 1; got {value}: " in capsys.readouterr().err


def test_a_function_that_fails_is_named(models, capsys):
    assert cli.main(["coordinates", f"--model={models}:failing", "--widths=4,8"]) == cli.BAD_INPUT
    assert "your function call failed: RuntimeError: only in training, at " in capsys.readouterr().err
