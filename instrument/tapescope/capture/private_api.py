"""The calls of private TensorFlow and Keras API that the library makes, all of them.

Each function has a test in tests/instrument/capture/test_private_api.py that fails when a release changes what it
relies on. Where a name is missing, the function falls back to something safe and logs one warning. README.md in this
folder lists what each fallback costs.
"""

import contextlib
import functools
import importlib
import inspect
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tapescope.capture import keras_kinds


@functools.cache
def _warn(name: str, consequence: str) -> None:
    logging.warning("tapescope: this version of TensorFlow or Keras has no `%s`: %s", name, consequence)


@functools.cache
def _module_attribute(module: str, name: str, consequence: str) -> Any:
    """Return a function of a private module; None, and one warning, where this version does not have it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        _warn(f"{module}.{name}", consequence)
        return None


# Graphs


@contextlib.contextmanager
def mark_new_operations(name: str) -> Iterator[None]:
    """Set the boolean attribute `name` on every operation that is created in this context."""
    graph = tf.compat.v1.get_default_graph()
    if not hasattr(graph, "_attr_scope"):
        _warn("Graph._attr_scope", "a measured step may round otherwise than a plain one")
        yield
        return
    with graph._attr_scope({name: tf.compat.v1.AttrValue(b=True)}):
        yield


@contextlib.contextmanager
def without_op_callbacks() -> Iterator[bool]:
    """Hide the operations created here from `tf.debugging.enable_check_numerics` and its like.

    A Reading says NaN for what has no value, and measures what is not finite: neither is an error of the step. Yields
    whether there is something to hide from.
    """
    context = eager_context()
    callbacks = list(getattr(context, "op_callbacks", ()))
    for callback in callbacks:
        context.remove_op_callback(callback)
    try:
        yield bool(callbacks)
    finally:
        for callback in callbacks:
            context.add_op_callback(callback)


def mark_operation(op: tf.Operation, name: str) -> None:
    """Set the boolean attribute `name` on an existing operation."""
    if hasattr(op, "_set_attr"):
        op._set_attr(name, tf.compat.v1.AttrValue(b=True))
    else:
        _warn("Operation._set_attr", "a measured step may round otherwise than a plain one")


def replace_input(op: tf.Operation, index: int, tensor: tf.Tensor) -> None:
    """Let an existing operation read `tensor` as its input number `index`."""
    if hasattr(op, "_update_input"):
        op._update_input(index, tensor)
    else:
        _warn("Operation._update_input", "a measured step may round otherwise than a plain one")


def eager_context() -> Any:
    """Return TensorFlow's context, which holds all functions. The fallback is None: a reset context is not seen."""
    context = _module_attribute(
        "tensorflow.python.eager.context", "context", "after its context was reset, measured steps fail"
    )
    return context() if context else None


def is_scratch_graph(graph: Any) -> bool:
    """Return whether Keras, or tf_keras, only tries a layer in a graph, to build it. The fallback is False."""
    name = getattr(graph, "name", "")
    return "scratch_graph" in name or name in ("keras_graph", "build_graph")


@tf.autograph.experimental.do_not_convert
def vectorized_map() -> str | None:
    """Return the name scope of the `tf.vectorized_map` whose body is traced here; None outside of one.

    The body is traced for one example, into the graph around it. The fallback is None: that example is measured.
    """
    graph = tf.compat.v1.get_default_graph()
    scope = "" if tf.executing_eagerly() else tf.get_current_name_scope()
    while scope:
        if scope.rpartition("/")[2].startswith("loop_body"):
            with contextlib.suppress(KeyError):
                graph.get_operation_by_name(f"{scope}/PlaceholderWithDefault")  # the number of the example
                return scope
        scope = scope.rpartition("/")[0]
    return None


# XLA


def in_xla_context() -> bool:
    """Return whether XLA compiles what is traced here. The fallback is False: XLA then compiles slower reductions."""
    if tf.executing_eagerly():
        return False
    in_context = _module_attribute(
        "tensorflow.python.ops.control_flow_util",
        "GraphOrParentsInXlaContext",
        "measuring under jit_compile takes longer",
    )
    return in_context is not None and bool(in_context(tf.compat.v1.get_default_graph()))


