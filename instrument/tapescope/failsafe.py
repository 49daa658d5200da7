"""Keeps what goes wrong inside measuring away from the training.

What a user asks wrongly of Probe, tape or reading is a misuse, and is raised. Anything else that fails here is a fault
of measuring, not of the training: the step is then traced as the plain one, nothing more is measured, and one warning
says where and why.
"""

import contextlib
from collections.abc import Iterator

from absl import logging


def misuse(message: str) -> ValueError:
    """The error of an argument that cannot be right; the message names it, its value, and the cure.

    Marked, and no class of its own: AutoGraph makes a StagingError of any that it does not know.
    """
    error = ValueError(message)
    error.tapescope_misuse = True  # type: ignore[attr-defined]
    return error


class Guard:
    """Remembers whether measuring has failed."""

    def __init__(self, strict: bool):
        self.strict = strict
        self.failure: str | None = None
        """Where and why."""

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Ends its block at the first fault, and goes on behind it; where `strict`, the fault is raised."""
        try:
            yield
        except Exception as error:
            if self.strict or hasattr(error, "tapescope_misuse"):
                raise
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Gives up measuring; says why, the first time."""
        layer = getattr(error, "tapescope_layer", None)
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if self.failure is None:
            self.failure = f"at {layer}: {why}" if layer else why
            logging.warning(
                "tapescope: measuring failed %s; training goes on, and is not measured. "
                "tapescope.Probe(..., strict=True) raises instead",
                self.failure if layer else f"({why})",
            )


@contextlib.contextmanager
def blaming(layer: str) -> Iterator[None]:
    """Notes on whatever is raised within which layer or variable it was about."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "tapescope_layer"):
            error.tapescope_layer = layer  # type: ignore[attr-defined]
        raise
