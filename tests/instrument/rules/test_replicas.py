"""The rules about a replica that differs: records that it must report, and similar ones that it must not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, measured, mirrored

import tapescope
from tapescope.rules import record_view
from tapescope.statistics import replicas
from tests.instrument.rules.records import NAN, find, only_finding


def longer(replica, factor):
    """Return a change that multiplies one replica's gradient."""

    def change(t, columns):
        columns["replica_norm"][replica] *= factor

    return change


def test_a_replica_with_a_much_longer_gradient_is_named():
    finding = only_finding(find(20, longer(2, 5), replicas=4), "replica_outlier")
    assert (finding.layer, finding.evidence["replica"]) == (None, 2)
    assert 3 < finding.evidence["norm_ratio"] < 7


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("records", [10, 11])
def test_of_two_replicas_the_one_with_the_longer_gradient_is_named(replica, records):
    finding = only_finding(find(records, longer(replica, 9), replicas=2), "replica_outlier")
    assert finding.evidence["replica"] == replica


def test_twice_the_norm_may_be_chance_in_a_few_records():
    assert find(20, longer(0, 2), replicas=4) == []


def test_twice_the_norm_is_reported_after_many_records():
    assert only_finding(find(60, longer(0, 2), replicas=4), "replica_outlier").evidence["replica"] == 0


def test_a_replica_without_a_gradient_is_named():
    def empty(t, columns):
        columns["replica_norm"][1] = 0
        columns["replica_cosine"][1] = NAN

    evidence = only_finding(find(20, empty, replicas=2), "replica_outlier").evidence
    assert (evidence["replica"], evidence["norm_ratio"]) == (1, 0)


def test_a_replica_with_another_direction_is_named():
    def turned(t, columns):
        columns["replica_cosine"][3] -= 0.6

    finding = only_finding(find(20, turned, replicas=4), "replica_outlier")
    assert finding.evidence["replica"] == 3
    assert "has another direction than that of the others: its cosine to the mean differs by -0." in finding.message


def weights_differ(since, variables=(3, 4), difference=1e-4, replica=1):
    """Return a change that gives one replica other weights in some variables."""

    def change(t, columns):
        columns["replica_checksum"] = np.tile(np.arange(8.0) + 100 * t, [len(columns["replica_norm"]), 1])
        columns["replica_difference"] = np.zeros_like(columns["replica_checksum"])
        for n, variable in enumerate(variables if t >= since else ()):
            columns["replica_checksum"][replica, variable] += 7
            columns["replica_difference"][replica, variable] = difference * (n + 1)

    return change


def test_equal_weights_are_no_finding():
    assert find(20, weights_differ(99), replicas=4) == []


def test_different_weights_are_an_error_at_once():
    finding = only_finding(find(8, weights_differ(7), replicas=4), "replicas_diverged")
    assert (finding.severity, finding.layer, finding.step) == ("error", "hidden_3", 28)
    assert finding.evidence == {"replica": 1, "variables": 2, "difference": 2e-4}


def test_a_difference_between_the_sampled_weights_is_found():
    finding = only_finding(find(8, weights_differ(7, difference=0), replicas=2), "replicas_diverged")
    assert finding.evidence["difference"] == 0


def as_a_whole(change):
    """Return a change after which 64 replicas are compared by all variables together."""

    def changed(t, columns):
        change(t, columns)
        norms = columns["replica_norm"]
        columns["replica_norm"] = np.sqrt(np.sum(norms**2, 1, keepdims=True))
        for name in ("replica_cosine", "replica_checksum", "replica_difference"):
            if name in columns:
                columns[name] = columns[name][:, :1]

    return changed


def test_one_of_many_replicas_with_a_longer_gradient_is_named():
    finding = only_finding(find(20, as_a_whole(longer(41, 5)), replicas=64), "replica_outlier")
    assert finding.evidence["replica"] == 41
    assert 3 < finding.evidence["norm_ratio"] < 7


def test_one_of_many_replicas_with_other_weights_is_named():
    finding = only_finding(find(8, as_a_whole(weights_differ(7, [0], replica=63)), replicas=64), "replicas_diverged")
    assert (finding.layer, finding.step, finding.evidence["replica"]) == (None, 28, 63)
    assert finding.message == (
        "the replicas have different weights, so they train different networks; 1 of 64 differ from replica 0, and "
        "replica 63 differs most"
    )


@pytest.mark.parametrize("seed", range(20))
def test_medians_of_others_are_those_without_each(seed):
    rng = np.random.default_rng(seed)
    values = rng.choice([NAN, -np.inf, *rng.normal(size=5)], size=rng.integers(2, 9))
    expected = [record_view.lower_median(np.delete(values, i)) for i in range(len(values))]
    np.testing.assert_array_equal(record_view._medians_of_others(values), expected)


def test_a_run_without_checksums_has_no_finding():
    assert find(20, replicas=2) == []


def test_after_a_nan_the_bits_of_weights_mean_nothing():
    def broken(t, columns):
        weights_differ(5)(t, columns)
        if t >= 5:
            columns["first_nonfinite_forward"] = np.float64(0)
            columns["activation_nonfinite"][0] = 4

    assert "replicas_diverged" not in [f.rule for f in find(20, broken, replicas=2)]


@pytest.mark.parametrize("most", [32, 1])
def test_a_replica_whose_weights_are_changed_is_found_in_the_next_step(tmp_path, monkeypatch, most):
    monkeypatch.setattr(replicas, "FEW", most)
    strategy = mirrored(2)
    with strategy.scope():
        model = dense_chain([5, 2], ["tanh", "linear"], 6)
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model)

    def replica_step(x):
        return measured(probe, lambda: tf.reduce_mean(model(x) ** 2), model.trainable_variables, optimizer).reading

    run = tf.function(lambda x: strategy.run(replica_step, (x,)))
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(4):
            if n == 2:
                model.trainable_variables[2].value.values[1].assign_add(np.eye(5, 2) * 1e-3)
            recorder.write(n, run(tf.ones([4, 6])), {"loss": 1.0})
    recorded = tapescope.Run(tmp_path)
    if most == 1:
        assert recorded.rows("replica_norm") == ("all variables",)
        assert recorded.frame("replica_norm").columns.tolist() == [(0, "all variables"), (1, "all variables")]
        (finding,) = (f for f in recorder.findings if f.rule == "replicas_diverged")
        assert (finding.severity, finding.layer, finding.step) == ("error", None, 2)
        assert finding in tapescope.check(recorded)
        return
    assert recorded["replica_difference"][:, 1, 2] == pytest.approx([0, 0, 1e-3, 1e-3], abs=1e-5)
    (finding,) = (f for f in recorder.findings if f.rule == "replicas_diverged")
    assert (finding.severity, finding.layer, finding.step) == ("error", "layer1", 2)
    assert finding in tapescope.check(recorded)
