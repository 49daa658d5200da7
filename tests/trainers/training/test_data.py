"""Data sets: reading, splitting, scaling and shuffling, which depend on the seed only."""

import gzip
import io
import itertools
import os
import socket
import urllib.request
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from tapescope_trainers.training import data


def rows(batches, count: int) -> np.ndarray:
    return np.concatenate([x.numpy() for x, _ in itertools.islice(batches, count)])


@pytest.fixture
def own(tmp_path):
    """Return a function that writes an npz file and returns its name as a data set."""

    def write(**arrays) -> str:
        np.savez(tmp_path / "own.npz", **arrays)
        return f"npz:{tmp_path}/own.npz"

    return write


def test_digits_are_complete():
    digits = data.load("digits")
    assert (digits.shape, digits.classes) == ((8, 8), 10)
    assert len(digits.x_train) + len(digits.x_valid) == 1797
    assert len(digits.x_valid) == round(1797 * data.VALIDATION_SHARE)
    assert digits.x_train.max() * digits.scale == 1
    assert set(digits.y_train) == set(range(10))


def test_split_and_order_depend_on_the_seed():
    first, same, other = (data.load("digits", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.x_valid, same.x_valid)
    assert not np.array_equal(first.x_valid, other.x_valid)
    order, same_order, other_order = (rows(data.batches(first, 64, seed), 40) for seed in (1, 1, 2))
    np.testing.assert_array_equal(order, same_order)
    assert not np.array_equal(order, other_order)


def test_an_epoch_has_every_example_at_most_once_and_the_next_another_order():
    x = np.arange(10, dtype=np.float32)[:, None]
    digits = data.Data(x, np.zeros(10, np.int32), x, np.zeros(10, np.int32), 1.0, 1)
    seen = rows(data.batches(digits, 3, 0), 6)[:, 0]
    assert len(set(seen[:9])) == len(set(seen[9:])) == 9
    assert list(seen[:9]) != list(seen[9:])


def test_batches_are_flat_scaled_one_hot_and_of_static_shape():
    digits = data.load("digits")
    batches = data.batches(digits, 32, 0)
    assert [spec.shape.as_list() for spec in batches.element_spec] == [[32, 64], [32, 10]]
    x, y = next(iter(batches))
    assert x.dtype == y.dtype == tf.float32
    assert 0 <= tf.reduce_min(x) < tf.reduce_max(x) <= 1
    np.testing.assert_array_equal(tf.reduce_sum(y, 1), 1)


def test_pipelines_have_no_autotune_thread():
    pipelines = data.batches(data.load("digits"), 64, 0), data.validation_batches(data.load("digits"), 64)
    assert not any(pipeline.options().autotune.enabled for pipeline in pipelines)


def test_labels_stay_with_their_examples():
    digits = data.load("digits")
    known = {image.tobytes(): label for image, label in zip(digits.x_train, digits.y_train, strict=True)}
    for x, y in itertools.islice(data.batches(digits, 100, 3), 5):
        images = (x.numpy() * 16).astype(np.uint8)
        assert [known[image.tobytes()] for image in images] == list(np.argmax(y, 1))


def test_validation_has_all_examples_in_order():
    digits = data.load("digits")
    examples = np.concatenate([x for x, _ in data.validation_batches(digits, 100)])
    np.testing.assert_allclose(examples, digits.x_valid.reshape(-1, 64) / 16)


def test_npz_without_a_test_part_is_split(own):
    found = data.load(own(x_train=np.arange(20, dtype=np.uint8).reshape(10, 2), y_train=np.arange(10)))
    assert (len(found.x_train), len(found.x_valid), found.classes) == (8, 2, 10)
    assert found.scale == 1 / 255
    assert set(found.y_train) | set(found.y_valid) == set(range(10))


def test_npz_with_a_test_part_is_not_split(own):
    x, y = np.ones([4, 3, 3], np.float32), np.array([[0], [1], [2], [1]])
    found = data.load(own(x_train=x, y_train=y, x_test=x[:1] * 2, y_test=y[:1]))
    assert (len(found.x_train), found.scale, found.classes) == (4, 1.0, 3)
    np.testing.assert_array_equal(found.x_valid, x[:1] * 2)
    np.testing.assert_array_equal(found.y_train, [0, 1, 2, 1])


X, Y = np.zeros([4, 2], np.float32), np.zeros([4], int)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X}, "must have x_train and y_train, and may have x_test and y_test; got images"),
        ({"x_train": X, "y_train": Y[:3]}, r"labels \[N\]; got \(4, 2\) and \(3,\)"),
        ({"x_train": X, "y_train": Y.astype(float)}, "labels must be integers from 0; got type float64"),
        ({"x_train": X, "y_train": Y - 1}, "labels must be integers from 0; got -"),
        ({"x_train": X.astype(complex), "y_train": Y}, "must be uint8 or floating; got type complex128"),
        ({"x_train": X[:1], "y_train": Y[:1]}, "are needed; got 0 and 1"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :1], "y_test": Y}, r"got \(4, 1\) and \(4,\)"),
    ],
)
def test_unusable_npz_is_refused_with_the_reason(own, arrays, message):
    with pytest.raises(ValueError, match=message):
        data.load(own(**arrays))


