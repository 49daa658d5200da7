"""Data of the set-ups: arrays x and y, from which batches are drawn at random. Nothing is downloaded."""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits


class Data(NamedTuple):
    """Examples, and what their targets are."""

    x: np.ndarray
    y: np.ndarray
    classes: int
    """Number of classes; 0 for a regression, 1 for a binary target."""


def digits(seed: int) -> Data:
    """Return 1797 handwritten digits as 64 numbers between 0 and 1."""
    x, y = load_digits(return_X_y=True)
    return Data((x / 16).astype(np.float32), y.astype(np.int32), 10)


def images(seed: int) -> Data:
    """Return the digits as 8 x 8 images."""
    data = digits(seed)
    return data._replace(x=data.x.reshape(-1, 8, 8, 1))


def rows(seed: int) -> Data:
    """Return the digits as sequences of 8 rows."""
    data = digits(seed)
    return data._replace(x=data.x.reshape(-1, 8, 8))


def clusters(seed: int) -> Data:
    """Return 4000 standardized points around 15 centres in 20 dimensions, three centres for each of five classes."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=[15, 20]) * 1.2
    which = rng.integers(0, 15, 4000)
    return Data((centres[which] + rng.normal(size=[4000, 20])).astype(np.float32), (which % 5).astype(np.int32), 5)


def rings(seed: int) -> Data:
    """Return a binary target: which of two noisy rings in the plane, with 6 more coordinates of noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 4000)
    angle = rng.uniform(0, 2 * np.pi, 4000)
    radius = 1 + y + 0.15 * rng.normal(size=4000)
    plane = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    x = np.concatenate([plane, 0.3 * rng.normal(size=[4000, 6])], 1)
    return Data(x.astype(np.float32), y.astype(np.float32)[:, None], 1)


def friedman(seed: int) -> Data:
    """Return a regression of Friedman's first function of ten uniform numbers (1991), standardized."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=[4000, 10])
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y - y.mean()) / y.std() + 0.1 * rng.normal(size=4000)
    return Data((x * 2 - 1).astype(np.float32), y.astype(np.float32)[:, None], 0)


def waves(seed: int) -> Data:
    """Return noisy signals of 32 samples at random phases; the class is one of four frequencies."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 3000)
    phase = rng.uniform(0, 2 * np.pi, [3000, 1])
    x = np.sin(np.arange(32) * (0.25 + 0.2 * y[:, None]) + phase) + 0.3 * rng.normal(size=[3000, 32])
    return Data(x[..., None].astype(np.float32), y.astype(np.int32), 4)


def spirals(seed: int) -> Data:
    """Return points in the plane; the class is one of three arms of a spiral."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 3000)
    along = rng.uniform(0.2, 1, 3000)
    angle = 2 * np.pi * y / 3 + 4 * along + 0.1 * rng.normal(size=3000)
    x = 2 * along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return Data(x.astype(np.float32), y.astype(np.int32), 3)


def tokens(seed: int) -> Data:
    """Return sequences of 12 of 40 words; the class is the topic, one of five, that most of them belong to."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, 3000)
    on_topic = rng.random([3000, 12]) < 0.5
    words = rng.integers(0, 40, [3000, 12])
    x = np.where(on_topic, y[:, None] * 8 + rng.integers(0, 8, [3000, 12]), words)
    return Data(x.astype(np.int32), y.astype(np.int32), 5)


def skewed(seed: int) -> Data:
    """Return a regression of a standardized number with a long tail."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=[4000, 12])
    y = np.exp(0.5 * x[:, 0] + 0.3 * x[:, 1] * x[:, 2]) + np.abs(x[:, 3])
    y = (y - y.mean()) / y.std()
    return Data(x.astype(np.float32), y.astype(np.float32)[:, None], 0)


def itself(seed: int) -> Data:
    """Return the digits as inputs and as targets."""
    data = digits(seed)
    return Data(data.x, data.x, 0)


def teacher(seed: int) -> Data:
    """Return 400 normal points in 16 dimensions, in the four classes of a random linear map."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=[400, 16])
    return Data(x.astype(np.float32), (x @ rng.normal(size=[16, 4])).argmax(1).astype(np.int32), 4)


def linear(seed: int) -> Data:
    """Return a regression of an unscaled linear map of 512 normal points in 8 dimensions, with some noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=[512, 8])
    y = x @ rng.normal(size=[8, 1]) + 0.1 * rng.normal(size=[512, 1])
    return Data(x.astype(np.float32), y.astype(np.float32), 0)
