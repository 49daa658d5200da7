"""Failures of measuring, kept away from the training.

An argument of Probe, tape or reading that cannot be right raises a ValueError. Any other exception in the library's own
code is a failure of measuring: the step goes on as the plain one, nothing is measured from then on, and one warning
says where and why.
"""

import contextlib
from collections.abc import Iterator

from absl import logging


def misuse_error(message: str) -> ValueError:
    """Return the error for an argument that cannot be right, marked so that a Failsafe raises it.

    It has no class of its own, because AutoGraph turns every class that it does not know into a StagingError.

    Args:
      message: names the argument, what was expected, what was received, and the cure.
    """
    error = ValueError(message)
    error.tapescope_misuse = True  # type: ignore[attr-defined]
    return error


class Failsafe:
    """The failure of measuring, if there was one, and whether failures are raised.

    Args:
      strict: whether they are.
      consequence: of a failure, for the log.
    """

    def __init__(self, strict: bool, consequence: str = "training goes on, and is not measured"):
        self.strict = strict
        self._consequence = consequence
        self.failure: str | None = None
        """Where and why measuring failed."""

    @contextlib.contextmanager
    def contain(self) -> Iterator[None]:
        """End the block at the first failure and go on after it. Misuse is raised, and if `strict` any failure."""
        try:
            yield
        except Exception as error:
            if self.strict or hasattr(error, "tapescope_misuse"):
                raise
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Remember the first failure, and log it."""
        if self.failure is not None:
            return
        layer = getattr(error, "tapescope_layer", None)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.failure = f"at {layer}: {reason}" if layer else reason
        logging.warning(
            "tapescope: measuring failed %s; %s. tapescope.Probe(..., strict=True) raises instead",
            self.failure if layer else f"({reason})",
            self._consequence,
        )


@contextlib.contextmanager
def attribute_errors_to(layer: str) -> Iterator[None]:
    """Attach the name of the layer or variable at hand to any exception, unless a block inside did so."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "tapescope_layer"):
            error.tapescope_layer = layer  # type: ignore[attr-defined]
        raise
