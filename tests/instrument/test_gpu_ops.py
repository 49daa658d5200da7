"""The operations that measuring adds for a GPU, without one: its kernels are registered wherever TensorFlow runs."""

from collections import Counter
from typing import Any

import keras
import pytest
import tensorflow as tf
from scripts.testbed.steps import measured
from tensorflow.python.framework import kernels

import tapescope
from tapescope.capture import optimizer_state
from tapescope.capture.attention import AttentionCall
from tapescope.statistics import attention, reductions, single_pass
from tapescope.statistics.batched_ops import PLATFORM_VARIABLE
from tapescope.statistics.slow_columns import measurement

GPU = {"GPU", "DEFAULT"}
"""Devices of kernels that run on GPUs; those of DEFAULT run everywhere."""
LAUNCHES_NOTHING = {
    *("Const", "Identity", "Placeholder", "NoOp", "Reshape", "ExpandDims", "Squeeze", "Shape", "ShapeN", "Size"),
    *("Bitcast", "EnsureShape", "ReadVariableOp", "StopGradient", "VarHandleOp", "Rank", "Range"),
}
WAITS = {"If", "StatelessIf", "While", "StatelessWhile", "Switch", "Merge", "PyFunc", "EagerPyFunc", "Where", "Unique"}
HAS_KERNELS = any(kernel.device_type == "GPU" for kernel in kernels.get_registered_kernels_for_op("MatMul").kernel)
needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="the package tensorflow-cpu has no kernels for GPUs")
CALLS = {"PartitionedCall", "StatefulPartitionedCall"}


def concrete_step(measure) -> Any:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(300, activation="silu"),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(8, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, strict=True)

    @tf.function(input_signature=[tf.TensorSpec([16, 8, 8, 3])])
    def step(x):
        def loss():
            return tf.reduce_mean(tf.square(model(x, training=True)))

        return measured(probe, loss, model.trainable_variables, optimizer, measure).reading

    return step.get_concrete_function()


def operations(function) -> Counter:
    """Return how many operations there are of each type with each of its types of elements."""
    found: Counter = Counter()
    for op in function.graph.get_operations():
        found[op.type, types_of(op)] += 1
    return found


def launches(counts: Counter) -> int:
    return sum(count for (op, _), count in counts.items() if op not in LAUNCHES_NOTHING)


def gpu_kernels(op: str, types) -> list[Any]:
    """Return the kernels for GPUs that take these types."""
    found = []
    for kernel in kernels.get_registered_kernels_for_op(op).kernel:
        allowed = {c.name: list(c.allowed_values.list.type) for c in kernel.constraint}
        enums = {name: dtype.as_datatype_enum for name, dtype in types}
        if kernel.device_type in GPU and all(enums.get(name) in values for name, values in allowed.items() if values):
            found.append(kernel)
    return found


def is_measuring(op) -> bool:
    """Return whether an operation has the mark of `graph_isolation.measuring_scope`."""
    try:
        return op.get_attr("_tapescope")
    except ValueError:
        return False


def types_of(op):
    return tuple(sorted((d.name, op.get_attr(d.name)) for d in op.op_def.attr if d.type == "type"))


@pytest.fixture(scope="module")
def plain():
    return operations(concrete_step(False))


@pytest.fixture(scope="module")
def one_by_one():
    """Return a measured step that XLA compiles no part of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLATFORM_VARIABLE, "gpu")
        patch.setattr(single_pass, "_can_compile", lambda: False)
        return concrete_step(True)


@pytest.fixture(scope="module")
def compiled():
    """Return a measured step as it is by default: XLA compiles the measuring."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLATFORM_VARIABLE, "gpu")
        patch.setattr(single_pass, "_can_compile", lambda: True)
        return concrete_step(True)


@needs_kernels
def test_every_added_operation_has_a_kernel_for_gpus(plain, one_by_one):
    added = operations(one_by_one) - plain
    assert len(added) > 30
    assert [key for key in added if not gpu_kernels(*key)] == []


