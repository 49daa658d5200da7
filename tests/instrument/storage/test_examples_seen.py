"""The number of examples that a run has trained on."""

import math

from tapescope.storage.examples_seen import ExamplesSeen

BATCHES = [32, 32, 2, 32, 32, 2]


def count(steps, seen=None):
    seen = seen or ExamplesSeen({})
    return [seen.add(step, BATCHES[step]) for step in steps]


def test_uneven_batches_are_counted_exactly_where_every_step_is_recorded():
    assert count(range(6)) == [32, 64, 66, 98, 130, 132]


def test_a_step_between_two_records_counts_as_the_largest():
    assert count([1, 2, 5]) == [64, 66, 132]


def test_a_run_that_goes_on_counts_on():
    seen = ExamplesSeen({})
    count([0, 1, 2], seen)
    assert count([3, 4], ExamplesSeen(seen.state())) == [98, 130]


def test_what_the_program_says_counts():
    seen = ExamplesSeen({})
    assert [seen.add(9, 8, 1000.0), seen.add(10, 8)] == [1000, 1008]


def test_a_step_with_an_unknown_number_of_examples_is_unknown():
    seen = ExamplesSeen({})
    assert math.isnan(seen.add(0, math.nan))
    assert seen.add(1, 8) == 16
