"""Synthetic runs, and TensorBoard over them in this process with either of its two loaders."""

import pathlib
import time
import warnings
from typing import NamedTuple

import pytest
from tensorboard import program
from tensorboard.backend.event_processing import data_ingester
from tensorboard.data import ingester, server_ingester
from tensorboard.util import grpc_util
from werkzeug.datastructures import MultiDict
from werkzeug.test import Client, TestResponse

with warnings.catch_warnings():  # a library within TensorBoard warns about itself when it is imported
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard.backend.application import TensorBoardWSGIApp
    from tensorboard.plugins.core import core_plugin

from scripts.testbed import synthetic
from scripts.testbed.hostile import HOSTILE
from scripts.testbed.synthetic import Spec

from tensorboard_plugin_tapescope.loader import Loader

WAIT_SECONDS = 20
STEPS = range(0, 400, 10)


@pytest.fixture(scope="session")
def logdir(tmp_path_factory) -> pathlib.Path:
    """Write four runs: healthy, vanishing with findings, two replicas, and one with hostile names."""
    root = tmp_path_factory.mktemp("runs")
    found = (synthetic.finding(), synthetic.finding("hidden_2", 200, "warning"), synthetic.finding(None, 10, "info"))
    synthetic.write(root / "healthy", Spec(decay=0.9), STEPS)
    synthetic.write(root / "vanishing", Spec(depth=8, decay=0.2, dying=0.6, findings=found), STEPS)
    synthetic.write(root / "two replicas", Spec(replicas=2, step_seconds=0.03, heads=3), STEPS)
    hostile = synthetic.finding(HOSTILE[0], 10, message="<img src=x onerror=alert(2)> & more")
    synthetic.write(root / "we <b>ird" / "'quoted\"", Spec(layers=HOSTILE, findings=(hostile,)), STEPS)
    return root


class Application(NamedTuple):
    """TensorBoard in this process; `ingester` loads data until it is deleted."""

    client: Client
    ingester: ingester.DataIngester
    prefix: str = ""

    def get(self, route: str, **parameters: object) -> TestResponse:
        """Return the plugin's answer; a list in `parameters` is a parameter given several times."""
        return self.client.get(f"{self.prefix}/data/plugin/tapescope/{route}", query_string=MultiDict(parameters))


def application(logdir: pathlib.Path, fast: bool, runs: int, prefix: str = "", last: int = 0) -> Application:
    """Return TensorBoard over a directory, once it has loaded all of its runs.

    Args:
      logdir: the directory.
      fast: whether to use the data server instead of the Python loader.
      runs: number of runs to wait for.
      prefix: TensorBoard's --path_prefix.
      last: last step of each run to wait for.
    """
    program_ = program.TensorBoard([core_plugin.CorePluginLoader(), Loader()])
    program_.configure(("", "--logdir", str(logdir), "--reload_interval", "0", "--path_prefix", prefix))
    flags = program_.flags
    if fast:
        loading = server_ingester.SubprocessServerDataIngester(
            server_binary=server_ingester.get_server_binary(),
            logdir=flags.logdir,
            reload_interval=flags.reload_interval,
            channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
            samples_per_plugin=flags.samples_per_plugin,
        )
    else:
        loading = data_ingester.LocalDataIngester(flags)
    with warnings.catch_warnings():  # the ingester drops its subprocess, which ends with this process
        warnings.simplefilter("ignore", ResourceWarning)
        loading.start()
    made = Application(Client(TensorBoardWSGIApp(flags, [Loader()], loading.data_provider)), loading, prefix)
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        rows = made.get("runs").json["runs"]
        # Half loaded, a run whose records are old is "ended" as well.
        if len(rows) >= runs and all(row["state"] == "ended" and row["step"] >= last for row in rows):
            return made
        time.sleep(0.1)
    raise TimeoutError(f"TensorBoard did not load {runs} runs of {logdir} within {WAIT_SECONDS} s")


@pytest.fixture(scope="session", params=[True, False], ids=["fast", "python"])
def tensorboard(request, logdir) -> Application:
    """Return TensorBoard over the four runs, with each of its loaders."""
    return application(logdir, request.param, runs=4, last=STEPS[-1])
