"""Mirrored strategies that the tests of one process share; see `scripts.testbed.steps.mirrored`."""

import pytest
from scripts.testbed.steps import mirrored

from tapescope_trainers.distributed import strategy

_make = strategy.make


@pytest.fixture(autouse=True, scope="module")
def _shared_strategies():
    def make(name: str, devices: str, *more):
        if name == "mirrored" and devices in ("cpu:2", "cpu:4"):
            return mirrored(int(devices.removeprefix("cpu:")))
        return _make(name, devices, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategy, "make", make)
        yield
