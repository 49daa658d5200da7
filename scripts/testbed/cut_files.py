"""Event files cut short or changed, and the tab over them with either of TensorBoard's loaders."""

import pathlib
import random
import time
import warnings

import tensorflow as tf
from scripts.testbed import synthetic
from scripts.testbed.hostile import Tab
from scripts.testbed.synthetic import Spec
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.data import server_ingester
from tensorboard.util import grpc_util

from tapescope.storage import event_file, tfrecord
from tensorboard_plugin_tapescope.plugin import VIEWS

SPEC = Spec(depth=2, units=2, bias=False, histograms=False)
STEPS = (0, 3, 6)


def written(directory: pathlib.Path) -> tuple[bytes, dict[int, int]]:
    """A short run's file, and the last step that each length of it holds (-1: none), by where its records end."""
    synthetic.write(directory, SPEC, STEPS)
    (path,) = directory.iterdir()
    ends, at, step = {0: -1}, 0, -1
    for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = event_file.event_pb2.Event.FromString(raw)
        at += len(raw) + tfrecord.FRAMING_BYTES
        step = max(step, event.step) if event.summary.value else step
        ends[at] = step
    return path.read_bytes(), ends


def last_step(ends: dict[int, int], length: int) -> int:
    """The last step that so many bytes hold."""
    return ends[max(end for end in ends if end <= length)]


def changed(content: bytes, rng: random.Random) -> bytes:
    """The same with one byte changed."""
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ rng.randrange(1, 256)]) + content[at + 1 :]


def python_loader(logdir: pathlib.Path) -> Tab:
    """The tab over TensorBoard's Python loader."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={"tapescope": 1000})
    multiplexer.AddRunsFromDirectory(str(logdir)).Reload()
    return Tab({}, lambda _: data_provider.MultiplexerDataProvider(multiplexer, str(logdir)))


def data_server(logdir: pathlib.Path) -> Tab:
    """The tab over TensorBoard's data server, which ends with this process."""
    ingester = server_ingester.SubprocessServerDataIngester(
        server_binary=server_ingester.get_server_binary(),
        logdir=str(logdir),
        reload_interval=1,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
    )
    with warnings.catch_warnings():  # it forgets its own subprocess, which ends with our process
        warnings.simplefilter("ignore", ResourceWarning)
        ingester.start()
    return Tab({}, lambda _: ingester.data_provider)


def shown(tab: Tab) -> dict[str, int]:
    """The last step of each run that the tab shows."""
    return {row["name"]: row["step"] for row in tab.checked("runs").json["runs"]}


def waited(tab: Tab, expected: dict[str, int], seconds: float = 30) -> dict[str, int]:
    """The last steps once those expected are there, or time is up."""
    deadline = time.monotonic() + seconds
    while not expected.items() <= (found := shown(tab)).items() and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


def recorded(tab: Tab, run: str) -> list[int]:
    """Asks every route for a run; the steps of its gradient norms."""
    tab.checked("run", run=run)
    for view in VIEWS:
        tab.checked("view", view=view, run=run)
    answer = tab.checked("csv", view="flow", panel="flow", run=run)
    lines = answer.get_data(as_text=True).splitlines()[1:] if answer.status_code == 200 else []
    return sorted({int(line.split(",")[0]) for line in lines})


def right(steps: list[int], last: int) -> bool:
    """Whether these are the steps of the run up to the last; the status says step 0 before there is a record."""
    return steps == [n for n in STEPS if n <= last] or (last == 0 and not steps)
