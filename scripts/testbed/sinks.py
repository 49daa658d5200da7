"""Tools that sinks write to, for tests."""

import sys

import pytest


def import_trackio(directory, monkeypatch):
    """Import trackio anew with its store in a directory, which it reads when it is imported; skip if it is absent."""
    monkeypatch.setenv("TRACKIO_DIR", str(directory))
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    pytest.importorskip("trackio", reason="trackio is not installed")