def optimization_barrier(tensor: tf.Tensor) -> tf.Tensor:
    """Return the tensor behind a barrier that XLA does not fuse across; the fallback is the tensor itself."""
    barrier = _module_attribute(
        "tensorflow.compiler.tf2xla.ops.gen_xla_ops",
        "xla_optimization_barrier",
        "measuring under jit_compile takes longer",
    )
    return tensor if barrier is None else barrier([tensor])[0]


# tf.GradientTape

_TAPE_CONSEQUENCE = "where measuring fails inside a backward pass, the step fails as well"


@contextlib.contextmanager
def record_persistently(tape: tf.GradientTape) -> Iterator[None]:
    """Let a tape that is entered in this context keep its recording after `gradient`, whatever its user asked for."""
    if not hasattr(tape, "_persistent"):
        _warn("GradientTape._persistent", _TAPE_CONSEQUENCE)
        yield
        return
    requested = tape._persistent
    tape._persistent = True
    try:
        yield
    finally:
        tape._persistent = requested


class _Thread(threading.local):
    single_use: tuple[tf.GradientTape, ...] = ()
    """Tapes in `trace_for_single_use`, the innermost last."""
    accumulators: int = 0
    """Number of the `tf.autodiff.ForwardAccumulator`s that were entered since the patch."""


_thread = _Thread()


@contextlib.contextmanager
def trace_for_single_use(tape: tf.GradientTape) -> Iterator[None]:
    """Let what a tape records in this context be what it is without `record_persistently`.

    For a persistent tape TensorFlow wraps loops, conditions and functions such that gradients of their gradients can be
    taken. They are then other operations, and sums of their gradients have another order.
    """
    before = _thread.single_use
    if not getattr(tape, "_persistent", True) and _patch_gradient_types():
        _thread.single_use = (*before, tape)
    try:
        yield
    finally:
        _thread.single_use = before


@functools.cache
def _patch_gradient_types() -> bool:
    """Patch the function that knows the order of the gradients that tapes may take, once. It stays patched."""
    module = "tensorflow.python.ops.gradients_util"
    consequence = "a measured step with loops or conditions may round otherwise than a plain one"
    original = _module_attribute(module, "PossibleTapeGradientTypes", consequence)
    first_order = _module_attribute(module, "POSSIBLE_GRADIENT_TYPES_FIRST_ORDER", consequence)
    if original is None or first_order is None:
        return False

    def possible_gradient_types(tensors: Any) -> int:
        found = original(tensors)
        tapes = [tape for tape in _thread.single_use if getattr(tape, "_recording", False)]
        if found <= first_order or not tapes:
            return found
        if _thread.accumulators:  # `stop_recording` would put the tape inside of them, where it sees no jvp
            return found
        if _are_watched(original, tensors, without=tapes):
            return found
        watching = [_are_watched(original, tensors, without=[t for t in tapes if t is not tape]) for tape in tapes]
        return first_order if sum(watching) == 1 else found

    importlib.import_module(module).PossibleTapeGradientTypes = possible_gradient_types
    _count_accumulators()
    return True


def _are_watched(possible_gradient_types: Any, tensors: Any, without: Sequence[tf.GradientTape]) -> bool:
    """Return whether a tape that is not among some watches one of these tensors."""
    with contextlib.ExitStack() as stack:
        for tape in without:
            stack.enter_context(tape.stop_recording())
        return bool(possible_gradient_types(tensors))


def _count_accumulators() -> None:
    """Patch `tf.autodiff.ForwardAccumulator`, so that `_thread.accumulators` counts those that are open."""
    accumulator_class = tf.autodiff.ForwardAccumulator
    original_enter = accumulator_class.__enter__
    original_exit = accumulator_class.__exit__

    def enter(accumulator: Any) -> Any:
        entered = original_enter(accumulator)
        _thread.accumulators += 1
        return entered

    def leave(accumulator: Any, *exc_info: object) -> None:
        _thread.accumulators -= 1
        original_exit(accumulator, *exc_info)

    accumulator_class.__enter__ = enter  # type: ignore[method-assign]
    accumulator_class.__exit__ = leave  # type: ignore[method-assign]


