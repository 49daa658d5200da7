"""The runs that TensorBoard has loaded, the tags of each, and the last step of each tag."""

import functools
import math
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family

_parse = functools.lru_cache(maxsize=1024)(metadata.parse)


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
    """The runs as TensorBoard listed them at one moment, with the summary of all that is computed once."""

    def __init__(self, runs: dict[str, Run]):
        self.runs = runs
        self.created = time.monotonic()
        self._lock = threading.Lock()
        self._summary = None

    def summary(self, make: Callable[[], Any]) -> Any:
        """Return what `make` returned to the first caller. Concurrent callers wait for it."""
        with self._lock:
            if self._summary is None:
                self._summary = make()
            return self._summary


def parse_run(listing: Any) -> Run:
    """Return a run from TensorBoard's listing of its tags: time series by tag."""
    tags: dict[str, Tag] = {}
    problems = []
    for tag, series in sorted(listing.items()):
        try:
            family = _parse(series.plugin_content)
            if family.tag != tag:
                raise metadata.SchemaError(f"its description is of another tag, {family.tag}")
        except metadata.SchemaError as error:
            problems.append(f"{tag}: {error}")
            continue
        seconds = series.max_wall_time if math.isfinite(series.max_wall_time) else 0.0
        tags[family.family] = Tag(family, series.max_step, seconds)
    return Run(tags, tuple(problems))
