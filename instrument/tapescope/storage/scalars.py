"""Numbers among what a program logs. What is not one number is left out, and logged once by tag."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tapescope.storage.printable import describe, describe_error, one_line
from tensorboard_plugin_tapescope import metadata

_OWN_PREFIX = f"{metadata.PLUGIN_NAME}/"
_VALIDATION_LOSS = re.compile(r"(val|valid|validation|eval|evaluation|dev|test)[/_. -]?loss", re.IGNORECASE)
_NO_NUMBERS = "SUMmc"
"""Kinds of NumPy types that are not real numbers: text, times and complex numbers."""


class ScalarReader:
    """Reads the scalars of one record after another; not thread-safe."""

    def __init__(self):
        self._refused: set[str] = set()
        """Tags of values that were left out."""

    def read(self, scalars: Mapping[Any, Any]) -> dict[str, float]:
        """Return the numbers by tag. Values that are not one real number are left out.

        Args:
          scalars: by tag, numbers of any type or tensors with one element, which all replicas have alike.
        """
        numbers = {}
        for key, value in scalars.items():
            tag = describe(key)
            try:
                if tag.startswith(_OWN_PREFIX):
                    raise ValueError(f"tags that begin with {_OWN_PREFIX} are tapescope's own")
                numbers[tag] = _to_float(value)
            except Exception as error:  # the boundary of a value: the record is written without it
                self._refuse(tag, error)
        return numbers

    def _refuse(self, tag: str, error: Exception) -> None:
        if tag not in self._refused:
            self._refused.add(tag)
            logging.warning(
                "tapescope: a scalar must be one real number; %s is left out of the records (%s)",
                one_line(tag),
                describe_error(error),
            )


def validation_loss(numbers: Mapping[str, float], before: float) -> float:
    """Return the loss of a validation among the numbers, by its tag: `validation/loss`, `val_loss` and the like.

    Args:
      numbers: by tag.
      before: what is returned where there is none.
    """
    return next((number for tag, number in numbers.items() if is_validation_loss(tag)), before)


def is_validation_loss(tag: str) -> bool:
    """Return whether a tag is that of a validation's loss."""
    return _VALIDATION_LOSS.fullmatch(tag) is not None


def _to_float(value: Any) -> float:
    if isinstance(value, tf.distribute.DistributedValues):
        numbers = np.array([_to_float(of_replica) for of_replica in value.values])
        value = numbers[0]
        if not np.array_equal(numbers, np.full_like(numbers, value), equal_nan=True):
            raise ValueError("it differs between replicas: sum or average it with `strategy.reduce`")
    # np.asarray fails for a bfloat16 tensor, whose own method does not.
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    if array.dtype.kind in _NO_NUMBERS or (array.dtype == object and isinstance(array.item(), str | bytes)):
        raise TypeError(f"got {array.dtype}")
    if array.size != 1:
        raise ValueError(f"got shape {array.shape}")
    return float(array.item()) if array.dtype == object else float(array.astype(np.float64).item())
