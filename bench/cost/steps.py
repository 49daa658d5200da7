"""What a step costs: programs that do the same training, interleaved, as ratios to the plain one."""

import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from bench.cost.networks import Trained

import tapescope

PATIENCE, ROUNDS = 40, 8
"""Seconds after which no further round begins, where there were at least so many."""


def interleaved(programs, repeats, plain="plain"):
    """By program: median milliseconds a call, and its ratio to the plain one by wall clock and by processor time.

    All are run in turn, so a machine that becomes slower does so for all of them. The wall clock's ratio is the median
    of the rounds' ratios, with the half width of its 95 % interval (from the order statistics of a median).
    """
    wall, cpu = ({name: [] for name in programs} for _ in range(2))
    began = time.perf_counter()
    for done in range(repeats):
        if done >= ROUNDS and time.perf_counter() - began > PATIENCE:
            repeats = done
            break
        for name, run in programs.items():
            start, used = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
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


def warm_up(jit=False):
    """What TensorFlow and Keras do once in a process, and is no step's own."""
    Trained("chain1").plain(jit)()


def first_call(run):
    """Seconds of processor time until the first result: tracing, rewriting, compiling, one step."""
    start = time.process_time()
    run()
    return time.process_time() - start


def steps(name, dtype, jit, repeats):
    """The plain step, the one of the probe where it does not measure, and those that do, every step."""
    warm_up(jit)
    trained = Trained(name, dtype)
    plain = trained.plain(jit)
    full, _ = trained.probed(jit)
    table = {
        "plain": lambda: plain().numpy(),
        "unmeasured": lambda: full(False)[0].numpy(),
        "all": lambda: full(True)[0].numpy(),
    }
    if not jit:
        lean, _ = trained.probed(jit, histograms=False)
        table["lean"] = lambda: lean(True)[0].numpy()
    first = {program: first_call(run) for program, run in table.items()}
    result = interleaved(table, repeats)
    result["floor"] = floor(trained.model, full(True)[1])
    result["first call"] = {
        "plain_s": first["plain"],
        "both_s": first["unmeasured"] + first["all"],
        "ratio": (first["unmeasured"] + first["all"]) / first["plain"],
    }
    if not jit and dtype == "float32":
        summaries = trained.summaries(tempfile.mkdtemp())
        summaries()
        pair = {"plain": table["plain"], "tf.summary": lambda: summaries().numpy()}
        result["tf.summary"] = interleaved(pair, max(3, repeats // 6))["tf.summary"]
    return result


def loops(name, dtype, blocks, steps=50):
    """The loop of the README, every tenth step measured, all that it is by default: blocks of steps, interleaved."""
    trained = Trained(name, dtype)
    plain, (step, probe) = trained.plain(), trained.probed()
    when, number = tapescope.every(10), 0
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
            recorder.state()  # waits until all of it is written: none of the cost is left to the plain block

        def user():
            for _ in range(steps):
                plain().numpy()

        recorded(), user()
        result = interleaved({"plain": user, "default": recorded}, blocks)
        cost = when.cost
    result["default"]["own estimate"] = [1 + cost.overhead_pct / 100, cost.overhead_error_pct / 100]
    return result


def fit(name, epochs, steps=30):
    """`model.fit`, an epoch at a time, with Keras' callback and with ours."""
    runs = {}
    for callback in ("plain", "TensorBoard(histogram_freq=1)", "TensorBoard(update_freq=1)", "Monitor"):
        trained = Trained(name)
        trained.model.compile(trained.optimizer, "sparse_categorical_crossentropy")
        data = tf.data.Dataset.from_tensors((trained.x, trained.labels)).repeat(steps)
        logdir = tempfile.mkdtemp()
        own = {
            "plain": lambda: [],
            "TensorBoard(histogram_freq=1)": lambda d=logdir: [keras.callbacks.TensorBoard(d, 1, write_graph=False)],
            "TensorBoard(update_freq=1)": lambda d=logdir: [
                keras.callbacks.TensorBoard(d, 1, write_graph=False, update_freq=1)  # type: ignore[arg-type]
            ],
            "Monitor": lambda d=logdir: [tapescope.Monitor(d)],
        }[callback]
        # One fit of many epochs: a callback sets itself up once, and the clock starts after the first epoch.
        runs[callback] = _epochs(trained.model, data, own(), epochs)
    plain = statistics.median(runs["plain"])
    return {
        name: {"ms": 1000 * statistics.median(t) / steps, "ratio": statistics.median(t) / plain}
        for name, t in runs.items()
    }


def _epochs(model, data, callbacks, epochs):
    marks = []
    mark = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: marks.append(time.perf_counter()))
    model.fit(data, epochs=epochs + 1, verbose=0, callbacks=[*callbacks, mark])
    return np.diff(marks).tolist()


def floor(model, read):
    """Milliseconds that reading once all that is measured takes, over the memory bandwidth of this machine.

    Read once: the gradients, the weights before and after, the outputs, and the gradients with respect to outputs,
    pre-activations and inputs.
    """
    outputs = float(tf.reduce_sum(read.elements))
    weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    size, bandwidth = 4 * (3 * weights + 4 * outputs), _bandwidth()
    return {"bytes": size, "gib_a_second": bandwidth / 2**30, "ms": 1000 * size / bandwidth}


def _bandwidth(mib=256, repeats=5):
    """Bytes a second that a sum over a large tensor reads, on all cores, at its best."""
    x = tf.random.uniform([mib * 2**18])
    total = tf.function(lambda: tf.nn.l2_loss(x))
    total().numpy()
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        total().numpy()
        best = min(best, time.perf_counter() - start)
    return mib * 2**20 / best
