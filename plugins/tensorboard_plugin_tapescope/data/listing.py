"""Which runs TensorBoard has loaded, what each holds, and how far it has come."""

import functools
import math
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family

parse = functools.lru_cache(maxsize=1024)(metadata.parse)


class Tag(NamedTuple):
    """A tag of a run, and how far it has come."""

    family: Family
    last_step: int
    last_seconds: float


class Run(NamedTuple):
    """A run's tags by family, and a sentence on each that can't be read."""

    tags: dict[str, Tag]
    problems: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """Changes whenever the run has something new."""
        return ",".join(f"{t.last_step}:{t.last_seconds:.3f}" for _, t in sorted(self.tags.items()))


class Listing:
    """The runs as TensorBoard listed them at one moment, and what is said of them all, put together at most once."""

    def __init__(self, runs: dict[str, Run]):
        self.runs, self.asked = runs, time.monotonic()
        self._lock, self._made = threading.Lock(), None

    def once(self, make: Callable[[], Any]) -> Any:
        """What `make` returned to the first who asked; the others wait for it."""
        with self._lock:
            if self._made is None:
                self._made = make()
            return self._made


def described(listing: Any) -> Run:
    """A run from TensorBoard's listing of its tags."""
    tags, problems = {}, []
    for tag, series in sorted(listing.items()):
        try:
            family = parse(series.plugin_content)
            if family.tag != tag:
                raise metadata.SchemaError(f"its description is of another tag, {family.tag}")
            seconds = series.max_wall_time if math.isfinite(series.max_wall_time) else 0.0
            tags[family.family] = Tag(family, series.max_step, seconds)
        except metadata.SchemaError as error:
            problems.append(f"{tag}: {error}")
    return Run(tags, tuple(problems))
