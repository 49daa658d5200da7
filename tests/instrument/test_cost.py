"""The cost of measuring, counted and not timed: what a measured program has in addition to the plain one.

The bounds are the counted numbers with a little room; `make bench` measures times.
"""

import os
from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, measured, mirrored

import tapescope
from tapescope.statistics import batched_ops, reading
from tapescope.storage import event_file, summaries, unit_ledger
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.series.spikes import RunSpikes

HOST = {"PyFunc", "EagerPyFunc", "PyFuncStateless", "Print", "PrintV2", "_Send", "_HostSend", "Recv", "WriteSummary"}


def concrete_step(widths, measure, batch: int | None = 16) -> Any:
    """Return the traced step of a chain of dense layers, and its Probe."""
    model = dense_chain(widths, ["relu"] * len(widths), 16)
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model)

    @tf.function(input_signature=[tf.TensorSpec([batch, 16])])
    def step(x):
        def loss():
            return tf.reduce_mean(tf.square(model(x, training=True)))

        return measured(probe, loss, model.trainable_variables, optimizer, measure).reading

    return step.get_concrete_function(), probe


def count_nodes(function):
    """Count the nodes by type: of the program, and of the functions that it calls."""
    graph = function.graph.as_graph_def()
    return Counter(n.op for n in graph.node), Counter(n.op for f in graph.library.function for n in f.node_def)


def count_added(widths, batch: int | None = 16):
    """Count the nodes that measuring adds to the program, and the nodes of the functions that it calls."""
    for cache in (batched_ops._traced_once, batched_ops._exact_branch, batched_ops._fast_branch):
        cache.cache_clear()  # other tests traced them too, under strategies, which makes further copies
    plain, _ = count_nodes(concrete_step(widths, False, batch)[0])
    program, functions = count_nodes(concrete_step(widths, True, batch)[0])
    return program - plain, functions


@pytest.fixture(scope="module")
def shallow():
    return count_added([16] * 4)


@pytest.fixture(scope="module")
def deep():
    return count_added([16] * 12)


@pytest.fixture(scope="module")
def growth(shallow, deep):
    """Return the nodes that a further layer of the same shape adds, by type."""
    few, _ = shallow
    many, _ = deep
    return {op: (many[op] - few[op]) / 8 for op in many if many[op] > few[op]}


def test_a_further_layer_adds_only_reads_and_names(growth):
    """Layers of equal shape are reduced together."""
    assert set(growth) <= {"ReadVariableOp", "Identity", "Const"}


def test_a_further_layer_adds_few_nodes(growth):
    assert sum(growth.values()) <= 8, growth


def test_measuring_adds_few_nodes(shallow):
    added, _ = shallow
    assert sum(added.values()) <= 460, added


def test_measuring_adds_few_nodes_in_functions(shallow):
    _, functions = shallow
    assert sum(functions.values()) <= 90, functions


def test_a_further_layer_of_another_shape_adds_few_nodes():
    """Each has reductions of its own."""
    few, many = (sum(count_added([8 + i for i in range(depth)], batch=None)[0].values()) for depth in (3, 6))
    assert (many - few) / 3 <= 60


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_nothing_is_copied_to_the_host(depth, request):
    added, functions = request.getfixturevalue(depth)
    assert not HOST & set(added + functions)


def test_there_are_few_branches(shallow):
    added, _ = shallow
    assert added["StatelessIf"] <= 5


def test_branches_are_not_inlined(shallow):
    """TensorFlow prepares an `If` without `_lower_using_switch_merge` when a branch is first taken."""
    added, _ = shallow
    assert not {"Switch", "Merge", "If", "While", "StatelessWhile"} & set(added)


@pytest.fixture(scope="module")
def host_reading():
    """Return a Probe, and its reading of one step of four layers as NumPy arrays."""
    function, probe = concrete_step([16] * 4, True)
    return probe, summaries.to_host(function(np.ones([16, 16], np.float32)))


