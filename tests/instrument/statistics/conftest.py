"""Every test of the statistics runs as measuring is lowered for a CPU, and as it is for a GPU."""

import os

import pytest

from tapescope.statistics.batched_ops import PLATFORM_VARIABLE


@pytest.fixture(scope="module", params=["cpu", "gpu"], autouse=True)
def platform(request):
    """Lower for a platform, wherever the test runs."""
    before = os.environ.get(PLATFORM_VARIABLE)
    os.environ[PLATFORM_VARIABLE] = request.param
    yield request.param
    if before is None:
        del os.environ[PLATFORM_VARIABLE]
    else:
        os.environ[PLATFORM_VARIABLE] = before
