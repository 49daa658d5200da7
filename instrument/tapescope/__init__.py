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

Then `tensorboard --logdir runs` shows the Gradients tab, and `tapescope.Run("runs/mine")` reads the run back.
"""

from tapescope.capture.layer_hooks import tap
from tapescope.fit.monitor import Monitor
from tapescope.probe import Probe
from tapescope.recorder import Recorder
from tapescope.schedule import Schedule, budget, every, never
from tapescope.statistics.reading import Reading
from tapescope.storage.resume import Resume
from tapescope.storage.run import Run, runs

__version__ = "0.1.0"

__all__ = ["Monitor", "Probe", "Reading", "Recorder", "Resume", "Run", "Schedule"]
__all__ += ["budget", "every", "never", "runs", "tap"]
