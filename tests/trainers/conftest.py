"""Trainers in one process: its mirrored strategies have to be shared, see `scripts.testbed.steps.mirrored`."""

import pytest
from scripts.testbed.steps import mirrored

from tapescope_trainers.distributed import strategy

_make = strategy.make


@pytest.fixture(autouse=True)
def _shared_strategies(monkeypatch):
    def make(name: str, devices: str, *more):
        shared = name == "mirrored" and devices in ("cpu:2", "cpu:4")
        return mirrored(int(devices[4:])) if shared else _make(name, devices, *more)

    monkeypatch.setattr(strategy, "make", make)