@pytest.fixture(scope="module")
def sizes(host_reading):
    """Return the number of elements of each part of the reading."""
    _, read = host_reading
    return {name: value.size for name, value in read._asdict().items() if isinstance(value, np.ndarray)}


def test_a_reading_has_a_number_for_each_column_and_row(host_reading, sizes):
    probe, _ = host_reading
    assert sizes["variables"] == len(reading.VARIABLE_COLUMNS) * len(probe.variables)
    assert sizes["layers"] == len(reading.LAYER_COLUMNS) * len(probe.layers)


def test_a_reading_has_five_numbers_for_each_unit(host_reading, sizes):
    probe, _ = host_reading
    assert sizes["units"] == 5 * 16 * len(probe.layers)


def test_a_reading_has_a_histogram_for_each_row(host_reading, sizes):
    probe, _ = host_reading
    rows = len(probe.variables) + len(probe.layers)
    assert sizes["gradient_counts"] + sizes["activation_counts"] == metadata.BINS * rows


def test_a_reading_is_small(sizes):
    assert sum(size for name, size in sizes.items() if name != "gradient_sample") <= 3200


def test_a_sample_of_a_gradient_is_small(host_reading, sizes):
    probe, _ = host_reading
    assert sizes["gradient_sample"] <= 1024 * len(probe.variables)


@pytest.fixture
def second_record(tmp_path, host_reading):
    """Yield an event file with two records, and the values of the second; the first describes the columns."""
    probe, read = host_reading
    ledger = unit_ledger.Ledger(probe.names.units, 16)
    file = event_file.EventFile(tmp_path)
    for n in range(2):
        ledger.add(read.units, read.elements, 16)
        values = [
            summaries.variables_family(read, probe.names, {}),
            summaries.step_family(summaries.Step(n, 1.0, 16.0), read, ledger.verdict, RunSpikes()),
            summaries.layers_family(read, probe.names, ledger.verdict, {}, probe._state.layer_modes),
            summaries.units_family(probe.names, ledger.verdict),
            *summaries.histogram_families(read, probe.names),
        ]
        file.add(n, values)
    yield file, values
    file.close()


def test_a_family_takes_4_bytes_a_number_and_300(second_record):
    _, values = second_record
    for value in values:
        width = 8 if value.tag == metadata.tag("step") else 4  # examples seen are counted past 2^24
        assert value.tensor.ByteSize() + len(value.tag) + 50 <= width * value.array.size + 300, value.tag


def test_a_record_takes_4_bytes_a_number_and_300_a_family(second_record):
    file, values = second_record
    before = os.path.getsize(file.path)
    file.add(2, values)
    numbers = sum(value.array.size for value in values)
    assert os.path.getsize(file.path) - before <= 4 * numbers + 300 * len(values)


@pytest.fixture(scope="module")
def collectives():
    """Return the number of collectives in a plain and in a measured step of two replicas."""
    strategy = mirrored(2)
    with strategy.scope():
        model = dense_chain([4, 2], ["relu", "linear"], 6)
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model)

    def in_replica(x, measure):
        def loss():
            return tf.reduce_mean(tf.square(model(x, training=True)))

        return measured(probe, loss, model.trainable_variables, optimizer, measure).reading

    step = tf.function(lambda x, measure: strategy.run(in_replica, (x, measure)))
    counts = []
    for measure in (False, True):
        program, functions = count_nodes(step.get_concrete_function(tf.ones([8, 6]), measure))
        counts.append(sum(n for op, n in (program + functions).items() if op.startswith("Collective")))
    return counts


def test_a_plain_step_has_the_collectives_of_the_gradients(collectives):
    assert collectives[0] > 0


def test_a_measured_step_has_few_more_collectives(collectives):
    """One sums the gradients for the record, and a small one has all other numbers."""
    assert collectives[1] - collectives[0] <= 6
