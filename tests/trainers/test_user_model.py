"""A model, data, loss and metrics of the user: trained as by Keras itself, resumed exactly, and refused in one line."""

import inspect
import json
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope
from tapescope_trainers import train, user_code
from tapescope_trainers.training import build, models, objective, resume, user_data
from tests.trainers import trainings

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = ("--model=own_model.network:build", "--data=own_model.dataset:load", "--loss=mse", "--nohistograms")

SOURCE = """
import keras
import numpy as np
import tensorflow as tf

X = np.random.default_rng(0).normal(size=[40, 4]).astype("float32")
Y = (X[:, 0] > 0).astype("int32")

def net(width=4, outputs=2):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(width, "tanh"), keras.layers.Dense(outputs)])

def softmax():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])

def compiled():
    model = net(outputs=1)
    model.compile(loss="binary_crossentropy")
    return model

class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.unused = keras.layers.Dense(1)
        self.unused.build((None, 3))

    def call(self, x, training=False):
        return self.dense(x)

def named():
    a, b = keras.Input((4,), name="a"), keras.Input((1,), name="b")
    hidden = keras.layers.Concatenate()([keras.layers.Dense(3, "relu")(a), b])
    heads = {"p": keras.layers.Dense(1, name="p")(hidden), "q": keras.layers.Dense(1, name="q")(hidden)}
    return keras.Model({"a": a, "b": b}, heads)

def two():
    x = keras.Input((4,))
    return keras.Model(x, [keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)])

def flat():
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])

def frozen():
    model = net()
    model.trainable = False
    return model

def text(): return "a model"
def broken(): raise RuntimeError("the file is\\nmissing")
def loss_from_logits(): return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
def bad_loss(y, outputs): return outputs @ y
def whole(y, outputs): return sum(tf.reduce_mean(tf.square(outputs[name] - y[name])) for name in y)
logits = loss_from_logits()
number = 3

def arrays(): return X, Y
def halves(): return (X[:30], Y[:30]), (X[30:], Y[30:])
def named_arrays(): return {"x_train": X, "y_train": Y}
def dataset(): return tf.data.Dataset.from_tensor_slices((X, Y))
def named_pairs():
    b = X[:, :1]
    return {"a": X, "b": b}, {"p": b, "q": 2 * b}
def short(): return X, Y[:3]
def ragged(): return [[1], [1, 2]], [0, 1]
def batched(): return dataset().batch(7)
def endless(): return dataset().repeat()
def empty(): return dataset().take(0)
def single(): return tf.data.Dataset.from_tensor_slices(X)
def large_labels(): return X, Y + 5
def one(): return X[:1], Y[:1]
def text_labels(): return X, np.where(Y > 0, "yes", "no")
def text_validation(): return (X, Y), (X, np.where(Y > 0, "yes", "no"))
def wide_validation(): return (X, Y), (np.tile(X, 2), Y)
def new_class(): return (X, Y), (X, Y + 1)
def minus_one(): return X, Y - 1
def dates(): return X, np.full(len(X), np.datetime64("2020-01-01"))
def generated():
    def examples():
        yield X[0], Y[0]
        raise RuntimeError("the disk is gone")
    return tf.data.Dataset.from_generator(examples, output_types=(tf.float32, tf.int32), output_shapes=([4], []))

class MeanOnly(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x, training=False):
        return tf.reduce_mean(self.dense(x))

class FailsInTraining(Unbuilt):
    def call(self, x, training=False):
        if training:
            raise RuntimeError("only in training")
        return self.dense(x)

class FailsWhenRun(Unbuilt):
    def call(self, x, training=False):
        if training:
            tf.debugging.assert_greater(tf.reduce_sum(x), 1e9, message="too small")
        return self.dense(x)

class FailsLater(keras.metrics.Mean):
    calls = 0
    def update_state(self, y, outputs):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("only later")
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return the start of a reference to a function of SOURCE."""
    path = tmp_path_factory.mktemp("own") / "own_code.py"
    path.write_text(SOURCE)
    return f"{path}:"


