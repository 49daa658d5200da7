"""Scalars that a program logs: what is a number, and what is left out and said once."""

import decimal
import fractions

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.records import eager_steps, loaded_steps
from scripts.testbed.steps import mirrored

import tapescope
from tapescope.storage.scalars import ScalarReader, validation_loss


class Unprintable:
    """An object whose str() and float() fail."""

    def __str__(self):
        raise ValueError("no str")

    def __float__(self):
        raise ValueError("no float")


NUMBERS = {
    "bfloat16": tf.constant(1.5, tf.bfloat16),
    "bfloat16 array": tf.constant(1.5, tf.bfloat16).numpy(),
    "float8": np.array(1.5, ml_dtypes.float8_e4m3fn),
    "half": np.float16(1.5),
    "float64": tf.constant(1.5, tf.float64),
    "one element": tf.constant([[1.5]]),
    "variable": tf.Variable(1.5),
    "keras variable": keras.Variable(1.5),
    "list": [1.5],
    "Decimal": decimal.Decimal("1.5"),
    "Fraction": fractions.Fraction(3, 2),
}
REFUSED = {
    "text": "1.5",
    "bytes": b"1.5",
    "string tensor": tf.constant("1.5"),
    "object text": np.array("1.5", object),
    "vector": tf.ones(3),
    "empty": [],
    "None": None,
    "complex": 1.5 + 0j,
    "complex tensor": tf.constant(1.5, tf.complex64),
    "date": np.datetime64("2020-01-01"),
    "dict": {"a": 1.5},
    "ragged": [[1], [1, 2]],
    "unprintable": Unprintable(),
    "symbolic": keras.Input(()),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_of_any_type_is_read(kind):
    assert ScalarReader().read({"x": NUMBERS[kind]}) == {"x": 1.5}


@pytest.mark.parametrize(
    ("value", "number"), [(True, 1.0), (np.uint8(200), 200.0), (2**70, 2.0**70), (-(10**400), None)]
)
def test_whole_numbers_are_read(value, number):
    assert ScalarReader().read({"x": value}) == ({} if number is None else {"x": number})


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_a_number_is_left_out(kind):
    assert ScalarReader().read({"x": REFUSED[kind], "y": 2}) == {"y": 2.0}


def test_a_value_is_left_out_with_one_warning(caplog):
    reader = ScalarReader()
    for _ in range(3):
        reader.read({"x": "text"})
    (record,) = caplog.records
    assert record.getMessage().startswith("tapescope: a scalar must be one real number; x is left out of the records (")


def test_a_tag_of_tapescope_is_left_out():
    assert ScalarReader().read({"tapescope/variables": 1.0}) == {}


def test_no_record_is_lost_whatever_its_scalars_are(tmp_path):
    probe, step = eager_steps()
    odd = {"loss": tf.constant(0.5, tf.bfloat16), 7: 1.0, "\ud800": 1.0, **REFUSED}
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(3):
            recorder.write(n, step(n), odd)
    assert recorder.lost == 0
    assert tapescope.Run(tmp_path)["loss"].tolist() == [0.5, 0.5, 0.5]
    assert loaded_steps(tmp_path, "7") == [0, 1, 2]


@pytest.mark.parametrize("tag", ["validation/loss", "val_loss", "Eval/Loss", "test_loss", "validation loss", "valloss"])
def test_the_loss_of_a_validation_is_known_by_its_tag(tag):
    assert validation_loss({"loss": 1.0, tag: 2.0}, before=3.0) == 2.0


@pytest.mark.parametrize("tag", ["loss", "val_accuracy", "val_head_loss", "interval_loss", "validation/loss/head"])
def test_other_tags_leave_the_loss_of_the_validation_before(tag):
    assert validation_loss({tag: 2.0}, before=3.0) == 3.0


@pytest.mark.parametrize(("losses", "read"), [([1.5, 1.5], {"x": 1.5}), ([1.5, 2.5], {})])
def test_a_scalar_of_several_replicas_must_be_the_same_on_all(losses, read):
    strategy = mirrored(2)
    values = strategy.run(lambda: tf.constant(losses)[tf.distribute.get_replica_context().replica_id_in_sync_group])
    assert ScalarReader().read({"x": values}) == read
