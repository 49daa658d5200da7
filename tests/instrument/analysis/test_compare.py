"""Two runs compared: equal ones, and ones that differ in one layer's initializer, told by name."""

import json
import math

import keras
import numpy as np
import pytest
from scripts.testbed.steps import dense_chain

import tapescope
from tapescope import cli
from tapescope.analysis import compare, scaling

RNG = np.random.default_rng(4)
X, Y = RNG.normal(size=[32, 6]).astype(np.float32), RNG.normal(size=[32, 2]).astype(np.float32)


def train(logdir, change=None, steps=10, batch=32, measure=2):
    model = dense_chain([6, 6, 6, 2], ["relu", "tanh", "sigmoid", "linear"], 6)
    if change is not None:
        model.layers[change].kernel.assign(keras.initializers.HeNormal(99)([6, 6]))
    probe = tapescope.Probe(model)
    optimizer = keras.optimizers.SGD(0.05)
    with tapescope.Recorder(logdir, probe) as recorder:
        for n in range(steps):
            with probe.tape(n % measure == 0) as tape:
                loss = keras.ops.mean((model(X[:batch]) - Y[:batch]) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            if n % measure == 0:
                recorder.write(n, tape.reading(), {"loss": loss})
    return tapescope.Run(logdir)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"))


def test_equal_runs(one, tmp_path):
    result = compare.compare(one, train(tmp_path), 1e-6)
    assert result.equal
    assert result.aligned == 5
    assert result.forward is None
    assert set(result.ratios["gradient_norm"].values()) == {1.0}
    assert "equal within" in compare.comparison_text(result, 1e-6)


@pytest.mark.parametrize("changed", [1, 2])
def test_a_layer_with_another_initializer_is_named(changed, one, tmp_path):
    result = compare.compare(one, train(tmp_path, change=changed), 1e-5)
    assert (result.forward.name, result.forward.step) == (f"layer{changed}", 0)
    assert (result.backward.name, result.backward.step) == ("layer3", 0)  # the loss differs, so all gradients do
    text = compare.comparison_text(result, 1e-3)
    assert f"first in forward order: layer{changed} at step 0" in text
    data = json.loads(json.dumps(compare.comparison_json(result), allow_nan=False))
    assert data["forward"]["name"] == f"layer{changed}"
    assert data["equal"] is False


def test_aligned_by_examples(one, tmp_path):
    half = train(tmp_path, batch=16, steps=20, measure=1)
    assert compare.compare(one, half, by="examples").aligned == 5
    assert compare.compare(one, half).aligned == 5


def test_what_cannot_be_compared(one, tmp_path):
    other = train(tmp_path, steps=2)
    other._series = {k: s._replace(steps=s.steps + 1) for k, s in other._series.items()}
    with pytest.raises(ValueError, match="no record at the same step"):
        compare.compare(one, other)
    with pytest.raises(ValueError, match=r"`tolerance` \(0\) must be a positive"):
        compare.compare(one, one, 0)
    with pytest.raises(ValueError, match='must be "step" or "examples"'):
        compare.compare(one, one, by="time")


def test_relative_differences():
    a = np.array([1.0, np.nan, np.nan, 0.0, 1e-9, np.inf])
    b = np.array([1.1, np.nan, 1.0, 0.0, 2e-9, np.inf])
    np.testing.assert_allclose(compare._relative(a, b), [0.1 / 1.1, 0, np.inf, 0, 1e-9 / (1.1e-6), 0])


def speed(replicas, rate, noise=math.nan, batch=64.0):
    return scaling.Speed("run", replicas, batch, rate, math.nan, (1.0, 1.0, 1.0), noise)


def test_scaling(one):
    (result,) = scaling.scaling([one])
    assert result.efficiency == 1
    assert result.batch == 32
    assert result.step_ms[0] <= result.step_ms[1] <= result.step_ms[2]
    seconds = one.wall_times[-1] - one.wall_times[0]
    assert result.examples_per_second == pytest.approx(8 * 32 / seconds)


@pytest.mark.parametrize(("noise", "verdict"), [(math.nan, "not known"), (1000, "yes"), (64, "partly"), (4, "no:")])
def test_whether_a_larger_batch_is_worth_it(noise, verdict):
    assert speed(2, 100, noise).worth.startswith(verdict)


def test_the_command_line(one, tmp_path, capsys):
    other = train(tmp_path / "other", change=1)
    assert cli.main(["compare", one.logdir, one.logdir]) == 0
    assert cli.main(["compare", one.logdir, other.logdir]) == 1
    assert "layer1" in capsys.readouterr().out
    assert cli.main(["compare", one.logdir, other.logdir, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["forward"]["name"] == "layer1"
    assert cli.main(["compare", one.logdir, str(tmp_path / "nowhere")]) == 2
    assert cli.main(["compare", one.logdir, str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "is no run but holds 1; name one of them" in lines[1]
    assert cli.main(["scaling", one.logdir, other.logdir]) == 0
    assert "efficiency" in capsys.readouterr().out
    assert cli.main(["report", one.logdir, f"--output={tmp_path / 'page.html'}"]) == 0
    assert (tmp_path / "page.html").stat().st_size > 1e6
