"""The framing of event files: the same records as TensorFlow's reader, and the same end at damage."""

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from tapescope.storage import tfrecord

RNG = np.random.default_rng(3)
LENGTHS = (0, 1, 3, 4, 251, 252, 253, 256, 1000, 20_000)
RECORDS = [RNG.bytes(length) for length in LENGTHS]


@pytest.fixture
def path(tmp_path):
    """Return a file that TensorFlow wrote."""
    with tf.io.TFRecordWriter(str(tmp_path / "records")) as writer:
        for record in RECORDS:
            writer.write(record)
    return tmp_path / "records"


def read_with_tensorflow(path):
    return list(event_file_loader.RawEventFileLoader(str(path)).Load())


@pytest.mark.parametrize("record", RECORDS, ids=map(str, LENGTHS))
def test_checksum_is_tensorboards(record):
    assert tfrecord._masked_crc32c([record]).tolist() == [pywrap_tensorflow.masked_crc32c(record)]


def test_records_that_tensorflow_wrote_are_read(path):
    assert list(tfrecord.read(path)) == RECORDS


def test_framed_records_are_what_tensorflow_writes(path):
    assert tfrecord.frame(RECORDS) == path.read_bytes()


def test_an_empty_file_has_no_record(tmp_path):
    (tmp_path / "empty").touch()
    assert list(tfrecord.read(tmp_path / "empty")) == []


def test_a_batch_may_end_at_any_record(path, monkeypatch):
    monkeypatch.setattr(tfrecord, "FIRST_BATCH_BYTES", 1)
    monkeypatch.setattr(tfrecord, "LARGEST_BATCH_BYTES", 1)
    assert list(tfrecord.read(path)) == RECORDS


def test_a_truncated_file_is_read_to_its_last_whole_record(path):
    content = path.read_bytes()
    ends = np.cumsum([len(record) + tfrecord.FRAMING_BYTES for record in RECORDS])
    lengths = {*range(200), *RNG.integers(200, len(content), 100).tolist(), *ends.tolist(), *(ends - 1).tolist()}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        assert len(list(tfrecord.read(path))) == np.count_nonzero(ends <= length), length


def test_a_damaged_byte_ends_the_reading_as_in_tensorflow(path):
    content = path.read_bytes()
    ends = np.cumsum([len(record) + tfrecord.FRAMING_BYTES for record in RECORDS])
    for position in [*range(60), *RNG.integers(60, len(content), 60).tolist()]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << RNG.integers(8)
        path.write_bytes(damaged)
        read: list[bytes] = []
        with pytest.raises(tfrecord.DamagedError, match="it is damaged at byte") as raised:
            read.extend(tfrecord.read(path))
        assert len(read) == np.count_nonzero(ends <= position), position
        assert f"byte {ends[len(read) - 1] if read else 0} of {len(content)}" in str(raised.value)
        assert read == read_with_tensorflow(path), position


def test_a_file_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(tfrecord.read(tmp_path / "nowhere"))
