"""50 runs x 100 layers x 5,000 steps in a real TensorBoard: the waits of eight viewers while four runs are written.

A viewer does over HTTP what the page does (static/page.js): it polls `runs` once a second, requests new parts of its
figures when its run has grown, and opens another run or view at random.
"""

import http.client
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from typing import NamedTuple

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

from bench.faults.row import Row, print_rows
from scripts import page
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec

VIEWERS = 8
LIVE = 4
"""Number of runs that are still written."""
POLL_SECONDS = 1.0
RECORD_SECONDS = 0.5
"""Time between two records of a live run."""
STAY_SECONDS = 8.0
"""About how long a viewer looks at one view."""
COLUMNS = ("gradient_norm", "delta_norm", "update_ratio", "saturated", "dead_share")
ADDRESS = "/data/plugin/tapescope/"


class Load(NamedTuple):
    """The size of the test."""

    runs: int = 50
    layers: int = 100
    steps: int = 5000
    seconds: float = 120.0


class Waited(NamedTuple):
    """One request."""

    route: str
    seconds: float
    status: int
    bytes: int


class Viewer:
    """A user with the tab open; `browse` requests what the page would until `done` is set."""

    def __init__(self, port: int, runs: list[str], layers: int, seed: int):
        self.rng = random.Random(seed)
        self.runs = runs
        self.layers = layers
        self.waits: list[Waited] = []
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.known = ""
        self.versions: dict[str, str] = {}
        self.leave = 0.0
        self.parameters: dict[str, str] = {}
        self.shown: tuple[str, int] | None = None

    def get(self, route: str, **parameters: str) -> dict:
        """Request a route, keep the time until its last byte, and return the answer."""
        address = f"{ADDRESS}{route}?{urllib.parse.urlencode(parameters)}"
        began = time.monotonic()
        self.connection.request("GET", address, headers={"Accept-Encoding": "identity"})
        answer = self.connection.getresponse()
        content = answer.read()
        seconds = time.monotonic() - began
        self.waits.append(Waited(route=route, seconds=seconds, status=answer.status, bytes=len(content)))
        return json.loads(content) if answer.status == 200 else {}

    def browse(self, done: threading.Event) -> None:
        """Poll, follow the run, and open something else at random."""
        done.wait(self.rng.uniform(0, POLL_SECONDS))
        while not done.is_set():
            answer = self.get("runs", known=self.known)
            if "runs" in answer:
                self.known = answer["version"]
                self.steps = {row["name"]: row["step"] for row in answer["runs"]}
                self.versions = {row["name"]: row["version"] for row in answer["runs"]}
            if time.monotonic() > self.leave:
                self.leave = time.monotonic() + self.rng.uniform(0.5, 1.5) * STAY_SECONDS
                self.open()
            self.follow()
            done.wait(POLL_SECONDS)

    def open(self) -> None:
        """Open another view, as often of a live run (the first ones) as of any run."""
        view = self.rng.choice(("flow", "flow", "layer", "budget"))
        run = self.rng.choice(self.runs[: LIVE if self.rng.random() < 0.5 else None])
        self.parameters = {"view": view, "run": run, "dark": "0"}
        if view == "flow":
            self.parameters["column"] = self.rng.choice(COLUMNS)
        if view == "layer":
            self.parameters["layer"] = f"hidden_{self.rng.randint(1, self.layers - 1)}"
        self.shown = None
        self.get("run", run=run)

    def follow(self) -> None:
        """Request the figures, or their new part."""
        run = self.parameters["run"]
        now = (self.versions[run], self.steps[run])
        if now != self.shown:
            since = {"since": str(self.shown[1])} if self.shown else {}
            answer = self.get("view", **self.parameters, **since)
            self.shown = (now[0], min(now[1], answer.get("whole_until", now[1])))


def write(logdir: pathlib.Path, load: Load) -> list[str]:
    """Write a live run and an ended one, link the others to their files, and return all names, live ones first."""
    spec = Spec(depth=load.layers, units=32, decay=0.95, bias=False, histograms=False)
    names = [f"run_{i:02}" for i in range(load.runs)]
    for state, mine in (("training", names[:LIVE]), ("ended", names[LIVE:])):
        synthetic.write(logdir / mine[0], spec, range(load.steps), state=state)
        (path,) = (logdir / mine[0]).iterdir()
        for name in mine[1:]:
            (logdir / name).mkdir()
            os.link(path, logdir / name / path.name)
    return names


