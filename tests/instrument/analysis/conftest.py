"""A recorded run that the tests of this package share."""

import pytest

import tapescope
from tests.instrument.analysis.runs import record_run


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Return a run of five records."""
    return record_run(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def copy(recorded):
    """Return the same run, read again, for a test that changes it."""
    return tapescope.Run(recorded.logdir)
