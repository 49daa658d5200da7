"""Bounds: memory, tracing time against depth, the size of a record, a slow disk, and growth over many steps."""

import gc
import glob
import os
import resource
import tempfile
import threading
import time

import numpy as np
from bench.cost.networks import Trained
from bench.cost.steps import first_call, interleaved, warm_up
from tensorboard.backend.event_processing import event_file_loader

import tapescope
from tapescope.storage import event_file

TEXT = 7
"""`DT_STRING`: status and findings, which are written when they change."""


def memory(name, measured, steps=8):
    """Return the largest resident memory of the process, in MiB: after some steps, and before the first one."""
    trained = Trained(name)
    before = _peak_mib()
    if measured:
        step, _ = trained.probed()
        for _ in range(steps):
            step(True)[0].numpy()
    else:
        step = trained.plain()
        for _ in range(steps):
            step().numpy()
    return {"peak_mib": _peak_mib(), "before_mib": before}


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def depth(layers, repeats):
    """Time the first call and a measured step of a chain of that many layers."""
    warm_up()
    trained = Trained(f"chain{layers}")
    plain = trained.plain()
    step, _ = trained.probed()
    programs = {
        "plain": lambda: plain().numpy(),
        "unmeasured": lambda: step(False)[0].numpy(),
        "all": lambda: step(True)[0].numpy(),
    }
    first = {program: first_call(run) for program, run in programs.items()}
    del programs["unmeasured"]
    ratio = (first["unmeasured"] + first["all"]) / first["plain"]
    return interleaved(programs, repeats) | {"first call": {"plain_s": first["plain"], "ratio": ratio}}


def record(name="chain100"):
    """Return the bytes that a record takes in the event file: our families, and the tags of TensorBoard's own tabs."""
    trained = Trained(name)
    step, probe = trained.probed()
    logdir = tempfile.mkdtemp()
    sizes = []
    path = ""
    with tapescope.Recorder(logdir, probe) as recorder:
        for n in range(4):
            recorder.write(n, step(True)[1])
            recorder.state()
            (path,) = glob.glob(os.path.join(logdir, "*.tfevents.*"))
            sizes.append(os.path.getsize(path))
    families = 0
    numbers = 0
    own_bytes = 0
    builtin_bytes = 0
    for event in event_file_loader.EventFileLoader(path).Load():
        if event.step == 3:
            for value in event.summary.value:
                if not value.tag.startswith("tapescope/"):
                    builtin_bytes += value.ByteSize()
                elif value.tensor.dtype != TEXT:
                    families += 1
                    own_bytes += value.ByteSize()
                    numbers += int(np.prod([d.size for d in value.tensor.tensor_shape.dim]))
    return {
        "families": families,
        "numbers": numbers,
        "own_bytes": own_bytes,
        "bytes_a_number": own_bytes / numbers,
        "builtin_tabs_bytes": builtin_bytes,
        "bytes_a_record": sizes[3] - sizes[2],
    }


def slow_disk(steps, bytes_a_second=1_000_000, name="chain10"):
    """Compare a slow and a fast disk while every step is measured and recorded.

    The queue is limited to 1 MiB, so that it fills up within these steps.
    """
    trained = Trained(name)
    step, probe = trained.probed()
    step(True)
    seconds = {}
    left_out = 0
    for kind in ("fast", "slow", "fast again", "slow again"):
        with tapescope.Recorder(tempfile.mkdtemp(), probe) as recorder:
            recorder.state()
            if kind.startswith("slow"):
                _throttle(recorder, bytes_a_second)
            start = time.perf_counter()
            for n in range(steps):
                loss, reading = step(True)
                recorder.write(n, reading, {"loss": loss})
            loss.numpy()
            seconds[kind] = time.perf_counter() - start
            waiting = time.perf_counter()
            left = recorder.left_out
        closing = time.perf_counter() - waiting
        if kind.startswith("slow"):
            left_out += left
    fast, slow = (seconds[k] + seconds[f"{k} again"] for k in ("fast", "slow"))
    return {"steps": 2 * steps, "ratio": slow / fast, "left_out": left_out, "closing_s": closing}


def _throttle(recorder, bytes_a_second):
    """Slow down the writes of this recorder's file, and limit its queue."""
    original = event_file.EventFile._append
    recorder._writer.queue.max_bytes = 1 << 20

    def append(file, event):
        if file.path.startswith(recorder.logdir):
            time.sleep(event.ByteSize() / bytes_a_second)
        original(file, event)

    event_file.EventFile._append = append


def growth(steps):
    """Return the growth of memory, threads, open files and step time over many steps, every tenth measured."""
    trained = Trained("chain1")
    step, probe = trained.probed()
    when = tapescope.every(10)
    marks = []
    with tapescope.Recorder(tempfile.mkdtemp(), probe, when) as recorder:
        start = time.perf_counter()
        for n in range(steps + 1):
            loss, reading = step(when(n))
            if reading is not None:
                recorder.write(n, reading, {"loss": loss})
            if n % (steps // 20) == 0:
                recorder.state()
                gc.collect()
                with open("/proc/self/statm", encoding="ascii") as file:
                    resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
                files = len(os.listdir("/proc/self/fd"))
                marks.append((n, resident, threading.active_count(), files, time.perf_counter() - start))
    tail = np.array(marks[len(marks) // 2 :])
    slope = np.polyfit(tail[:, 0], tail[:, 1], 1)[0] * 1e5
    step_ms = 1000 * np.diff(tail[:, 4]) / np.diff(tail[:, 0])
    return {
        "steps": steps,
        "mib_per_100000_steps": float(slope),
        "threads": [int(marks[1][2]), int(marks[-1][2])],
        "files": [int(marks[1][3]), int(marks[-1][3])],
        "step_ms": [float(step_ms[0]), float(step_ms[-1])],
    }
