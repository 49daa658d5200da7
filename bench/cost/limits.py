"""What must stay bounded: memory, tracing against depth, the size of a record, and all that could grow."""

import gc
import os
import resource
import tempfile
import threading
import time

import numpy as np
from bench.cost.networks import Trained
from bench.cost.steps import first_call, interleaved, warm_up

import tapescope


def memory(name, measured, steps=8):
    """The process' largest resident memory after some steps, MiB, and how much more than before the first."""
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
    """Tracing and a measured step of a chain of so many layers."""
    warm_up()
    trained = Trained(f"chain{layers}")
    plain, (step, _) = trained.plain(), trained.probed()
    table = {
        "plain": lambda: plain().numpy(),
        "unmeasured": lambda: step(False)[0].numpy(),
        "all": lambda: step(True)[0].numpy(),
    }
    first = {program: first_call(run) for program, run in table.items()}
    del table["unmeasured"]
    ratio = (first["unmeasured"] + first["all"]) / first["plain"]
    return interleaved(table, repeats) | {"first call": {"plain_s": first["plain"], "ratio": ratio}}


def record(name="chain100"):
    """Bytes that a record takes in the event file, by what it is for."""
    trained = Trained(name)
    step, probe = trained.probed()
    logdir = tempfile.mkdtemp()
    sizes = []
    with tapescope.Recorder(logdir, probe) as recorder:
        for n in range(4):
            recorder.write(n, step(True)[1])
            recorder.state()
            sizes.append(sum(os.path.getsize(os.path.join(logdir, file)) for file in os.listdir(logdir)))
    families, numbers, own, rest = 0, 0, 0, 0
    from tensorboard.backend.event_processing import event_file_loader

    path = os.path.join(logdir, os.listdir(logdir)[0])
    for event in event_file_loader.EventFileLoader(path).Load():
        if event.step == 3:
            for value in event.summary.value:
                if not value.tag.startswith("tapescope/"):
                    rest += value.ByteSize()
                elif value.tensor.dtype != 7:  # text: status and findings come once, or when they change
                    families, own = families + 1, own + value.ByteSize()
                    numbers += int(np.prod([d.size for d in value.tensor.tensor_shape.dim]))
    return {
        "families": families,
        "numbers": numbers,
        "own_bytes": own,
        "bytes_a_number": own / numbers,
        "builtin_tabs_bytes": rest,
        "bytes_a_record": sizes[3] - sizes[2],
    }


def slow_disk(steps, bytes_a_second=1_000_000, name="chain10"):
    """Every step measured and written, with a disk of so many bytes a second and with one that takes all at once.

    The backlog is made 1 MiB, so that it is full within these steps.
    """
    trained = Trained(name)
    step, probe = trained.probed()
    step(True)
    seconds, left_out = {}, 0
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
    """Makes every write of this recorder's file take its time, and keeps little waiting."""
    from tapescope.storage import event_file

    true = event_file.EventFile._append
    recorder._writer.backlog._most_bytes = 1 << 20

    def append(file, event):
        if file.path.startswith(recorder.logdir):
            time.sleep(event.ByteSize() / bytes_a_second)
        true(file, event)

    event_file.EventFile._append = append


def growth(steps):
    """Memory, threads, open files and step time over many steps of the smallest model, every tenth measured."""
    trained = Trained("chain1")
    step, probe = trained.probed()
    when, marks = tapescope.every(10), []
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