def write_live_runs(logdir: pathlib.Path, load: Load, names: list[str], done: threading.Event) -> None:
    """Continue the live runs."""
    spec = Spec(depth=load.layers, units=32, decay=0.95, bias=False, histograms=False)
    writers = [synthetic.Writer(logdir / name, spec, 10 * load.steps) for name in names[:LIVE]]
    step = load.steps
    while not done.wait(RECORD_SECONDS / LIVE):
        writers[step % LIVE].write(load.steps + (step - load.steps) // LIVE)
        step += 1
    for writer in writers:
        writer.file.close()


def memory(pid: int) -> dict[str, float]:
    """Return the peak memory of a process and its children by name, in MiB."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if pid in (int(fields["Pid"]), int(fields["PPid"])):
            found[fields["Name"].strip()] = int(fields["VmHWM"].split()[0]) / 1024
    return found


def wait_until_loaded(url: str, load: Load) -> float:
    """Return the seconds until TensorBoard has the last step of every run."""
    began = time.monotonic()
    while True:
        rows = page.fetch_json(url, "runs")["runs"]
        if len(rows) == load.runs and all(row["step"] >= load.steps - 1 for row in rows):
            return time.monotonic() - began
        time.sleep(1)


def quantile(waits: list[float], share: float) -> float:
    """Return the wait that this share of all waits does not exceed."""
    return sorted(waits)[min(int(share * len(waits)), len(waits) - 1)]


def measure(logdir: pathlib.Path, load: Load) -> Row:
    """Run eight viewers and four writers."""
    names = write(logdir, load)
    done = threading.Event()
    size = next((logdir / names[0]).iterdir()).stat().st_size / 2**20
    with page.tensorboard(logdir) as (url, process):
        loading_seconds = wait_until_loaded(url, load)
        viewers = [Viewer(urllib.parse.urlsplit(url).port or 0, names, load.layers, seed) for seed in range(VIEWERS)]
        threads = [threading.Thread(target=viewer.browse, args=[done]) for viewer in viewers]
        threads.append(threading.Thread(target=write_live_runs, args=[logdir, load, names, done]))
        for thread in threads:
            thread.start()
        done.wait(load.seconds)
        done.set()
        for thread in threads:
            thread.join()
        used = memory(process.pid)
    waits = [wait for viewer in viewers for wait in viewer.waits]
    for route in ("runs", "run", "view"):
        mine = [wait.seconds for wait in waits if wait.route == route]
        sizes = [wait.bytes for wait in waits if wait.route == route]
        figures = f"{statistics.median(mine):.3f} {quantile(mine, 0.99):.3f} {max(mine):.3f} s, {max(sizes) >> 10} KiB"
        print(f"{route}: {len(mine)} requests, median, 99th percentile, most: {figures}", file=sys.stderr)
    every = [wait.seconds for wait in waits]
    failed = sum(wait.status != 200 for wait in waits)
    peaks = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in used.items())
    result = (
        f"{len(every)} requests, {failed} failed: median {statistics.median(every):.2f} s, 99th percentile "
        f"{quantile(every, 0.99):.2f} s, longest {max(every):.2f} s; peak memory: {peaks}; "
        f"loaded in {loading_seconds:.0f} s"
    )
    test = (
        f"{load.runs} runs x {load.layers} layers x {load.steps:,} steps ({size:.0f} MiB each, no histograms), "
        f"{VIEWERS} viewers for {load.seconds:.0f} s, {LIVE} runs writing {1 / RECORD_SECONDS:.0f} records a second: "
        "99th percentile below 1 s"
    )
    return Row(test, result, quantile(every, 0.99) < 1 and not failed)


def main() -> None:
    """Print the row of the table."""
    load = Load(runs=8, layers=20, steps=500, seconds=15.0) if "--quick" in sys.argv else Load()
    with tempfile.TemporaryDirectory() as scratch:
        print_rows([measure(pathlib.Path(scratch), load)])


if __name__ == "__main__":
    main()