def recording(tape: tf.GradientTape) -> Any:
    """Return what a tape has recorded; None after `gradient` of a tape that is not persistent."""
    if not hasattr(tape, "_tape"):
        _warn("GradientTape._tape", _TAPE_CONSEQUENCE)
        return None
    return tape._tape


def restore_recording(tape: tf.GradientTape, recorded: Any) -> None:
    """Undo the end of a recording, so that `gradient` can be called again."""
    if hasattr(tape, "_tape"):
        tape._tape = recorded


# Keras layers


def sublayers(layer: Any) -> Sequence[Any]:
    """Return the layers that a layer holds itself. The fallback is `layer.layers`, which only models have."""
    if keras_kinds.is_legacy(layer) and hasattr(layer, "_flatten_layers"):
        return list(layer._flatten_layers(recursive=False, include_self=False))
    if not hasattr(layer, "_layers"):
        _warn("Layer._layers", "layers inside of layers are not measured")
        return getattr(layer, "layers", ())
    return layer._layers


def flatten_layers(layer: keras.layers.Layer) -> Sequence[keras.layers.Layer]:
    """Return a layer and all layers inside it, each once. The fallback leaves out layers inside of layers."""
    if not hasattr(layer, "_flatten_layers"):
        _warn("Layer._flatten_layers", "issues with several replicas are not looked for in layers inside of layers")
        return [layer, *getattr(layer, "layers", ())]
    return layer._flatten_layers()


def seed_generators(layer: keras.layers.Layer) -> Sequence[keras.random.SeedGenerator]:
    """Return the random number generators of a layer. The fallback is to look at its attributes."""
    if not hasattr(layer, "_seed_generators"):
        _warn("Layer._seed_generators", "generators in lists of a layer are not seen")
        return [value for value in vars(layer).values() if isinstance(value, keras.random.SeedGenerator)]
    return layer._seed_generators


def is_keras_tensor(value: Any) -> bool:
    """Return whether it stands for a tensor while Keras builds a model; tf_keras has no public class for it."""
    return isinstance(value, keras.KerasTensor) or (hasattr(value, "_keras_history") and keras_kinds.is_legacy(value))


def copy_keras_metadata(source: tf.Tensor, target: tf.Tensor) -> None:
    """Copy what Keras keeps as attributes of a tensor: its mask, and the logits that it was computed from."""
    for attribute in ("_keras_mask", "_keras_logits"):
        if hasattr(source, attribute):
            setattr(target, attribute, getattr(source, attribute))


def has_keras_logits(tensor: tf.Tensor) -> bool:
    """Return whether a tensor has the logits behind its activation, from which Keras computes a cross-entropy."""
    return hasattr(tensor, "_keras_logits")


# Keras' fit


def trace_train_function(function: Any, iterator: Any) -> None:
    """Trace fit's train function if it is a `tf.function` that was not called yet.

    Keras' TensorBoard callback reads its graph after the first batch, and raises if another function ran that batch. In
    Keras from 3.7 on it is a Python function, which the callback passes over. Tracing is not repeated by a later call.
    It would use up a generator, which `train_on_batch` gives.
    """
    if inspect.isgenerator(iterator):
        return
    if hasattr(function, "function_spec") and not hasattr(function, "_concrete_variable_creation_fn"):
        function.get_concrete_function(iterator)


# Keras optimizers


def is_built(optimizer: Any) -> bool:
    """Return whether an optimizer of Keras, or a new one of tf_keras, has its variables. The fallback is False."""
    return bool(getattr(optimizer, "built", getattr(optimizer, "_built", False)))


def batches_seen(optimizer: keras.optimizers.Optimizer) -> int:
    """Return how many batches an optimizer was given. The fallback counts updates, of several batches each."""
    if not hasattr(optimizer, "_iterations"):
        _warn("Optimizer._iterations", "with gradient_accumulation_steps a batch without an update may be measured")
        return int(optimizer.iterations)
    return int(optimizer._iterations)


