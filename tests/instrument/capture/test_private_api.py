"""Feature tests of private TensorFlow and Keras API: each fails when a release changes what the library relies on."""

import ast
import contextlib
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import gradients_util

import tapescope
from tapescope.capture import private_api

LIBRARY = pathlib.Path(tapescope.__file__).parent
PRIVATE_MODULES = ("tensorflow.python", "tensorflow.compiler", "tensorflow.core", "keras.src")


@pytest.fixture(autouse=True)
def fresh_warnings():
    """Let every test see the warnings that are otherwise logged once a process."""
    private_api._warn.cache_clear()
    private_api._module_attribute.cache_clear()
    yield
    private_api._warn.cache_clear()
    private_api._module_attribute.cache_clear()


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if "this version of TensorFlow or Keras" in r.getMessage()]


class Without:
    """An object without some attributes of another, as in a release that renamed them."""

    def __init__(self, wrapped, *missing):
        self.__dict__.update(wrapped=wrapped, missing=missing)

    def __getattr__(self, name):
        if name in self.missing:
            raise AttributeError(name)
        return getattr(self.wrapped, name)


# Graphs


def test_new_operations_are_marked():
    with tf.Graph().as_default():
        before = tf.constant(1.0)
        with private_api.mark_new_operations("_mark"):
            inside = tf.identity(before)
        after = tf.identity(before)
    assert [t.op.node_def.attr["_mark"].b for t in (before, inside, after)] == [False, True, False]


def test_marks_keep_common_subexpressions_apart():
    """Grappler merges two equal operations, but not a marked and an unmarked one."""

    def kept(mark):
        @tf.function
        def step(x):
            first = tf.sin(x)
            if mark:
                with private_api.mark_new_operations("_mark"):
                    second = tf.sin(x)
            else:
                second = tf.sin(x)
            return first + 1.0, second + 2.0

        context.enable_run_metadata()
        step(tf.ones([3]))
        graphs = [f.post_optimization_graph for f in context.export_run_metadata().function_graphs]
        context.disable_run_metadata()
        return sum(node.op == "Sin" for graph in graphs for node in graph.node)

    assert (kept(False), kept(True)) == (1, 2)


def test_existing_operations_are_marked():
    with tf.Graph().as_default():
        tensor = tf.constant(1.0)
    private_api.mark_operation(tensor.op, "_mark")
    assert tensor.op.node_def.attr["_mark"].b


def test_inputs_are_replaced():
    @tf.function
    def step(x):
        result = tf.negative(x)
        private_api.replace_input(result.op, 0, x + 1.0)
        return result

    assert step(tf.constant(2.0)) == -3.0


def test_graphs_without_marks_are_said(monkeypatch, caplog):
    monkeypatch.setattr(tf.compat.v1, "get_default_graph", lambda: Without(None, "_attr_scope"))
    with private_api.mark_new_operations("_mark"):
        pass
    with private_api.mark_new_operations("_mark"):
        pass
    assert warnings_of(caplog) == [
        "tapescope: this version of TensorFlow or Keras has no `Graph._attr_scope`: "
        "a measured step may round otherwise than a plain one"
    ]


def test_operations_that_cannot_be_changed_are_said(caplog):
    private_api.mark_operation(Without(None, "_set_attr"), "_mark")  # type: ignore[arg-type]
    private_api.replace_input(Without(None, "_update_input"), 0, tf.constant(1.0))  # type: ignore[arg-type]
    names = [message.split("`")[1] for message in warnings_of(caplog)]
    assert names == ["Operation._set_attr", "Operation._update_input"]


# XLA


@pytest.mark.parametrize("compiled", [True, False])
def test_xla_is_known_while_tracing(compiled):
    found = []

    @tf.function(jit_compile=compiled)
    def step(x):
        found.append(private_api.in_xla_context())
        return x

    step(tf.ones([2]))
    assert set(found) == {compiled}


def test_the_body_of_a_vectorized_map_is_found():
    found = []

    def body(x):
        with tf.name_scope("inner"):
            found.append(private_api.vectorized_map())
        return x

    @tf.function
    def step(x):
        with tf.name_scope("loop_body"):  # a user's own
            found.append(private_api.vectorized_map())
        with tf.name_scope("outer"):
            return tf.vectorized_map(body, tf.vectorized_map(body, x))

    step(tf.ones([2, 3]))
    assert found == [None, "outer/loop_body", "outer/loop_body_1"]


