"""What TensorBoard has loaded of each run: a listing, and the tables behind it, read once and kept for a while."""

import collections
import functools
import math
import threading
from typing import Any, NamedTuple

from tensorboard.data import provider

from tensorboard_plugin_tapescope import metadata, tables
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.tables import Table

KEEP_BYTES = 64 << 20
"""Of tables in memory; the least recently used go first."""
READ_BYTES = 64 << 20
"""Of one read: histograms of many layers are sampled by step to stay below it. gRPC itself ends at 256 MiB."""
ALL = 1_000_000  # 0 would mean none
FRESH = 256
"""A table grows by its last record that often before all are read again, and what TensorBoard let go goes here too."""

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


class Kept(NamedTuple):
    """A table in memory, of a tag as it stood then; `grown` records were added one at a time."""

    tag: Tag
    table: Table
    grown: int = 0


class Records:
    """Keeps tables between requests. Safe to use from many threads."""

    def __init__(self, data_provider: Any):
        self.provider = data_provider
        self._kept: collections.OrderedDict[tuple, Kept] = collections.OrderedDict()
        self._lock = threading.Lock()

    def snapshot(self, ctx: Any, experiment: str) -> "Snapshot":
        """The runs as they stand now."""
        listing = self.provider.list_tensors(ctx, experiment_id=experiment, plugin_name=metadata.PLUGIN_NAME)
        return Snapshot(self, ctx, experiment, {name: _run(listing[name]) for name in sorted(listing)})

    def get(self, key: tuple) -> Kept | None:
        """The table kept under the key, which becomes the last one to go."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple, kept: Kept) -> Table:
        """Keeps a table; drops the least recently used until all fit."""
        with self._lock:
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(k.table.values.nbytes for k in self._kept.values()) > KEEP_BYTES:
                self._kept.popitem(last=False)
        return kept.table


class Snapshot:
    """The runs at one moment, and their tables: one request's view of the data."""

    def __init__(self, records: Records, ctx: Any, experiment: str, runs: dict[str, Run]):
        self.runs = runs
        self._records, self._ctx, self._experiment = records, ctx, experiment

    def table(self, run: str, family: str) -> Table | None:
        """All records of a run's family; None where it has none. What has not changed is not read again."""
        tag = self.runs[run].tags.get(family)
        if tag is None:
            return None
        key = (self._experiment, run, family)
        kept = self._records.get(key)
        if kept and kept.tag == tag:
            return kept.table
        if kept and kept.grown < FRESH and self._only_last_is_new(run, family, kept.tag):
            grown = tables.joined(kept.table, self._read(run, tag.family, 1))
            return self._records.put(key, Kept(tag, grown, kept.grown + 1))
        return self._records.put(key, Kept(tag, self._read(run, tag.family, ALL)))

    def last(self, run: str, family: str) -> Table | None:
        """Only the last record: a thousand times less to read than all of them."""
        tag = self.runs[run].tags.get(family)
        if tag is None:
            return None
        key = (self._experiment, run, family, "last")
        kept = self._records.get(key)
        return (
            kept.table
            if kept and kept.tag == tag
            else self._records.put(key, Kept(tag, self._read(run, tag.family, 1)))
        )

    def _only_last_is_new(self, run: str, family: str, before: Tag) -> bool:
        """Whether the run has recorded one step since: then the last record is all there is to read."""
        tag = self.runs[run].tags[family]
        steps = self.table(run, "step") if family != "step" else None
        if steps is None or tag.family != before.family:
            return False
        return steps.steps[steps.steps > before.last_step].tolist() == [tag.last_step]

    def _read(self, run: str, family: Family, points: int) -> Table:
        room = READ_BYTES // max(4 * math.prod(tables.shape(family) or (1,)), 1)
        data = self._records.provider.read_tensors(
            self._ctx,
            experiment_id=self._experiment,
            plugin_name=metadata.PLUGIN_NAME,
            downsample=max(1, min(points, room)),
            run_tag_filter=provider.RunTagFilter(runs=[run], tags=[family.tag]),
        )
        return tables.table(family, data.get(run, {}).get(family.tag, ()))


def _run(listing: Any) -> Run:
    tags, problems = {}, []
    for tag, series in sorted(listing.items()):
        try:
            family = parse(series.plugin_content)
            if family.tag != tag:
                raise metadata.SchemaError(f"its description is of another tag, {family.tag}")
            tags[family.family] = Tag(family, series.max_step, series.max_wall_time)
        except metadata.SchemaError as error:
            problems.append(f"{tag}: {error}")
    return Run(tags, tuple(problems))
