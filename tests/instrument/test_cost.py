"""The cost of measuring, counted and not timed: what a measured program has more than the plain one must not grow.

The bounds are what was counted, with a little room; `make bench` has the times.
"""

import os
from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, mirrored

import tapescope
from tapescope.statistics import reading
from tapescope.storage import event_file, summaries, unit_ledger
from tensorboard_plugin_tapescope import metadata

HOST = {"PyFunc", "EagerPyFunc", "PyFuncStateless", "Print", "PrintV2", "_Send", "_HostSend", "Recv", "WriteSummary"}


def concrete(widths, measure, batch: int | None = 16, histograms=True) -> Any:
    """The concrete step of a chain of dense layers, its Probe, and a function that runs it."""
    model = dense_chain(widths, ["relu"] * len(widths), 16)
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, histograms=histograms)

    @tf.function(input_signature=[tf.TensorSpec([batch, 16])])
    def step(x):
        with probe.tape(measure) as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return tape.reading()

    return step.get_concrete_function(), probe


def nodes(function):
    """Nodes by type: of the program, and of the functions that it calls."""
    graph = function.graph.as_graph_def()
    return Counter(n.op for n in graph.node), Counter(n.op for f in graph.library.function for n in f.node_def)


@pytest.fixture(scope="module")
def counted():
    """Nodes that measuring adds, by depth, and the added functions' nodes."""
    found = {}
    for depth in (4, 12):
        (plain, _), (measured, inner) = (nodes(concrete([16] * depth, measure)[0]) for measure in (False, True))
        found[depth] = measured - plain, inner
    return found


def test_nodes_that_a_layer_adds(counted):
    """Layers of equal shape are reduced together: what grows is reading variables and naming the inputs."""
    (few, _), (many, _) = (counted[depth] for depth in (4, 12))
    grown = {op: (many[op] - few[op]) / 8 for op in many if many[op] > few[op]}
    assert set(grown) <= {"ReadVariableOp", "Identity", "Const"}, grown
    assert sum(grown.values()) <= 8, grown


def test_nodes_in_all(counted):
    added, inner = counted[4]
    assert sum(added.values()) <= 380, added
    assert sum(inner.values()) <= 90, inner


def test_nodes_of_layers_of_different_shapes():
    """Each with reductions of its own."""
    counts = []
    for depth in (3, 6):
        widths = [8 + i for i in range(depth)]
        (plain, _), (measured, _) = (nodes(concrete(widths, measure, batch=None)[0]) for measure in (False, True))
        counts.append(sum((measured - plain).values()))
    assert (counts[1] - counts[0]) / 3 <= 55, counts


def test_nothing_goes_to_the_host(counted):
    for added, inner in counted.values():
        assert not HOST & set(added + inner)


def test_branches_are_not_inlined(counted):
    """An `If` without a `_lower_using_switch_merge` is made ready when first taken, which is as good as never."""
    added, _ = counted[4]
    assert added["StatelessIf"] <= 5
    assert not {"Switch", "Merge", "If", "While", "StatelessWhile"} & set(added)


def test_sizes_of_a_reading():
    function, probe = concrete([16] * 4, True)
    read = function(np.ones([16, 16], np.float32))
    sizes = {name: int(tf.size(value)) for name, value in read._asdict().items() if isinstance(value, tf.Tensor)}
    variables, layers = len(probe.variables), len(probe.layers)
    assert sizes["variables"] == len(reading.VARIABLE_COLUMNS) * variables
    assert sizes["layers"] == len(reading.LAYER_COLUMNS) * layers
    assert sizes["units"] == 5 * 16 * layers
    assert sizes["gradient_histogram"] + sizes["activation_histogram"] == metadata.BINS * (variables + layers)
    assert sum(sizes.values()) <= 3200


def test_bytes_of_a_record(tmp_path):
    """At most 4 bytes a number and 300 a family, once the first has said what the columns are."""
    function, probe = concrete([16] * 4, True)
    read = summaries.on_host(function(np.ones([16, 16], np.float32)))
    ledger = unit_ledger.Ledger(probe.names.units, 16)
    file = event_file.EventFile(tmp_path)
    for n in range(2):
        values = summaries.families(summaries.Step(n, 1.0, 16.0), read, probe.names, ledger, {})
        file.add(n, values)  # the first says what the columns are
    for value in values:
        assert value.array is not None
        width = 8 if value.tag == metadata.tag("step") else 4  # examples seen are counted past 2^24
        assert value.tensor.ByteSize() + len(value.tag) + 50 <= width * value.array.size + 300, value.tag
    before = os.path.getsize(file.path)
    file.add(2, values)
    numbers = sum(0 if v.array is None else v.array.size for v in values)
    assert os.path.getsize(file.path) - before <= 4 * numbers + 300 * len(values)
    file.close()


def test_collectives_of_a_measured_step():
    """Two replicas: the gradients' own, and two more: their sum for the record, and one small one."""
    strategy = mirrored(2)
    with strategy.scope():
        model, optimizer = dense_chain([4, 2], ["relu", "linear"], 6), keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model)

    def in_replica(x, measure):
        with probe.tape(measure) as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return tape.reading()

    step = tf.function(lambda x, measure: strategy.run(in_replica, (x, measure)))
    x = tf.ones([8, 6])
    counts = []
    for measure in (False, True):
        main, inner = nodes(step.get_concrete_function(x, measure))
        counts.append(sum(n for op, n in (main + inner).items() if op.startswith("Collective")))
    assert counts[0] > 0
    assert counts[1] - counts[0] <= 6, counts