def test_eager_code_is_not_in_a_vectorized_map():
    assert private_api.vectorized_map() is None


def test_eager_code_is_not_in_xla():
    assert not private_api.in_xla_context()


def test_the_barrier_returns_its_input():
    step = tf.function(private_api.optimization_barrier, jit_compile=True)
    np.testing.assert_array_equal(step(tf.constant([1.0, 2.0])), [1.0, 2.0])


def test_the_barrier_is_in_the_compiled_program():
    step = tf.function(lambda x: private_api.optimization_barrier(x) + 1.0, jit_compile=True)
    assert "opt-barrier" in step.experimental_get_compiler_ir(tf.ones([2]))(stage="hlo")


def test_missing_modules_are_said(monkeypatch, caplog):
    def import_module(name):
        raise ImportError(name)

    monkeypatch.setattr(private_api.importlib, "import_module", import_module)
    tensor = tf.constant(1.0)
    assert private_api.optimization_barrier(tensor) is tensor
    with tf.Graph().as_default():
        assert not private_api.in_xla_context()
    assert all("measuring under jit_compile takes longer" in message for message in warnings_of(caplog))
    assert len(warnings_of(caplog)) == 2


# tf.GradientTape


def test_a_recording_can_be_restored():
    x = tf.Variable(3.0)
    tape = tf.GradientTape()
    with private_api.record_persistently(tape), tape:
        y = x * x
    recorded = private_api.recording(tape)
    assert tape.gradient(y, x) == 6.0
    assert private_api.recording(tape) is None
    private_api.restore_recording(tape, recorded)
    assert tape.gradient(y, x) == 6.0


def test_recording_persistently_leaves_the_option_as_it_was():
    tape = tf.GradientTape()
    with private_api.record_persistently(tape), tape:
        pass
    with pytest.raises(RuntimeError, match="can only be used to compute one set"):
        [tape.gradient(tf.constant(1.0), tf.constant(1.0)) for _ in range(2)]


def test_tapes_without_a_recording_are_said(caplog):
    tape = Without(None, "_tape", "_persistent")
    with private_api.record_persistently(tape):  # type: ignore[arg-type]
        pass
    assert private_api.recording(tape) is None  # type: ignore[arg-type]
    private_api.restore_recording(tape, None)  # type: ignore[arg-type]
    names = [message.split("`")[1] for message in warnings_of(caplog)]
    assert names == ["GradientTape._persistent", "GradientTape._tape"]


@contextlib.contextmanager
def persistent_tape(single_use, watches=True):
    """Yield a tape that records persistently and was not asked to; in `trace_for_single_use` or not."""
    tape = tf.GradientTape(watch_accessed_variables=watches)
    with private_api.record_persistently(tape):
        tape.__enter__()
    with private_api.trace_for_single_use(tape) if single_use else contextlib.nullcontext():
        yield tape
    tape.__exit__(None, None, None)


def has_condition(*tapes):
    """Return whether a condition that is traced under tapes is an operation of the step, and not inside a function."""
    x = tf.Variable(3.0)

    @tf.function
    def step():
        with contextlib.ExitStack() as stack:
            for tape in tapes:
                stack.enter_context(tape)
            tf.cond(x > 0, lambda: x * 2, lambda: x)

    return any(op.type in ("If", "StatelessIf") for op in step.get_concrete_function().graph.get_operations())


def test_a_persistent_tape_wraps_conditions():
    """Positive control of the test below."""
    assert not has_condition(persistent_tape(single_use=False))


def test_for_single_use_conditions_are_those_of_a_plain_tape():
    assert has_condition(persistent_tape(single_use=True))
    assert has_condition(tf.GradientTape())


def test_for_single_use_a_second_tape_still_wraps_conditions():
    assert not has_condition(tf.GradientTape(), tf.GradientTape())
    assert not has_condition(tf.GradientTape(), persistent_tape(single_use=True))
    assert not has_condition(persistent_tape(single_use=True), persistent_tape(single_use=True))