@pytest.fixture
def in_examples(monkeypatch):
    monkeypatch.chdir(EXAMPLES)


def prepare(tmp_path, *arguments):
    options = trainings.parse(tmp_path, "--batch_size=8", "--steps=4", "--nohistograms", *arguments)
    training = build.prepare(options, continues=resume.check(options))
    training.recorder.close()
    return training


def run_own(tmp_path, own, model, data, *arguments):
    flags = (f"--model={own}{model}", f"--data={own}{data}", "--batch_size=8", "--steps=4", "--nohistograms")
    return trainings.run(tmp_path, *flags, *arguments)


def weights_after(tmp_path, *arguments, measure=False):
    logdir = tmp_path / f"run_{len(list(tmp_path.iterdir()))}"
    return trainings.take_steps(logdir, 5, *EXAMPLE, *arguments, measure=lambda n: measure and n % 2 == 0).weights


def assert_close(actual, expected, tolerance=1e-5):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Train the package in examples/, and return its directory."""
    logdir = tmp_path_factory.mktemp("example")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(EXAMPLES)
        more = ('--model_args={"depth": 2}', "--metrics=mae,own_model.scores:WithinTenth", "--steps=40")
        trainings.run(logdir, *EXAMPLE[:2], "--loss=own_model.scores:log_cosh_error", *more, "--validate_every=20")
    return logdir


def test_the_example_has_a_row_for_each_layer(example):
    assert tapescope.Run(example).layers == ("hidden_1", "hidden_2", "output")


def test_the_example_has_its_metrics(example):
    scalars = json.loads((example / "index.json").read_text())["scalars"]
    assert {"validation/loss", "validation/mean_absolute_error", "validation/within_tenth"} <= scalars.keys()


def test_the_example_learns(example):
    loss = json.loads((example / "index.json").read_text())["loss"]
    assert loss["last"] < loss["first"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--strategy=mirrored", "--devices=cpu:2"),
        pytest.param(("--accumulate_steps=4",), marks=pytest.mark.nightly),
        pytest.param(("--jit_compile",), marks=pytest.mark.nightly),
    ],
    ids=["replicas", "accumulation", "XLA"],
)
def test_the_weights_do_not_depend_on(tmp_path, in_examples, more):
    assert_close(weights_after(tmp_path, *more, measure=True), weights_after(tmp_path), 1e-4)


def test_measuring_does_not_change_the_weights_of(tmp_path, in_examples):
    for a, b in zip(weights_after(tmp_path, measure=True), weights_after(tmp_path), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_resumed_training_has_the_same_bits(tmp_path, in_examples):
    more = (*EXAMPLE, "--checkpoint_every=5", "--metrics=mae")
    whole = trainings.run(tmp_path / "whole", *more, "--steps=20")
    trainings.run(tmp_path / "resumed", *more, "--steps=10")
    resumed = trainings.run(tmp_path / "resumed", *more, "--steps=20")
    for a, b in zip(whole.parts.model.get_weights(), resumed.parts.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("model", "data", "loss"),
    [
        ("net", "arrays", "logits"),
        ("softmax", "arrays", "sparse_categorical_crossentropy"),
        ("compiled", "arrays", None),
    ],
)
def test_one_step_is_that_of_fit(tmp_path, own, model, data, loss):
    more = ("--optimizer=sgd", "--learning_rate=0.5", "--batch_size=32", "--steps=1", "--measure_every=1")
    more += () if loss is None else (f"--loss={own}{loss}" if loss == "logits" else f"--loss={loss}",)
    initial = []
    training = run_own_from(tmp_path, own, model, data, more, initial)
    expected = training.parts.model
    ours = expected.get_weights()
    expected.set_weights(initial)
    expected.compile(keras.optimizers.SGD(0.5), loss=training.parts.objective.loss)
    x, y = training.parts.data.x_train, training.parts.data.y_train
    expected.fit(x, y, batch_size=32, epochs=1, verbose=0, shuffle=False)
    assert_close(ours, expected.get_weights())


def run_own_from(tmp_path, own, model, data, more, initial):
    flags = (f"--model={own}{model}", f"--data={own}{data}", "--nohistograms", *more)
    return trainings.run(tmp_path, *flags, change=lambda training: initial.extend(training.parts.model.get_weights()))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--strategy=mirrored", "--devices=cpu:2")], ids=["one device", "two replicas"])
def test_validation_is_that_of_keras(tmp_path, in_examples, more):
    options = trainings.parse(tmp_path, *EXAMPLE, "--metrics=mae,r2_score", "--batch_size=66", *more)
    training = build.prepare(options)
    training.recorder.close()
    found = build.make_validation(options, training.parts)()
    y = training.parts.data.y_valid
    outputs = training.parts.model(training.parts.data.x_valid).numpy()
    expected = {
        "validation/loss": np.mean((outputs - y) ** 2),
        "validation/mean_absolute_error": np.mean(np.abs(outputs - y)),
        "validation/r2_score": 1 - np.sum((outputs - y) ** 2) / np.sum((y - y.mean()) ** 2),
    }
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "data", "more"),
    [
        ("net", "halves", ("--loss={own}logits", "--metrics=accuracy")),
        ("net", "dataset", ("--loss={own}loss_from_logits()",)),
        ("Unbuilt", "arrays", ("--loss={own}logits", "--metrics={own}keras.metrics.SparseCategoricalAccuracy")),
        ("named", "named_pairs", ("--loss=mse",)),
        ("named", "named_pairs", ("--loss={own}whole", "--accumulate_steps=2")),
        ("net", "arrays", ("--loss={own}logits", "--mixed_precision=float16")),
        ("compiled", "named_arrays", ("--metrics=accuracy,AUC",)),
    ],
)
def test_trains(tmp_path, own, model, data, more):
    flags = [flag.format(own=own).replace("loss_from_logits()", "logits") for flag in more]
    training = run_own(tmp_path, own, model, data, *flags, "--measure_every=2")
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 2]
    assert all(np.isfinite(weight).all() for weight in training.parts.model.get_weights())


def test_a_preset_trains_on_data_of_ours(tmp_path, own):
    trainings.run(tmp_path, "--preset=mlp", "--depth=1", f"--data={own}arrays", "--batch_size=8", "--steps=2")
    assert len(tapescope.Run(tmp_path).steps)


def test_a_model_of_ours_trains_on_the_digits(tmp_path, own):
    training = prepare(tmp_path, f"--model={own}flat", "--loss=sparse_categorical_crossentropy")
    assert training.parts.data.x_train.shape[1:] == (8, 8)
    assert training.parts.data.x_train.dtype == np.float32
    assert training.parts.data.x_train.max() == 1


def test_the_rules_know_targets_and_loss(tmp_path, own):
    run_own(tmp_path, own, "softmax", "arrays", "--loss=sparse_categorical_crossentropy", "--measure_every=1")
    (objective_of_output,) = tapescope.Run(tmp_path).details["objectives"]
    assert "sparse_categorical_crossentropy" in json.dumps(objective_of_output)


def test_the_arguments_reach_the_function(tmp_path, own):
    model = prepare(
        tmp_path, f"--model={own}net", '--model_args={"width": 7}', f"--data={own}arrays", f"--loss={own}logits"
    ).parts.model
    assert model.layers[0].units == 7


def test_the_split_depends_on_the_seed(own):
    first, again, other = (user_data.load(f"{own}arrays", seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x_valid, again.x_valid)
    assert not np.array_equal(first.x_valid, other.x_valid)


def test_a_run_goes_on_only_with_the_same_model(tmp_path, own):
    run_own(tmp_path, own, "net", "arrays", f"--loss={own}logits", "--checkpoint_every=2")
    with pytest.raises(ValueError, match="can only continue with that"):
        run_own(tmp_path, own, "softmax", "arrays", f"--loss={own}logits", "--checkpoint_every=2")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model=missing_package.net:build", "ModuleNotFoundError: No module named 'missing_package': write package"),
        ("--model=/missing/file.py:build", "there is no file /missing/file.py"),
        ("--model={own}missing", "has no missing"),
        ("--model={own}number", "must be a function; got int"),
        ("--model={own}broken", "failed: RuntimeError: the file is, at "),
        ("--model={own}text", "must return a keras.Model of Keras 3; got str"),
        ('--model={own}net --model_args={{"depth":3}}', "failed: TypeError: net() got an unexpected keyword"),
        ("--model={own}frozen", "must return a model with trainable variables"),
        ("--model={own}net", "--loss is needed"),
        ("--model={own}net --loss=mean_square", "function: did you mean mean_squared_error?"),
        ("--model={own}net --loss={own}number", "must be a Keras loss or a function; got int"),
        ("--model={own}net --loss={own}bad_loss", "--loss does not fit: the targets are int32 [N], and"),
        ("--model={own}named --loss=mse", "--model does not fit --data, whose training examples are float32 [N, 4]"),
        ("--model={own}MeanOnly --loss=mse", "must return an output for each example; the targets are int32 [N], and"),
        ("--model={own}net --loss={own}logits --metrics=accurate", "--metrics=accurate is not a metric of Keras"),
        ("--model={own}net --loss={own}logits --metrics={own}number", "must be a Keras metric or a function; got int"),
        ("--model={own}net --loss={own}logits --data={own}broken", "failed: RuntimeError"),
        ("--model={own}net --loss={own}logits --data={own}text", "must return arrays (x, y)"),
        ("--model={own}net --loss={own}logits --data={own}short", "as many examples as targets; got arrays of shape"),
        ("--model={own}net --loss={own}logits --data={own}ragged", "must return"),
        ("--model={own}net --loss={own}logits --data={own}batched", "use .unbatch() if they are batches"),
        ("--model={own}net --loss={own}logits --data={own}endless", "leave out .repeat()"),
        ("--model={own}net --loss={own}logits --data={own}empty", "returned an empty dataset"),
        ("--model={own}net --loss={own}logits --data={own}single", "must return a dataset of pairs (x, y)"),
        (
            "--model={own}net --loss={own}logits --data={own}large_labels",
            "labels from 5 to 6, but --model has 2 outputs",
        ),
        ("--model={own}net --loss={own}logits --data={own}new_class", "labels from 1 to 2, but --model has 2 outputs"),
        ("--model={own}net --loss={own}logits --data={own}minus_one", "labels from -1 to 0, but --model has 2 outputs"),
        ("--preset=mlp --data={own}minus_one", "labels must be integers from 0; got -1: number the classes"),
        ("--model={own}net --loss={own}logits --data={own}text_labels", "has targets of text, such as '"),
        ("--model={own}net --loss={own}logits --data={own}text_validation", "has targets of text, such as '"),
        ("--model={own}net --loss={own}logits --data={own}wide_validation", "validation examples are float32 [N, 8]"),
        (
            "--model={own}net --loss={own}logits --data={own}dates",
            "must return arrays of numbers or text; got type date",
        ),
        ("--model={own}net --loss={own}logits --data={own}generated", "RuntimeError: the disk is gone, at "),
        ("--model={own}two --loss={own}logits", "must have a target for each output; the targets are int32 [N], and"),
        ("--model={own}net --loss={own}logits --data={own}one", "training and validation examples are needed"),
        ("--model={own}named --loss=mse --metrics=accuracy --data={own}named_pairs", "needs a model with one output"),
        ("--preset=mlp --data={own}named_pairs", "a preset takes one array of examples"),
    ],
)
def test_bad_input_is_one_line(tmp_path, own, flags, message):
    arguments = flags.format(own=own).split(" ")
    arguments += [] if "--data=" in flags else [f"--data={own}arrays"]
    with pytest.raises(ValueError, match=r".") as raised:
        prepare(tmp_path, *arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=net"], "must be package.module:function"),
        (["--model_args={}"], "is of your own model"),
        (["--loss=mse"], "is of your own model"),
        (["--model=a:b", "--model_args=[1]"], "must be a JSON object"),
        (["--model=a:b", "--model_args={width: 1}"], "must be a JSON object"),
        (["--model=a:b", "--preset=mlp"], "does not apply to --model=a:b"),
        (["--model=a:b", "--depth=2"], "does not apply to --model=a:b"),
        (["--data=digit"], "did you mean digits?"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=r".") as raised:
        trainings.parse(tmp_path, *arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_is_imported_once(own):
    assert user_code.load("model", f"{own}X") is user_code.load("data", f"{own}X")


def test_a_file_is_not_taken_for_a_module_of_its_name(tmp_path):
    (tmp_path / "json.py").write_text("def build(): return 5\n")
    assert user_code.call("model", f"{tmp_path}/json.py:build") == 5
    assert json.loads("[]") == []


def test_an_error_names_the_place_in_the_users_file(tmp_path):
    path = tmp_path / "place.py"
    path.write_text(
        textwrap.dedent("""
        def build():
            return {}["width"]
    """)
    )
    with pytest.raises(ValueError, match=r"KeyError: 'width', at .*place\.py:3"):
        user_code.call("model", f"{path}:build")


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("FailsInTraining", "", "your function call failed: RuntimeError: only in training, at "),
        ("FailsWhenRun", "", "your function call failed: InvalidArgumentError: assertion failed: [too small"),
        ("net", "--metrics={own}FailsLater", "your function update_state failed: RuntimeError: only later, at "),
        ("broken", "", "broken failed: RuntimeError: the file is, at "),
    ],
)
def test_a_function_that_fails_is_one_line_with_a_traceback_in_a_file(tmp_path, own, capsys, model, more, message):
    options = [f"--loss={own}logits", "--steps=2", "--batch_size=8", *more.format(own=own).split()]
    with pytest.raises(SystemExit) as raised:
        train.run(trainings.parse(tmp_path, f"--model={own}{model}", f"--data={own}arrays", *options))
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("tapescope-train: "))
    assert raised.value.code == train.EXIT_BAD_INPUT
    assert message in line
    assert line.endswith(f". Its traceback is in {tmp_path / 'traceback.txt'}")
    assert "own_code.py" in (tmp_path / "traceback.txt").read_text()
    again = [f"--model={own}net", f"--data={own}arrays", "--resume=never", *options[:3]]
    train.run(trainings.parse(tmp_path, *again))
    assert not (tmp_path / "traceback.txt").exists()


@pytest.mark.parametrize("reference", ["no_such_module:build", "/missing/file.py:build"])
def test_a_module_that_is_missing_leaves_no_traceback(tmp_path, capsys, reference):
    with pytest.raises(SystemExit):
        train.run(trainings.parse(tmp_path, f"--model={reference}"))
    assert "cannot be imported" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ["prepare", "train"])
def test_a_lack_of_memory_is_one_line(tmp_path, monkeypatch, capsys, function):
    def fail(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[65536,65536]")

    options = trainings.parse(tmp_path, "--preset=mlp", "--depth=1", "--steps=1")
    monkeypatch.setattr(train, function, fail)
    with pytest.raises(SystemExit) as raised:
        train.run(options)
    assert raised.value.code == train.EXIT_BAD_INPUT
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("tapescope-train"))
    assert "not enough memory: lower --batch_size" in line
    assert "shape[65536,65536]" in line


def test_a_preset_that_is_too_deep_for_keras_is_one_line():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 80)
    try:
        with pytest.raises(ValueError, match="--depth=100 of --preset=mlp is deeper than Keras can build"):
            models.build("mlp", (4,), 2, depth=100)
    finally:
        sys.setrecursionlimit(limit)


def test_an_error_of_ours_is_not_called_the_users(own):
    user_code.load("model", f"{own}net")
    with pytest.raises(ValueError, match="is not a loss of Keras") as raised:
        objective._get_loss("--loss", "mze")
    assert user_code.find_failure(raised.value) is None


def test_a_loss_in_float16_is_summed_in_float32():
    goal = objective.UserObjective(lambda y, outputs: tf.constant([6e4, 6e4], tf.float16), ())
    assert goal.mean(None, None).numpy() == pytest.approx(6e4, rel=1e-3)
