"""Attacks on the tab and on a run's directory, each of which once cost another run, a record, or the program."""

import json
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from bench.faults.row import Row
from scripts.testbed import synthetic
from scripts.testbed.hostile import Datum, Provider, Series, Tab, good
from scripts.testbed.records import eager_steps, loaded_steps
from scripts.testbed.synthetic import Spec

import tapescope
from tapescope import cli
from tapescope.storage import event_file
from tapescope.storage.resume import cut_records
from tensorboard_plugin_tapescope.data.table_cache import KEPT_EXPERIMENTS, SMALL_TABLES_BYTES
from tensorboard_plugin_tapescope.plugin import VIEWS

SPEC = Spec(depth=3, units=4, histograms=False)
ROUTES = (("runs", {}), ("run", {"run": "good"}), *(("view", {"run": "good", "view": view}) for view in VIEWS))


def _described(content: bytes) -> dict[str, Series]:
    run = good()
    return {**run, "tapescope/layers": run["tapescope/layers"]._replace(content=content)}


def _with_schema(schema: object) -> dict[str, Series]:
    return _described(json.dumps({**json.loads(good()["tapescope/layers"].content), "schema": schema}).encode())


def _with_status(text: str) -> dict[str, Series]:
    run = good()
    status = run["tapescope/status"]._replace(data=[Datum(0, 1e9, np.array(text.encode(), object))])
    return {**run, "tapescope/status": status}


def _row_of_codes(test: str, codes: list[int], allowed: set[int]) -> Row:
    return Row(test, f"answers {', '.join(map(str, sorted(set(codes))))}", set(codes) <= allowed)


def on_the_tab() -> list[Row]:
    """Attack the tab by what a run holds and by what a URL names."""
    damaged = {
        "a schema of Infinity": _with_schema(float("inf")),
        "a schema of NaN": _with_schema(float("nan")),
        "a description nested a million deep": _described(b"[" * 10**6),
        "a status with 10^400 replicas": _with_status('{"state": "ended", "replicas": 1' + "0" * 400 + "}"),
        "a status nested 100,000 deep": _with_status("[" * 10**5),
        "a lone surrogate as a layer's name": good(SPEC._replace(layers=("\ud800", "b", "c"))),
    }
    rows = []
    for name, run in damaged.items():
        tab = Tab({"good": good(), "bad": run})
        codes = [tab.get(route, **asked).status_code for route, asked in ROUTES]
        codes += [tab.get(route, run=["good", "bad"], view="replicas").status_code for route in ("view", "csv")]
        codes.append(tab.get("csv", run="bad").status_code)
        rows.append(_row_of_codes(f"{name}: routes of it and of a good run", codes, {200, 404}))
    for error in (EOFError, RecursionError, MemoryError):

        class Failing(Provider):
            raised: type[Exception] = error

            def read_tensors(self, ctx=None, *, downsample, run_tag_filter, **asked):
                if "bad" in run_tag_filter.runs:
                    raise self.raised
                return super().read_tensors(ctx, downsample=downsample, run_tag_filter=run_tag_filter, **asked)

        tab = Tab({"good": good(), "bad": good()}, Failing)
        codes = [tab.get(route, **asked).status_code for route, asked in ROUTES]
        rows.append(_row_of_codes(f"{error.__name__} while a run is read: routes of a good run", codes, {200}))
    client = Tab({"good": good()}).client
    codes = [
        client.open(f, method=m).status_code
        for m in ("POST", "PUT", "DELETE")
        for f in ("/static/index.js", "/plotly.js")
    ]
    rows.append(_row_of_codes("POST, PUT and DELETE on static files", codes, {405}))
    now = time.time()
    late = {
        tag: series._replace(data=[Datum(d.step, now - 300 + d.step, d.numpy) for d in series.data or ()])
        for tag, series in good().items()
    }
    state = json.loads(Tab({"run": late}).get("runs").data)["runs"][0]["state"]
    rows.append(Row("a clock that is 5 minutes behind", f"the run is {state}", state == "training"))
    return [*rows, *_on_memory()]