def accumulated_gradients(optimizer: keras.optimizers.Optimizer) -> list[tuple[Any, tf.Tensor]]:
    """Return each variable of an optimizer with the sum of its gradients since the last update; else an empty list."""
    if not (hasattr(optimizer, "_accumulated_gradients") and hasattr(optimizer, "_trainable_variables")):
        _warn(
            "Optimizer._accumulated_gradients", "records show the gradient of the last batch, not the accumulated one"
        )
        return []
    return list(zip(optimizer._trainable_variables, optimizer._accumulated_gradients, strict=True))


def skip_all_reduce(optimizer: keras.optimizers.Optimizer) -> bool:
    """Keep `apply` from summing gradients over replicas; return False where this Keras has no such step to skip.

    Keras has no public switch for it. A caller that gets False must pass local gradients to `apply`.
    """
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        return False
    optimizer._all_reduce_sum_gradients = list
    return True


def trained_variables(optimizer: keras.optimizers.Optimizer) -> Sequence[Any]:
    """Return the variables that an optimizer was built for. The fallback is an empty list."""
    return list(getattr(optimizer, "_trainable_variables", ()))


def python_function(function: Any) -> Any:
    """Return the Python function of a `tf.function`, with its control flow converted; any other function itself.

    The fallback for the private attribute is True, the default of `tf.function`.
    """
    python = getattr(function, "python_function", None)
    if python is None:
        return function
    return tf.autograph.to_graph(python) if getattr(function, "_autograph", True) else python


# Keras' attention

ATTENTION_METHODS = ("_compute_attention", "_compute_attention_mask")
"""Methods of Keras' attention layers: the first gets query, key and attention mask, the other the masks of the keys."""
_ATTENTION_CONSEQUENCE = "attention heads are not measured"


def attention_classes() -> tuple[type, ...]:
    """Return Keras' attention layers with several heads, those that this version has."""
    names = ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention")
    return tuple(dict.fromkeys(getattr(keras.layers, name) for name in names if hasattr(keras.layers, name)))


def why_not_observed(layer: keras.layers.Layer) -> str | None:
    """Return why the attention of a layer cannot be observed, or None. The fallback measures no heads."""
    name = ATTENTION_METHODS[0]
    base = next(kind for kind in attention_classes() if isinstance(layer, kind))
    if not hasattr(base, name):
        _warn(f"MultiHeadAttention.{name}", _ATTENTION_CONSEQUENCE)
        return f"this version of Keras has no `{name}`"
    return None if getattr(type(layer), name) is getattr(base, name) else f"it has a `{name}` of its own"


def attention_arguments(name: str, method: Any, args: Sequence[Any], kwargs: Any) -> dict[str, Any] | None:
    """Return what one of ATTENTION_METHODS is called with; None, and one warning, where it has other parameters.

    Returns:
      `query`, `key`, `mask` and `is_causal` of the first, `masks_of_keys` of the other.
    """
    try:
        bound = inspect.signature(method).bind(*args, **kwargs).arguments
        if name == ATTENTION_METHODS[0]:
            causal = bool(bound.get("use_causal_mask", False))
            return {
                "query": bound["query"],
                "key": bound["key"],
                "mask": bound.get("attention_mask"),
                "is_causal": causal,
            }
        return {"masks_of_keys": [bound.get("value_mask"), bound.get("key_mask")]}
    except (TypeError, ValueError, KeyError):
        _warn(f"{name}(query, key, attention_mask)", _ATTENTION_CONSEQUENCE)
        return None


def attention_scale(layer: keras.layers.Layer, features: int) -> float:
    """Return the factor of an attention layer's logits. The fallback is that of Vaswani et al. 2017."""
    names = ("_inverse_sqrt_key_dim", "_inverse_sqrt_head_dim")
    return next((float(getattr(layer, name)) for name in names if hasattr(layer, name)), features**-0.5)


def keras_mask(tensor: Any) -> Any:
    """Return the mask that Keras keeps as an attribute of a tensor; None where there is none."""
    return getattr(tensor, "_keras_mask", None)
