"""The bounded queue: order, bound, and which records are left out."""

import numpy as np
import pytest

from tapescope.storage.background import RecordQueue


def get_all(queue):
    return [queue.get() for _ in range(len(queue))]


@pytest.fixture
def overfull():
    """Return a queue for 10 records, after 1,000 records and a status after every hundredth."""
    queue = RecordQueue(max_bytes=100)
    for n in range(1000):
        queue.put(n, 10)
        if n % 100 == 50:
            queue.put(f"status {n}")
    return queue


def test_jobs_come_in_order():
    queue = RecordQueue()
    for n in range(5):
        queue.put(n, 10)
    assert get_all(queue) == [0, 1, 2, 3, 4]


def test_the_bound_holds(overfull):
    assert overfull.waiting_bytes <= 100


def test_kept_records_are_in_order_and_cover_the_time(overfull):
    numbers = [job for job in get_all(overfull) if isinstance(job, int)]
    assert numbers == sorted(numbers)
    assert len(numbers) >= 5
    assert np.diff([0, *numbers, 999]).max() <= 256, numbers


def test_jobs_of_no_bytes_are_never_left_out(overfull):
    assert [job for job in get_all(overfull) if isinstance(job, str)] == [f"status {n}" for n in range(50, 1000, 100)]


def test_records_left_out_are_counted(overfull):
    numbers = [job for job in get_all(overfull) if isinstance(job, int)]
    assert overfull.left_out == 1000 - len(numbers)


def test_of_two_records_larger_than_the_bound_the_second_is_kept():
    queue = RecordQueue(max_bytes=100)
    queue.put("first", 1000)
    queue.put("second", 1000)
    assert get_all(queue) == ["second"]
    assert queue.left_out == 1


def test_an_empty_queue_takes_every_record_again(overfull):
    get_all(overfull)
    for n in range(5):
        overfull.put(n, 10)
    assert get_all(overfull) == [0, 1, 2, 3, 4]
