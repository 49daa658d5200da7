"""The runs that TensorBoard has loaded, the tags of each, and the last step of each tag."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family


class Tag(NamedTuple):
    """A tag of a run, with its last step."""

    family: Family
    last_step: int
    last_seconds: float
    """Wall time of its last event, in seconds since 1970."""


class Run(NamedTuple):
    """The tags of a run by family, and a sentence for each tag that cannot be read."""

    tags: dict[str, Tag]
    problems: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """A text that changes whenever the run has new records."""
        return ",".join(f"{t.last_step}:{t.last_seconds:.3f}" for _, t in sorted(self.tags.items()))


class Listing:
    """The runs as TensorBoard listed them at one moment, with the summary of all that is computed once.

    Args:
      runs: by name.
      before: the listing before, of the same experiment.
    """

    def __init__(self, runs: dict[str, Run], before: "Listing | None" = None):
        self.runs = runs
        self.created = time.monotonic()
        self.changed = dict.fromkeys(runs, self.created)
        """By run, when a listing first had its newest records, on time.monotonic's clock."""
        if before is not None:
            same = [name for name, run in runs.items() if name in before.runs and before.runs[name] == run]
            self.changed.update({name: before.changed[name] for name in same})
        self._lock = threading.Lock()
        self._summary = None

    def summary(self, make: Callable[[], Any]) -> Any:
        """Return what `make` returned to the first caller. Concurrent callers wait for it."""
        with self._lock:
            if self._summary is None:
                self._summary = make()
            return self._summary


def parse_run(listing: Any, parse: Callable[[bytes], Family] = metadata.parse) -> Run:
    """Return a run from TensorBoard's listing of its tags: time series by tag.

    Args:
      listing: of the run.
      parse: reads a description, as `metadata.parse` does.
    """
    tags: dict[str, Tag] = {}
    problems: list[str] = []
    for tag, series in sorted(listing.items()):
        try:
            family = parse(series.plugin_content)
            if family.tag != tag:
                raise metadata.SchemaError(f"its description is of another tag, {family.tag}")
        except metadata.SchemaError as error:
            problems.append(f"{tag}: {error}")
            continue
        seconds = series.max_wall_time if math.isfinite(series.max_wall_time) else 0.0
        tags[family.family] = Tag(family, series.max_step, seconds)
    return Run(tags, tuple(problems))