@pytest.mark.parametrize("watches", [(True, False), (False, True)])
def test_for_single_use_a_second_tape_that_does_not_watch_wraps_nothing(watches):
    assert has_condition(*(tf.GradientTape(watch_accessed_variables=watch) for watch in watches))
    assert has_condition(*(persistent_tape(single_use=True, watches=watch) for watch in watches))


def test_a_missing_order_of_gradients_is_said(monkeypatch, caplog):
    monkeypatch.delattr(gradients_util, "PossibleTapeGradientTypes")
    assert not private_api._patch_gradient_types.__wrapped__()
    assert all("PossibleTapeGradientTypes" in message for message in warnings_of(caplog))
    assert len(warnings_of(caplog)) == 1


# Keras layers


def nested_model():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, name="drop")], name="inner")
    return keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2, name="dense")])


def test_sublayers_are_the_layers_own():
    assert [layer.name for layer in private_api.sublayers(nested_model())][-2:] == ["inner", "dense"]


def test_sublayers_of_a_subclassed_layer_are_in_the_order_of_its_attributes():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dense(2, name="first")
            self.rest = [keras.layers.Dense(2, name="second")]

    assert [layer.name for layer in private_api.sublayers(Block())] == ["first", "second"]


def test_flattened_layers_are_all_layers():
    names = [layer.name for layer in private_api.flatten_layers(nested_model())]
    assert {"inner", "drop", "dense"} <= set(names)
    assert len(names) == len(set(names))


def test_seed_generators_are_found():
    (generator,) = private_api.seed_generators(keras.layers.Dropout(0.5))
    assert isinstance(generator, keras.random.SeedGenerator)


def test_layers_without_private_lists_fall_back_to_public_ones(caplog):
    model = nested_model()
    drop = model.layers[0].layers[0]
    bare = Without(model, "_layers", "_flatten_layers")
    assert [layer.name for layer in private_api.sublayers(bare)] == ["inner", "dense"]  # type: ignore[arg-type]
    assert [layer.name for layer in private_api.flatten_layers(bare)][1:] == ["inner", "dense"]  # type: ignore[arg-type]
    bare_drop = Without(drop, "_seed_generators")
    bare_drop.__dict__["seed_generator"] = drop.seed_generator
    assert private_api.seed_generators(bare_drop) == [drop.seed_generator]  # type: ignore[arg-type]
    names = [message.split("`")[1] for message in warnings_of(caplog)]
    assert names == ["Layer._layers", "Layer._flatten_layers", "Layer._seed_generators"]


def test_keras_keeps_masks_as_attributes_of_tensors():
    embedded = keras.layers.Embedding(5, 2, mask_zero=True)(tf.constant([[1, 0]]))
    copy = tf.identity(embedded)
    private_api.copy_keras_metadata(embedded, copy)
    np.testing.assert_array_equal(copy._keras_mask, [[True, False]])


def test_keras_keeps_logits_as_attributes_of_tensors():
    probabilities = keras.activations.softmax(tf.constant([[1.0, 2.0]]))
    copy = tf.identity(probabilities)
    private_api.copy_keras_metadata(probabilities, copy)
    np.testing.assert_array_equal(copy._keras_logits, [[1.0, 2.0]])
    assert private_api.has_keras_logits(copy)
    assert not private_api.has_keras_logits(tf.ones([1]))


# Keras' attention


@pytest.mark.parametrize("kind", private_api.attention_classes())
def test_attention_gets_query_key_and_mask(kind):
    layer = kind(4, 2, 1) if "Group" in kind.__name__ else kind(2, 4)
    x = tf.ones([3, 5, 8])
    layer.build(x.shape, x.shape)
    assert private_api.why_not_observed(layer) is None
    name, masks = private_api.ATTENTION_METHODS
    found = private_api.attention_arguments(name, getattr(layer, name), (1, 2, 3), {"attention_mask": 4, "training": 5})
    assert found == {"query": 1, "key": 2, "mask": 4, "is_causal": False}
    found = private_api.attention_arguments(masks, getattr(layer, masks), (1, 2), {"value_mask": 3, "key_mask": 4})
    assert found == {"masks_of_keys": [3, 4]}
    assert private_api.attention_scale(layer, 4) == 0.5
    assert private_api.attention_scale(keras.layers.Dense(2), 16) == 0.25