def test_a_file_that_is_not_an_npz_is_refused(tmp_path):
    (tmp_path / "own.npz").write_text("no")
    with pytest.raises(ValueError, match="must be an npz file"):
        data.load(f"npz:{tmp_path}/own.npz")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_a_copy_on_disk_is_read(tmp_path, name):
    x, y = np.full([3, 4, 4], 255, np.uint8), np.array([1, 0, 2])
    np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
    found = data.load(name, str(tmp_path))
    np.testing.assert_array_equal(found.x_train * found.scale, np.ones([3, 4, 4]))
    np.testing.assert_array_equal(found.y_valid, [1])


def test_mnist_files_as_distributed_are_read(tmp_path):
    def write(name: str, array: np.ndarray) -> None:
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        with gzip.open(tmp_path / f"{name}-ubyte.gz", "wb") as file:
            file.write(head + array.tobytes())

    x, y = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3), np.array([4, 2], np.uint8)
    write("train-images-idx3", x)
    write("train-labels-idx1", y)
    write("t10k-images-idx3", x[:1])
    write("t10k-labels-idx1", y[:1])
    found = data.load("fashion_mnist", str(tmp_path))
    np.testing.assert_array_equal(found.x_train, x)
    np.testing.assert_array_equal(found.y_train, [4, 2])
    assert found.shape == (3, 3)


def test_a_missing_copy_is_reported(tmp_path):
    with pytest.raises(ValueError, match=r"has no cifar10\.npz: put it there .* or leave --data_dir out"):
        data.load("cifar10", str(tmp_path))


def test_a_failed_download_is_reported(monkeypatch):
    def load_data():
        raise Exception("URL fetch failure on https://example.com: None --\n unreachable")

    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", load_data)
    with pytest.raises(
        ValueError, match=r"mnist cannot be downloaded \(URL .* --data_dir=DIRECTORY, or use --data=digits"
    ):
        data.load("mnist")


def test_a_silent_server_times_out(monkeypatch):
    """A server that accepts a connection and then sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/mnist.npz"

        def load_data():
            with urllib.request.urlopen(address) as response:
                return response.read()

        monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", load_data)
        monkeypatch.setattr(data, "DOWNLOAD_TIMEOUT_S", 0.1)
        with pytest.raises(ValueError, match=r"mnist cannot be downloaded \(.*timed out"):
            data.load("mnist")
    assert socket.getdefaulttimeout() is None


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="--batch_size=2000 is more than the 1438 training examples: lower it"):
        data.batches(data.load("digits"), 2000, 0)


# Files that are damaged, or of another kind: one line for each.


EXAMPLES = np.zeros((20, 4), np.float32)
LABELS = np.arange(20) % 3


def archive(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def plain(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WHOLE = archive(x_train=EXAMPLES, y_train=LABELS)
HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117)
    + b"\n"
)


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive_file:
        archive_file.writestr("x_train.npy", content)
        archive_file.writestr("y_train.npy", plain(LABELS))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        WHOLE[: len(WHOLE) // 2],
        WHOLE[:120] + bytes([WHOLE[120] ^ 255]) + WHOLE[121:],
        plain(EXAMPLES),
        plain(np.float32(1)),
        zipped(HUGE),
        zipped(b""),
        archive(x_train=EXAMPLES),
        archive(x_train=np.float32(1), y_train=LABELS),
        archive(x_train=EXAMPLES, y_train=np.int64(1)),
        archive(x_train=EXAMPLES, y_train=LABELS, x_test=np.float32(1), y_test=np.int64(0)),
        archive(x_train=EXAMPLES, y_train=np.full(20, 2**31)),
        archive(x_train=EXAMPLES, y_train=np.full(20, 2**63, np.uint64)),
        archive(x_train=EXAMPLES, y_train=np.where(LABELS, LABELS, 10**9)),
        archive(x_train=EXAMPLES.astype("U3"), y_train=LABELS),
        archive(x_train=np.array([{}] * 20, object), y_train=LABELS),
        archive(x_train=EXAMPLES[:0], y_train=LABELS[:0]),
    ],
    ids=range(18),
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="data ") as info:
        data.load(f"npz:{path}")
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4, gzip.compress(b""), gzip.compress(bytes(3)), gzip.compress(b"\0\0\x08\xff")],
    ids=range(5),
)
def test_a_damaged_mnist_file_is_named(tmp_path, content):
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{part}-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged \(.*\): copy it again"):
        data.load("mnist", str(tmp_path))


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(ValueError, match="it is not a regular file"):
        data.load(f"npz:{tmp_path}/data.npz")
