"""Replay of captured steps of loops of the user's own, and of `model.fit`."""

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import mirrored

import tapescope
from tapescope.replays import answer, step_function
from tapescope.storage import captured_step

RNG = np.random.default_rng(0)
X = RNG.normal(size=[40, 6]).astype(np.float32)
Y = np.argmax(X[:, :3], 1).astype(np.int32)
PLANTED = 29
X[PLANTED] *= 1e4
Y[PLANTED] = 0  # not the class that the initial model gives it: its loss is large
BATCHES = [RNG.permutation(PLANTED)[:8] for _ in range(7)] + [np.arange(24, 32)]
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_model(width=8, dropout=0.2):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(width, "relu"), keras.layers.Dropout(dropout), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6,)), *layers])


def make_step(model, optimizer):
    probe = tapescope.Probe(model, histograms=False)

    @tf.function
    def step(x, y, measure):
        with probe.tape(measure) as tape:
            loss: Any = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tape.reading()

    return probe, step


def train(logdir, batch=lambda x, y: (x, y), spoil=lambda x: x, **options):
    model = make_model()
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    probe, step = make_step(model, optimizer)
    when = tapescope.every(1)
    with tapescope.Recorder(logdir, probe, when, capture="on_finding", optimizer=optimizer, **options) as recorder:
        for n, index in enumerate(BATCHES):
            x, y = spoil(X[index]), Y[index]
            loss, reading = step(x, y, when(n))
            recorder.write(n, reading, scalars={"loss": loss}, batch=batch(x, y), indices=index)
    return model


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    found = tmp_path_factory.mktemp("own")
    train(found)
    return found


@pytest.mark.slow
def test_a_captured_step_is_replayed_to_the_bit_by_a_new_model(logdir):
    assert captured_step.list_captured(logdir) == [7]
    model = make_model()
    _, step = make_step(model, keras.optimizers.Adam(1e-3))
    found = tapescope.replay(logdir, 7, step)
    assert found.reproduced
    assert found.difference == 0
    assert found.examples[0].index == PLANTED
    assert found.examples[0].gradient_norm > 100 * found.examples[1].gradient_norm
    assert [variant.change for variant in found.variants] == ["as it was", "without example 29", "learning rate 0.0001"]
    assert found.notes == ()


def test_a_replay_leaves_the_model_as_it_was_before_the_step(logdir):
    model = make_model()
    optimizer = keras.optimizers.Adam(1e-3)
    _, step = make_step(model, optimizer)
    tapescope.replay(logdir, 7, lambda batch: step(*batch, measure=True))
    saved = captured_step.read(logdir, 7)
    for variable, before in zip(model.trainable_variables, saved.model or (), strict=False):
        np.testing.assert_array_equal(variable.numpy(), before.value)
    assert int(optimizer.iterations) == 7


