"""An oscilloscope for `tf.GradientTape`: which layer does not learn, why, and since when.

One line of a training step differs, and one value more is returned:

    import tapescope

    probe = tapescope.Probe(model)
    when = tapescope.every(10)

    @tf.function
    def step(x, y, measure):
        with probe.tape(measure) as tape:                   # was: tf.GradientTape()
            loss = loss_fn(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tape.reading()                         # None where measure is False

    with tapescope.Recorder("runs/mine", probe, when) as recorder:
        for n, (x, y) in enumerate(batches):
            loss, reading = step(x, y, when(n))
            if reading is not None:
                recorder.write(n, reading, scalars={"loss": loss})

With `model.fit` it is a callback: `callbacks=[tapescope.Monitor("runs/mine")]`.

Then `tensorboard --logdir runs` shows the Gradients tab. `tapescope.Run("runs/mine")` reads the run back, and
`tapescope.check(run)` returns what is wrong with it.

A name is imported when it is first used (PEP 562), so that reading a run does not load TensorFlow: see
docs/decisions/0007-reading-without-tensorflow.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapescope.analysis.check import check as check
    from tapescope.analysis.compare import Comparison as Comparison
    from tapescope.analysis.compare import compare as compare
    from tapescope.analysis.report import write_report as write_report
    from tapescope.analysis.scaling import noise_scale as noise_scale
    from tapescope.analysis.scaling import scaling as scaling
    from tapescope.capture.keras_replica_issues import own_random_numbers as own_random_numbers
    from tapescope.capture.keras_replica_issues import replica_issues as replica_issues
    from tapescope.capture.layer_hooks import tap as tap
    from tapescope.fit.monitor import Monitor as Monitor
    from tapescope.probe import Probe as Probe
    from tapescope.recorder import Recorder as Recorder
    from tapescope.replays.answer import Replay as Replay
    from tapescope.replays.replay import replay as replay
    from tapescope.rules.finding import Finding as Finding
    from tapescope.schedule import Schedule as Schedule
    from tapescope.schedule import auto as auto
    from tapescope.schedule import budget as budget
    from tapescope.schedule import every as every
    from tapescope.schedule import never as never
    from tapescope.statistics.reading import Reading as Reading
    from tapescope.step_times import Cost as Cost
    from tapescope.storage.resume import Resume as Resume
    from tapescope.storage.run import Run as Run
    from tapescope.storage.run import runs as runs
    from tapescope.tape import Tape as Tape

__version__ = "0.1.0"

_MODULES = {
    "Comparison": "analysis.compare",
    "Cost": "step_times",
    "Finding": "rules.finding",
    "Monitor": "fit.monitor",
    "Probe": "probe",
    "Reading": "statistics.reading",
    "Recorder": "recorder",
    "Replay": "replays.answer",
    "Resume": "storage.resume",
    "Run": "storage.run",
    "Schedule": "schedule",
    "Tape": "tape",
    "auto": "schedule",
    "budget": "schedule",
    "check": "analysis.check",
    "compare": "analysis.compare",
    "every": "schedule",
    "never": "schedule",
    "noise_scale": "analysis.scaling",
    "own_random_numbers": "capture.keras_replica_issues",
    "replay": "replays.replay",
    "replica_issues": "capture.keras_replica_issues",
    "runs": "storage.run",
    "scaling": "analysis.scaling",
    "tap": "capture.layer_hooks",
    "write_report": "analysis.report",
}
"""The module of each public name."""

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tapescope' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"tapescope.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("tensorflow", "keras"):
            raise
        raise ModuleNotFoundError(
            f"tapescope.{name} needs TensorFlow and Keras; this environment has no {error.name}: "
            "pip install tensorflow. Finished runs are read without them: docs/installing.md",
            name=error.name,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
