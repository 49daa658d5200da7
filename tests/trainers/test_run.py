"""`tapescope-train` as a person runs it: a process of its own, whose records TensorBoard's own reader reads."""

import contextlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from tensorboard import context as tb_context
from tensorboard.backend.event_processing import data_ingester
from tensorboard.data import server_ingester
from tensorboard.plugins import base_plugin
from tensorboard.plugins.core import core_plugin
from tensorboard.util import grpc_util

import tapescope

pytestmark = pytest.mark.slow

CLEAN = re.compile(r"^(?:WARNING: All log|[IWE]\d{4}|TensorBoard: |\d+/\d+ steps)")
"""Lines of stderr that TensorFlow and the progress write."""


def start(logdir, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tapescope_trainers.train", f"--logdir={logdir}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> list[str]:
    """The lines that it said, without TensorFlow's."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [line for line in (out + err).splitlines() if not CLEAN.match(line)]


def wait_for(condition, seconds: float = 60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it never came to be")


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A short real run."""
    logdir = tmp_path_factory.mktemp("runs")
    arguments = ("--preset=sigmoid_relu", "--steps=40", "--measure_every=4", "--validate_every=20", "--seed=3")
    said = finish(start(logdir / "short", *arguments, "--window_examples=512", "--optimizer=sgd"))
    assert len(said) == 1
    assert re.fullmatch(rf"done, validation/loss .*, validation/accuracy .*; the records are in {logdir}/short", said[0])
    return logdir


def fast_loader(logdir) -> contextlib.AbstractContextManager:
    ingester = server_ingester.SubprocessServerDataIngester(
        server_ingester.get_server_binary(),
        str(logdir),
        reload_interval=0,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
    )
    ingester.start()
    return contextlib.closing(Provider(ingester))


def python_loader(logdir) -> contextlib.AbstractContextManager:
    flags = core_plugin_flags(logdir)
    ingester = data_ingester.LocalDataIngester(flags)
    ingester.start()
    return contextlib.closing(Provider(ingester))
