"""What TensorBoard has loaded of each run: a listing, and the tables behind it, read once and kept for a while."""

import collections
import contextlib
import ctypes
import functools
import math
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from tensorboard.data import provider

from tensorboard_plugin_tapescope import metadata, tables
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.tables import Table

KEEP_BYTES = 32 << 20
"""Of tables in memory; the least recently used go first."""
READ_BYTES = 64 << 20
"""Of one read: histograms of many layers are sampled by step to stay below it. gRPC itself ends at 256 MiB."""
ALL = 1_000_000  # 0 would mean none
FRESH = 256
"""A table grows by its last record that often before all are read again, and what TensorBoard let go goes here too."""

SAME_SECONDS = 0.2
"""For so long a listing serves the requests that follow on one another; the data server takes 40 ms to answer."""
LAST = "last"
UNREADABLE = (ValueError, TypeError, OverflowError, MemoryError)
"""What TensorBoard raises where a tensor's bytes do not fit what it says of itself."""
LATEST = 1 << 62
"""A step that no run reaches."""

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
        self._listed: dict[str, tuple[float, dict[str, Run]]] = {}
        self.reader = futures.ThreadPoolExecutor(1, "tapescope reader")
        """Reads for all of the server's threads, each of which would keep the memory of a read to itself."""
        self._lock = threading.Lock()
        self.reading = threading.Lock()
        """Held while tables are read: one at a time, or each of several requests would hold a copy of the same."""

    def snapshot(self, ctx: Any, experiment: str) -> "Snapshot":
        """The runs as they stand now."""
        before, runs = self._listed.get(experiment, (0.0, {}))
        if time.monotonic() - before > SAME_SECONDS:
            listing = self.provider.list_tensors(ctx, experiment_id=experiment, plugin_name=metadata.PLUGIN_NAME)
            runs = {name: _run(listing[name]) for name in sorted(listing)}
            self._listed[experiment] = time.monotonic(), runs
        return Snapshot(self, ctx, experiment, runs)

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

    def __init__(
        self, records: Records, ctx: Any, experiment: str, runs: dict[str, Run], steps: tuple[int, int] = (0, LATEST)
    ):
        self.runs = runs
        self._records, self._ctx, self._experiment, self._steps = records, ctx, experiment, steps

    def within(self, first: int, last: int) -> "Snapshot":
        """The same moment, its tables of these steps alone."""
        return Snapshot(self._records, self._ctx, self._experiment, self.runs, (first, last))

    def table(self, run: str, family: str) -> Table | None:
        """All records of a run's family within the steps; None where it has none. The unchanged is not read again."""
        tag = self.runs[run].tags.get(family)
        if tag is None:
            return None
        with self._records.reading:
            return tables.between(self._table(run, family, tag), *self._steps)

    def _table(self, run: str, family: str, tag: Tag) -> Table:
        key = (self._experiment, run, family)
        kept = self._records.get(key)
        if kept and kept.tag == tag:
            return kept.table
        if kept and kept.grown < FRESH and self._only_last_is_new(run, family, kept.tag):
            last = self._read([run], [family], 1)[run, family]
            if last.steps.tolist() == [tag.last_step]:  # else more has come since the listing
                return self._records.put(key, Kept(tag, tables.joined(kept.table, last), kept.grown + 1))
        return self._records.put(key, Kept(tag, self._read([run], [family], ALL)[run, family]))

    def last(self, run: str, family: str) -> Table | None:
        """Only the last record: a thousand times less to read than all of them."""
        tag = self.runs[run].tags.get(family)
        if tag is None:
            return None
        key = (self._experiment, run, family, LAST)
        kept = self._records.get(key)
        if kept and kept.tag == tag:
            return kept.table
        return self._records.put(key, Kept(tag, self._read([run], [family], 1)[run, family]))

    def preload(self, families: Sequence[str], last: bool) -> None:
        """Reads the families of all runs in one call, where many would wait for many answers."""
        wanted = {}
        for run, described in self.runs.items():
            for family in families:
                key = (self._experiment, run, family, *([LAST] if last else []))
                kept, tag = self._records.get(key), described.tags.get(family)
                if tag and not (kept and kept.tag == tag):
                    wanted[run, family] = key
        if len(wanted) < 2:
            return
        runs, tags = sorted({run for run, _ in wanted}), sorted({family for _, family in wanted})
        read = self._read(runs, tags, 1 if last else ALL)
        for (run, family), key in wanted.items():
            self._records.put(key, Kept(self.runs[run].tags[family], read[run, family]))

    def _only_last_is_new(self, run: str, family: str, before: Tag) -> bool:
        """Whether the run has recorded one step since: then the last record is all there is to read."""
        tag = self.runs[run].tags[family]
        clock = self.runs[run].tags.get("step")
        if clock is None or family == "step" or tag.family != before.family:
            return False
        steps = self._table(run, "step", clock)
        return steps.steps[steps.steps > before.last_step].tolist() == [tag.last_step]

    def _read(self, runs: Sequence[str], families: Sequence[str], points: int) -> dict[tuple[str, str], Table]:
        """Tables by run and family, of those families that each run has."""
        found = {(r, f): self.runs[r].tags[f].family for r in runs for f in families if f in self.runs[r].tags}
        largest = max(math.prod(tables.shape(family) or (1,)) for family in found.values())
        points = max(1, min(points, READ_BYTES // max(4 * largest, 1)))

        def read(asked: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Table]:
            runs, tags = sorted({run for run, _ in asked}), sorted({metadata.tag(family) for _, family in asked})
            try:
                data = self._records.provider.read_tensors(
                    self._ctx,
                    experiment_id=self._experiment,
                    plugin_name=metadata.PLUGIN_NAME,
                    downsample=points,
                    run_tag_filter=provider.RunTagFilter(runs=runs, tags=tags),
                )
            except UNREADABLE:
                if len(runs) == len(tags) == 1:
                    data = {}
                else:  # one tensor that cannot be decoded costs the others nothing
                    return {key: table for one in asked for key, table in read([one]).items()}
            return {key: tables.table(found[key], data.get(key[0], {}).get(found[key].tag, ())) for key in asked}

        try:
            return self._records.reader.submit(read, found).result()
        finally:
            self._records.reader.submit(give_back)


def give_back() -> None:
    """Memory of a read goes back to the system; glibc would keep it, up to three times what was read."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _run(listing: Any) -> Run:
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