def test_a_step_that_computes_something_else_is_not_reproduced(logdir):
    model = make_model()
    _, step = make_step(model, keras.optimizers.Adam(1e-3))
    found = tapescope.replay(logdir, 7, lambda batch: step(batch[0] * 1.01, batch[1], measure=True))
    assert not found.reproduced
    assert found.difference == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 9}, r"the model has changed .* \[6, 9\] was .* \[6, 8\]"),
        ({"step": 6}, "step 6 of .* was not captured; captured are 7"),
        ({"step_fn": None}, "`step_fn` must be the training step"),
        ({"step_fn": lambda x, y, z: None}, r"it takes \(x, y, z\): pass `lambda batch"),
        ({"step_fn": lambda batch: 1.0}, "must return the loss and the reading"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(logdir, change, message):
    model = make_model(change.get("width", 8))
    _, step = make_step(model, keras.optimizers.Adam(1e-3))
    with pytest.raises(ValueError, match=message):
        tapescope.replay(logdir, change.get("step", 7), change.get("step_fn", step), model=model)


def test_the_optimizer_is_the_one_whose_state_was_captured(logdir):
    model = make_model()
    other, optimizer = keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(1e-3)
    for each in (other, optimizer):
        each.build(model.trainable_variables)
    _, step = make_step(model, optimizer)

    def with_two(x, y):
        assert other
        return step(x, y, measure=True)

    assert tapescope.replay(logdir, 7, with_two).notes == ()
    assert int(optimizer.iterations) == 7


def test_of_two_optimizers_that_may_be_the_captured_one_none_is_changed(logdir):
    model = make_model()
    first, second = keras.optimizers.Adam(0.5, name="adam_8"), keras.optimizers.Adam(1e-3, name="adam_9")
    first.build(make_model().trainable_variables)
    second.build(model.trainable_variables)
    _, step = make_step(model, second)

    def with_two(x, y):
        assert first
        return step(x, y, measure=True)

    found = tapescope.replay(logdir, 7, with_two)
    assert (found.reproduced, found.variants) == (True, ())
    assert "the optimizer whose state was captured is not found" in found.notes[0]
    assert float(first.learning_rate) == 0.5


def test_without_its_optimizer_no_change_to_a_step_is_tried(logdir):
    model = make_model()
    optimizer = keras.optimizers.Adam(1e-3)
    _, step = make_step(model, optimizer)
    hidden = type("Hidden", (), {"__slots__": ("call",)})()
    hidden.call = step
    found = tapescope.replay(logdir, 7, lambda batch: hidden.call(*batch, measure=True), model=model)
    assert (found.reproduced, found.variants) == (True, ())
    assert "the optimizer whose state was captured is not found" in found.notes[0]


class Counted(keras.layers.Layer):
    """A layer whose output depends on a variable that Keras does not count."""

    def __init__(self):
        super().__init__()
        self.state = {"of": {"calls": tf.Variable(1.0, trainable=False)}}

    def call(self, x):
        self.state["of"]["calls"].assign_add(1.0)
        return x * self.state["of"]["calls"]


def make_lazy_model():
    keras.utils.set_random_seed(1)

    class Lazy(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dense(8, "relu")
            self.counted = Counted()
            self.last = keras.layers.Dense(3)
            self.scale = tf.Variable(1.0, trainable=False)

        def call(self, x):
            self.scale.assign_add(0.5)
            return self.last(self.counted(self.first(x))) / self.scale

    return Lazy()


def test_a_model_that_its_first_step_builds_is_replayed_with_the_state_of_its_layers(tmp_path):
    probe, step = make_step(make_lazy_model(), keras.optimizers.SGD(0.01))
    when = tapescope.every(1)
    with tapescope.Recorder(tmp_path, probe, when, capture="on_finding") as recorder:
        for n, index in enumerate(BATCHES):
            loss, reading = step(X[index], Y[index], when(n))
            recorder.write(n, reading, scalars={"loss": loss}, batch=(X[index], Y[index]))
    (captured,) = captured_step.list_captured(tmp_path)
    _, step = make_step(make_lazy_model(), keras.optimizers.SGD(0.01))
    assert tapescope.replay(tmp_path, captured, step).reproduced


@pytest.mark.slow
def test_a_nan_is_captured_without_weights_and_replayed_with_those_given(tmp_path):
    model = train(tmp_path, spoil=lambda x: np.where(np.abs(x) > 1e3, np.nan, x), capture_weights=False)
    _, step = make_step(model, keras.optimizers.Adam(1e-3))
    initial = make_model()
    model.set_weights(initial.get_weights())
    found = tapescope.replay(tmp_path, 7, step)
    assert found.examples[0].index == PLANTED
    assert found.first_layer is not None
    assert found.first_layer.reason == "not finite"
    assert "weights before the step were not captured" in found.notes[0]


@pytest.mark.slow
def test_a_batch_that_cannot_be_stored_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="`batch` has a RaggedTensor"):
        train(tmp_path, batch=lambda x, y: (tf.ragged.constant([[1], [1, 2]]), y))


@pytest.mark.slow
def test_fit_is_captured_and_replayed_by_the_compiled_model(tmp_path):
    def compiled():
        model = make_model(dropout=0.1)
        model.compile(keras.optimizers.Adam(1e-3), LOSS)
        return model

    order = np.concatenate(BATCHES)
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1), capture="on_finding", histograms=False)
    plain, measured = compiled(), compiled()
    options: dict[str, Any] = {"batch_size": 8, "shuffle": False, "verbose": 0}
    plain.fit(X[order], Y[order], **options)
    measured.fit(X[order], Y[order], **options, callbacks=[monitor])
    for a, b in zip(plain.get_weights(), measured.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert captured_step.list_captured(tmp_path) == [7]
    found = tapescope.replay(tmp_path, 7, compiled())
    assert found.reproduced
    assert found.examples[0].index == 5  # its place in the batch


@pytest.mark.slow
def test_fit_with_a_loss_scale_is_replayed_by_a_new_model(tmp_path):
    def compiled():
        model = make_model(dropout=0.1)
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3)), LOSS)
        return model

    order = np.concatenate(BATCHES)
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1), capture="on_finding", histograms=False)
    compiled().fit(X[order], Y[order], batch_size=8, shuffle=False, verbose=0, callbacks=[monitor])
    found = tapescope.replay(tmp_path, 7, compiled())
    assert found.reproduced
    assert found.notes == ()


