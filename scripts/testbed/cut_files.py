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


def write_run(directory: pathlib.Path) -> tuple[bytes, dict[int, int]]:
    """Return a short run's file, and the last complete step (-1: none) by the length at which a record ends."""
    synthetic.write(directory, SPEC, STEPS)
    (path,) = directory.iterdir()
    ends = {0: -1}
    at = 0
    step = -1
    for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = event_file.event_pb2.Event.FromString(raw)
        at += len(raw) + tfrecord.FRAMING_BYTES
        step = max(step, event.step) if event.summary.value else step
        ends[at] = step
    return path.read_bytes(), ends


def last_complete_step(ends: dict[int, int], length: int) -> int:
    """Return the last step that is complete in that many bytes."""
    return ends[max(end for end in ends if end <= length)]


def change_byte(content: bytes, rng: random.Random) -> bytes:
    """Return the file with one byte changed."""
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ rng.randrange(1, 256)]) + content[at + 1 :]


def tab_with_python_loader(logdir: pathlib.Path) -> Tab:
    """Return the tab over TensorBoard's Python loader."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={"tapescope": 1000})
    multiplexer.AddRunsFromDirectory(str(logdir)).Reload()
    return Tab({}, lambda _: data_provider.MultiplexerDataProvider(multiplexer, str(logdir)))


def tab_with_data_server(logdir: pathlib.Path) -> Tab:
    """Return the tab over TensorBoard's data server, which ends with this process."""
    ingester = server_ingester.SubprocessServerDataIngester(
        server_binary=server_ingester.get_server_binary(),
        logdir=str(logdir),
        reload_interval=1,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
    )
    with warnings.catch_warnings():  # the ingester drops its subprocess, which ends with this process
        warnings.simplefilter("ignore", ResourceWarning)
        ingester.start()
    return Tab({}, lambda _: ingester.data_provider)


def shown_steps(tab: Tab) -> dict[str, int]:
    """Return the last step of each run that the tab shows."""
    return {row["name"]: row["step"] for row in tab.checked("runs").json["runs"]}


def wait_for_steps(tab: Tab, expected: dict[str, int], seconds: float = 30) -> dict[str, int]:
    """Return the last steps once they include those expected, or when time is up."""
    deadline = time.monotonic() + seconds
    while not expected.items() <= (found := shown_steps(tab)).items() and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


def recorded_steps(tab: Tab, run: str) -> list[int]:
    """Ask every route for a run; return the steps of its gradient norms."""
    tab.checked("run", run=run)
    for view in VIEWS:
        tab.checked("view", view=view, run=run)
    answer = tab.checked("csv", view="flow", panel="flow", run=run)
    lines = answer.get_data(as_text=True).splitlines()[1:] if answer.status_code == 200 else []
    return sorted({int(line.split(",")[0]) for line in lines})


def is_complete_until(steps: list[int], last: int) -> bool:
    """Tell whether these are all steps up to the last; the status has step 0 before there is a record."""
    return steps == [n for n in STEPS if n <= last] or (last == 0 and not steps)
