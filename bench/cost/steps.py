"""The cost of a step: programs that do the same training, interleaved, as ratios to the plain one."""

import statistics
import tempfile
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from bench.cost.networks import Trained

import tapescope

PATIENCE_SECONDS = 40
"""No further round begins after this time if `LEAST_ROUNDS` are done."""
LEAST_ROUNDS = 8

Program = Callable[[], object]


def interleaved(programs: dict[str, Program], repeats: int, plain: str = "plain") -> dict[str, dict[str, float]]:
    """Time programs in turn, so that a machine that slows down does so for all of them.

    Args:
        programs: Each is called once a round.
        repeats: The number of rounds.
        plain: The program that ratios are relative to.

    Returns:
        By program, the median milliseconds of a call (`ms`), the median of the rounds' ratios of wall-clock time
        (`ratio`) with half the width of its 95 % interval (`error`, from the order statistics of a median), and the
        ratio of the median processor times (`cpu_ratio`).
    """
    wall = {name: [] for name in programs}
    cpu = {name: [] for name in programs}
    began = time.perf_counter()
    for done in range(repeats):
        if done >= LEAST_ROUNDS and time.perf_counter() - began > PATIENCE_SECONDS:
            repeats = done
            break
        for name, run in programs.items():
            wall_start = time.perf_counter()
            cpu_start = time.process_time()
            run()
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(time.process_time() - cpu_start)
    result = {}
    for name in programs:
        ratios = np.sort(np.divide(wall[name], wall[plain]))
        half = max(1, round(0.98 * np.sqrt(repeats)))
        low, high = (ratios[int(np.clip(repeats / 2 + side, 0, repeats - 1))] for side in (-half, half))
        result[name] = {
            "ms": 1000 * statistics.median(wall[name]),
            "ratio": float(np.median(ratios)),
            "error": float(high - low) / 2,
            "cpu_ratio": statistics.median(cpu[name]) / statistics.median(cpu[plain]),
        }
    return result


def warm_up(jit: bool = False) -> None:
    """Run what TensorFlow and Keras do only once in a process, so that no timed program includes it."""
    Trained("chain1").plain(jit)()


def first_call(run: Program) -> float:
    """Return the processor seconds until the first result: tracing, graph rewriting, compiling and one step."""
    start = time.process_time()
    run()
    return time.process_time() - start


def steps(name: str, dtype: str, jit: bool, repeats: int) -> dict[str, dict[str, float]]:
    """Compare the plain step, the probe's unmeasured step and its measured steps, every step measured."""
    warm_up(jit)
    trained = Trained(name, dtype)
    plain = trained.plain(jit)
    full, _ = trained.probed(jit)
    programs = {
        "plain": lambda: plain().numpy(),
        "unmeasured": lambda: full(False)[0].numpy(),
        "all": lambda: full(True)[0].numpy(),
    }
    if not jit:
        lean, _ = trained.probed(jit, histograms=False)
        programs["lean"] = lambda: lean(True)[0].numpy()
    first = {program: first_call(run) for program, run in programs.items()}
    result = interleaved(programs, repeats)
    result["floor"] = floor(trained.model, full(True)[1])
    result["first call"] = {
        "plain_s": first["plain"],
        "both_s": first["unmeasured"] + first["all"],
        "ratio": (first["unmeasured"] + first["all"]) / first["plain"],
    }
    if not jit and dtype == "float32":
        summaries = trained.summaries(tempfile.mkdtemp())
        summaries()
        pair = {"plain": programs["plain"], "tf.summary": lambda: summaries().numpy()}
        result["tf.summary"] = interleaved(pair, max(3, repeats // 6))["tf.summary"]
    return result


def loops(name: str, dtype: str, blocks: int, steps: int = 50) -> dict[str, dict]:
    """Compare blocks of steps: a plain loop, and the README's loop, which measures and records every tenth step."""
    trained = Trained(name, dtype)
    plain = trained.plain()
    step, probe = trained.probed()
    when = tapescope.every(10)
    number = 0
    with tapescope.Recorder(tempfile.mkdtemp(), probe, when) as recorder:

        def recorded():
            nonlocal number
            when.pause()
            for _ in range(steps):
                loss, reading = step(when(number))
                if reading is not None:
                    recorder.write(number, reading, {"loss": loss})
                number += 1
                loss.numpy()
            recorder.state()  # waits until everything is written, so that the plain block pays for none of it

        def unrecorded():
            for _ in range(steps):
                plain().numpy()

        recorded()
        unrecorded()
        result = interleaved({"plain": unrecorded, "default": recorded}, blocks)
        cost = when.cost
    result["default"]["own estimate"] = [1 + cost.overhead_pct / 100, cost.overhead_error_pct / 100]
    return result


def fit(name: str, epochs: int, steps: int = 30) -> dict[str, dict[str, float]]:
    """Compare epochs of `model.fit` without a callback, with Keras' TensorBoard callback, and with Monitor."""
    callbacks = {
        "plain": lambda logdir: [],
        "TensorBoard(histogram_freq=1)": lambda logdir: [keras.callbacks.TensorBoard(logdir, 1, write_graph=False)],
        "TensorBoard(update_freq=1)": lambda logdir: [
            keras.callbacks.TensorBoard(logdir, 1, write_graph=False, update_freq=1)  # type: ignore[arg-type]
        ],
        "Monitor": lambda logdir: [tapescope.Monitor(logdir)],
    }
    seconds = {}
    for callback, make in callbacks.items():
        trained = Trained(name)
        trained.model.compile(trained.optimizer, "sparse_categorical_crossentropy")
        data = tf.data.Dataset.from_tensors((trained.x, trained.labels)).repeat(steps)
        # One fit of many epochs: a callback sets itself up once, and the clock starts after the first epoch.
        seconds[callback] = _epoch_seconds(trained.model, data, make(tempfile.mkdtemp()), epochs)
    plain = statistics.median(seconds["plain"])
    return {
        callback: {"ms": 1000 * statistics.median(times) / steps, "ratio": statistics.median(times) / plain}
        for callback, times in seconds.items()
    }


def _epoch_seconds(model, data, callbacks, epochs) -> list[float]:
    marks = []
    mark = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: marks.append(time.perf_counter()))
    model.fit(data, epochs=epochs + 1, verbose=0, callbacks=[*callbacks, mark])
    return np.diff(marks).tolist()


def floor(model, read) -> dict[str, float]:
    """Return how long it takes to read everything measured once at this machine's memory bandwidth.

    Everything measured: the gradients, the weights before and after, the outputs, and the gradients with respect to
    outputs, pre-activations and inputs.
    """
    outputs = float(tf.reduce_sum(read.elements))
    weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    size = 4 * (3 * weights + 4 * outputs)
    bandwidth = _bandwidth()
    return {"bytes": size, "gib_a_second": bandwidth / 2**30, "ms": 1000 * size / bandwidth}


def _bandwidth(mib=256, repeats=5) -> float:
    """Return the bytes a second that a sum over a large tensor reads on all cores: the best of some tries."""
    x = tf.random.uniform([mib * 2**18])
    total = tf.function(lambda: tf.nn.l2_loss(x))
    total().numpy()
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        total().numpy()
        best = min(best, time.perf_counter() - start)
    return mib * 2**20 / best