@pytest.fixture(scope="module")
def slow_columns():
    """Return the program of the slow columns, of which XLA compiles no part."""
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Dense(8)])
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    moments = optimizer_state.find_moments([optimizer], model.trainable_variables)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLATFORM_VARIABLE, "gpu")
        patch.setattr(single_pass, "_can_compile", lambda: False)
        return measurement(model.trainable_variables, moments, {}).get_concrete_function()


@needs_kernels
def test_every_operation_of_the_slow_columns_has_a_kernel_for_gpus(slow_columns):
    found = operations(slow_columns)
    assert any(op == "BatchMatMulV2" for op, _ in found)
    assert [key for key in found if not gpu_kernels(*key) and key[0] not in LAUNCHES_NOTHING] == []
    assert not {op for op, _ in found} & WAITS


@needs_kernels
def test_a_kernel_that_is_missing_would_be_found():
    assert not gpu_kernels("StringUpper", ())
    assert gpu_kernels("Sum", (("T", tf.float64), ("Tidx", tf.int32)))


@pytest.mark.parametrize("form", ["one_by_one", "compiled"])
def test_no_added_operation_waits_for_the_host(form, request):
    assert not {op.type for op in request.getfixturevalue(form).graph.get_operations()} & WAITS


@needs_kernels
@pytest.mark.parametrize("batch", [None, 6])
def test_attention_heads_have_kernels_for_gpus_and_no_branch(batch):
    @tf.function(
        input_signature=[
            tf.TensorSpec([batch, batch and 70, 4, 8]),
            tf.TensorSpec([batch, 1, batch and 70], tf.bool),
            tf.TensorSpec([batch, batch and 70], tf.bool),
        ]
    )
    def rows(query, mask, in_use):
        call = AttentionCall(
            name="a",
            layer=None,
            number=0,
            query=query,
            key=query[:, :, :2],
            mask=mask,
            is_causal=True,
            keys_in_use=(in_use,),
            is_self=True,
            scale=1.0,
        )
        return attention.head_rows([call]), reductions.run(attention.residual_rows([query[:, :, 0]]))

    found = operations(rows.get_concrete_function())
    assert len(found) > 20
    assert [key for key in found if key[0] not in LAUNCHES_NOTHING and not gpu_kernels(*key)] == []
    assert not {op for op, _ in found} & WAITS


@needs_kernels
def test_what_lies_in_host_memory_is_constant(one_by_one):
    """Shapes, axes and sizes do; if the device computed them, each would be a copy to the host and a wait."""
    waits = []
    for op in one_by_one.graph.get_operations():
        if not is_measuring(op):
            continue
        host = {name for kernel in gpu_kernels(op.type, types_of(op)) for name in kernel.host_memory_arg}
        position = 0
        for argument in op.op_def.input_arg:
            length = op.get_attr(argument.number_attr) if argument.number_attr else 1
            inputs = op.inputs[position : position + length]
            position += length
            if argument.name in host and op.type not in LAUNCHES_NOTHING:
                unknown = [t for t in inputs if t.dtype != tf.resource and tf.get_static_value(t) is None]
                waits += [(op.type, argument.name, t.op.type, t.dtype.name) for t in unknown]
    assert sum(map(is_measuring, one_by_one.graph.get_operations())) > 100
    assert waits == []


def test_the_compiled_measuring_is_a_few_launches(plain, compiled, one_by_one):
    """XLA makes kernels inside of the calls: `python -m bench.gpu_compiled` counts those."""
    calls = [op for op in compiled.graph.get_operations() if op.type in CALLS]
    added = launches(operations(compiled)) - launches(plain)
    assert len(calls) == 2  # what is known before the optimizer's step, and what is known after it
    assert all(op.get_attr("_XlaMustCompile") for op in calls)
    assert added < launches(plain)
    assert added < 0.3 * (launches(operations(one_by_one)) - launches(plain))
