"""The rule about a replica whose gradient differs: records that it must report, and similar ones that it must not."""

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
