"""Replay of runs of `tapescope-train`, which the package of the trainers does itself.

The library is below the trainers and does not import them: they are loaded by name when a replay is asked for.
"""

import importlib
import os

from tapescope.replays.answer import Replay
from tapescope.storage.run import Run

PROGRAM = "tapescope-train"
_MODULE = "tapescope_trainers.replay"


def is_of_trainers(run: Run) -> bool:
    """Return whether a run is one of `tapescope-train`."""
    return run.status.get("program") == PROGRAM


def replay(run: Run, step: int) -> Replay:
    """Run a step of a run of `tapescope-train` again.

    Raises:
      ValueError: the run is another program's, the trainers are not installed, or the step cannot be run again.
    """
    if not is_of_trainers(run):
        raise ValueError(
            f"{run.logdir} is not a run of {PROGRAM}, whose step can be built again from its flags: call "
            "tapescope.replay(run, step, step_fn) with the step of your program"
        )
    try:
        module = importlib.import_module(_MODULE)
        return module.replay(os.fspath(run.logdir), step)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the package {error.name} is missing, which a replay of {PROGRAM} needs: pip install 'tapescope[trainers]'"
        ) from None