def test_attention_with_other_parameters_is_not_observed_and_that_is_said(caplog):
    assert private_api.attention_arguments("_compute_attention", lambda q, k, v: None, (1, 2, 3), {}) is None
    assert warnings_of(caplog) == [
        "tapescope: this version of TensorFlow or Keras has no `_compute_attention(query, key, attention_mask)`: "
        "attention heads are not measured"
    ]


def test_masks_of_tensors_are_read():
    embedded = keras.layers.Embedding(5, 2, mask_zero=True)(tf.constant([[1, 0]]))
    np.testing.assert_array_equal(private_api.keras_mask(embedded), [[True, False]])
    assert private_api.keras_mask(tf.ones([1])) is None


# Keras' fit


def test_a_train_function_is_traced_before_its_first_call_and_only_once():
    traces = []

    @tf.function
    def train_function(iterator):
        traces.append(1)
        return next(iterator)

    iterator = iter(tf.data.Dataset.range(3))
    for _ in range(2):
        private_api.trace_train_function(train_function, iterator)
    assert [int(train_function(iterator)) for _ in range(3)] == [0, 1, 2]
    assert len(traces) == 1


def test_a_train_function_in_python_is_not_called():
    private_api.trace_train_function(lambda iterator: 1 / 0, None)


# Keras optimizers


def accumulating_optimizer():
    variable = keras.Variable([1.0, 2.0])
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    optimizer.build([variable])
    return optimizer, variable


def test_batches_are_counted_between_updates():
    optimizer, variable = accumulating_optimizer()
    for _ in range(4):
        optimizer.apply([tf.ones([2])], [variable])
    assert private_api.batches_seen(optimizer) == 4


def test_accumulated_gradients_are_found_by_variable():
    optimizer, variable = accumulating_optimizer()
    for _ in range(2):
        optimizer.apply([tf.ones([2])], [variable])
    ((found, total),) = private_api.accumulated_gradients(optimizer)
    assert found is variable
    np.testing.assert_array_equal(total, [2.0, 2.0])


def test_optimizers_without_private_counts_fall_back(caplog):
    optimizer, variable = accumulating_optimizer()
    for _ in range(4):
        optimizer.apply([tf.ones([2])], [variable])
    bare = Without(optimizer, "_iterations", "_accumulated_gradients")
    assert private_api.batches_seen(bare) == 1  # type: ignore[arg-type]
    assert private_api.accumulated_gradients(bare) == []  # type: ignore[arg-type]
    names = [message.split("`")[1] for message in warnings_of(caplog)]
    assert names == ["Optimizer._iterations", "Optimizer._accumulated_gradients"]


def test_the_all_reduce_of_apply_can_be_skipped():
    optimizer, _ = accumulating_optimizer()
    assert private_api.skip_all_reduce(optimizer)
    assert optimizer._all_reduce_sum_gradients([(1, 2)]) == [(1, 2)]


def test_an_optimizer_without_an_all_reduce_is_said_by_the_result():
    assert not private_api.skip_all_reduce(Without(None, "_all_reduce_sum_gradients"))  # type: ignore[arg-type]


# The rest of the library


def library_modules():
    return {p.relative_to(LIBRARY).as_posix(): ast.parse(p.read_text()) for p in sorted(LIBRARY.rglob("*.py"))}


def private_names(tree):
    """Return the underscored attributes of others that a module uses, also those in strings."""
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return names | {s for s in strings if s.startswith("_") and s.isidentifier()}


def test_private_names_are_used_in_one_module_only():
    modules = library_modules()
    private = private_names(modules.pop("capture/private_api.py"))
    assert "_update_input" in private
    assert {name: found for name, tree in modules.items() if (found := private & private_names(tree))} == {}


def test_private_modules_are_imported_in_one_module_only():
    found = {}
    for name, tree in library_modules().items():
        imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        if private := [module for module in imported if module.startswith(PRIVATE_MODULES)]:
            found[name] = private
    assert found == {}