def two_replicas():
    strategy = mirrored(2)
    with strategy.scope():
        model = make_model()
        tapescope.own_random_numbers(model)
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, histograms=False)

    def in_replica(x, y, measure):
        with probe.tape(measure) as tape:
            losses: Any = keras.losses.sparse_categorical_crossentropy(y, model(x, training=True), from_logits=True)
            loss = tf.reduce_sum(losses) / 8
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tape.reading()

    @tf.function
    def step(x, y, measure):
        loss, reading = strategy.run(in_replica, args=(x, y, measure))
        return strategy.reduce("SUM", loss, axis=None), reading

    return strategy, optimizer, probe, step


@pytest.mark.slow
def test_a_nan_under_two_replicas_is_replayed_in_a_loop_that_asks_no_schedule(tmp_path):
    strategy, optimizer, probe, step = two_replicas()
    order = np.concatenate(BATCHES)
    missing = np.where(np.abs(X[order]) > 1e3, np.nan, X[order])
    dataset = tf.data.Dataset.from_tensor_slices((missing, Y[order])).batch(8)
    with tapescope.Recorder(tmp_path, probe, capture="on_finding", optimizer=optimizer) as recorder:
        for n, (x, y) in enumerate(strategy.experimental_distribute_dataset(dataset)):
            loss, reading = step(x, y, True)
            recorder.write(n, reading, scalars={"loss": loss}, batch=(x, y), indices=BATCHES[n])
    _, _, _, step = two_replicas()
    found = tapescope.replay(tmp_path, 7, step)
    assert found.reproduced
    assert found.examples[0].index == PLANTED
    assert len(found.examples) == 8
    model = make_model()
    _, step = make_step(model, keras.optimizers.Adam(1e-3))
    with pytest.raises(ValueError, match="was captured on 2 replicas"):
        tapescope.replay(tmp_path, 7, step)


def test_a_loss_of_each_replica_is_refused_with_the_cure():
    losses = mirrored(2).experimental_distribute_values_from_function(lambda _: tf.constant(1.0))
    reading = tapescope.Reading(*[tf.zeros([])] * len(tapescope.Reading._fields))
    with pytest.raises(ValueError, match="got that of each replica: sum or average it there"):
        step_function.split_result((losses, reading))


class Program:
    """A program that keeps all in one object."""

    @tf.function
    def compiled_step(self, x, y):
        return self.step(x, y, measure=True)

    def __init__(self):
        self.model = make_model()
        self.optimizer = keras.optimizers.Adam(1e-3)
        self.step: Any
        self.probe, self.step = make_step(self.model, self.optimizer)


@pytest.mark.parametrize("form", ["method", "attribute", "partial", "compiled method"])
def test_the_model_is_found_in_the_objects_of_a_program(logdir, form):
    program = Program()
    forms = {
        "method": lambda batch: program.step(*batch, measure=True),
        "attribute": program.step,
        "partial": functools.partial(program.step, measure=True),
        "compiled method": program.compiled_step,
    }
    owners = step_function.find_owners(forms[form])
    assert owners.probes == [program.probe]
    assert owners.optimizers == [program.optimizer]
    assert tapescope.replay(logdir, 7, forms[form]).reproduced


def test_a_layer_without_a_finite_record_is_not_blamed():
    class Recorded:
        steps = np.arange(3)
        layers = ("a", "b")
        columns = {"activation_min": [[-1.0, np.nan]] * 3, "activation_max": [[2.0, np.nan]] * 3}

        def __getitem__(self, name):
            return np.array(self.columns[name])

    assert answer.find_first_layer(Recorded(), 3, ("a", "b"), -1, [2.0, 5.0]) is None
    assert answer.find_first_layer(Recorded(), 3, ("a", "b"), -1, [50.0, 5.0]).usual == 2.0
    assert np.isnan(answer.find_first_layer(Recorded(), 3, ("a", "b"), 1, [2.0, np.inf]).usual)