def _on_memory() -> list[Row]:
    from tensorboard.plugins.base_plugin import TBContext

    from tensorboard_plugin_tapescope.data.table_cache import TableCache
    from tensorboard_plugin_tapescope.views import overview

    text = json.dumps({"rule": "r", "severity": "info", "step": 1, "message": "m" * 4_000_000})
    run = good()
    findings = run["tapescope/findings"]._replace(data=[Datum(0, 1e9, np.array([text.encode()], object))])
    provider = Provider({f"run {i}": {**run, "tapescope/findings": findings} for i in range(30)})
    cache = TableCache(TBContext(data_provider=provider).data_provider)
    for i in range(100):
        cache.snapshot(None, f"experiment {i}")
    overview.summarize_runs(cache.snapshot(None, "last"))
    kept = len(cache._listings)
    mebibytes = cache.small_tables.bytes / 2**20
    return [
        Row("100 experiments that URLs name", f"{kept} listings kept", kept == KEPT_EXPERIMENTS),
        Row(
            "30 runs with findings of 4 MB", f"{mebibytes:.1f} MiB kept", cache.small_tables.bytes <= SMALL_TABLES_BYTES
        ),
    ]


def _other_writer(directory: pathlib.Path) -> tuple[str, bool]:
    """Continue a run while the program's own tf.summary writer is open."""
    probe, step = eager_steps()
    with tapescope.Recorder(directory, probe) as recorder:
        recorder.write(0, step(0))
    with tf.summary.create_file_writer(str(directory)).as_default():
        tf.summary.flush()
        with tapescope.Recorder(directory, probe, resume=tapescope.Resume(1, {})) as recorder:
            recorder.write(1, step(1))
        tf.summary.scalar("mine", 1.0, 7)
        tf.summary.flush()
    kept = loaded_steps(directory, "mine") == [7]
    return f"its scalar is {'read' if kept else 'lost'}", kept


def _clock(directory: pathlib.Path) -> tuple[str, bool]:
    """Continue a run on a machine whose clock is an hour behind."""
    probe, step = eager_steps()

    class Behind:
        def __getattr__(self, name):
            return getattr(time, name)

        def time(self):
            return time.time() - 3600

    for n in range(6):
        event_file.time = Behind() if n >= 3 else time
        resume = tapescope.Resume(n, {}) if n else None
        with tapescope.Recorder(directory, probe, resume=resume) as recorder:
            recorder.write(n, step(n))
    event_file.time = time
    steps = tapescope.Run(directory).steps.tolist()
    return f"{len(steps)} of 6 records read", steps == loaded_steps(directory, "tapescope/variables") == list(range(6))


def _scalars(directory: pathlib.Path) -> tuple[str, bool]:
    """Record values that are not plain numbers."""
    probe, step = eager_steps()
    odd = {"loss": tf.constant(0.5, tf.bfloat16), "text": "x", "vector": tf.ones(3), "complex": 1j, "none": None}
    with tapescope.Recorder(directory, probe) as recorder:
        for n in range(5):
            recorder.write(n, step(n), odd)
    losses = tapescope.Run(directory)["loss"].tolist()
    return f"{recorder.lost} records lost, loss {losses[0]}", not recorder.lost and losses == [0.5] * 5


def _odd_name(make: Callable[[str], object]) -> Callable[[pathlib.Path], tuple[str, bool]]:
    def attack(directory: pathlib.Path) -> tuple[str, bool]:
        synthetic.write(directory, SPEC, range(10))
        make(str(directory / "events.out.tfevents.9.odd"))
        cut_records(directory, 5)
        code = cli.main(["check", str(directory)])
        steps = tapescope.Run(directory).steps.tolist()
        return f"{len(steps)} records read, `tapescope check` exits with {code}", (code, steps) == (0, [0, 1, 2, 3, 4])

    return attack


def _not_events(path: str) -> None:
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(b"\xff" * 20)


FILES = {
    "a run continued while the program's tf.summary writer is open": _other_writer,
    "a clock that goes back an hour between programs": _clock,
    "a bfloat16 loss, text, vectors and complex numbers as scalars": _scalars,
    "a directory named like an event file": _odd_name(os.mkdir),
    "a FIFO named like an event file": _odd_name(os.mkfifo),
    "a broken link named like an event file": _odd_name(lambda path: os.symlink("nowhere", path)),
    "a file of records that are not events": _odd_name(_not_events),
}


def on_the_files(root: pathlib.Path) -> list[Row]:
    """Attack the directory of a run."""
    rows = []
    for number, (test, attack) in enumerate(FILES.items()):
        try:
            result, passed = attack(root / f"attack {number}")
        except Exception as error:  # an attack that succeeds
            result, passed = f"{type(error).__name__}: {error}", False
        rows.append(Row(test, result, passed))
    return rows
