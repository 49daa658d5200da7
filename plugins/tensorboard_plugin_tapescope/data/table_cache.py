"""Tables of TensorBoard's records, read once and cached between requests.

`TableCache` is shared by all requests. Each request reads through a `Snapshot`: the runs as listed at one moment.
"""

import collections
import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any, Literal, NamedTuple

import numpy as np
from tensorboard import errors
from tensorboard.data import provider

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.data.hyperparameters import read_hyperparameters
from tensorboard_plugin_tapescope.data.listing import Listing, Run, Tag, parse_run
from tensorboard_plugin_tapescope.data.memory import release_memory
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.hyperparameters import Settings
from tensorboard_plugin_tapescope.series.tables import Table

logger = logging.getLogger(__name__)

WHOLE_TABLES_BYTES = 64 << 20
"""Memory for whole tables."""

IDLE_TABLES_BYTES = 16 << 20
"""Memory for whole tables that nobody asked for lately: an open view asks for its tables with every new record."""

IDLE_SECONDS = 5.0
"""A table that nobody asked for so long is idle."""

SMALL_TABLES_BYTES = 16 << 20
"""Memory for last records and samples. Every poll needs them, so whole tables have their own cache."""

READ_BYTES = 64 << 20
"""Largest read; a larger table is sampled by step. gRPC allows 256 MiB."""

ALL_RECORDS = 1_000_000
"""As `downsample` of a read. 0 would return no record."""

SAMPLE_RECORDS = 200
"""Records of a sample when it is first read, for a sparkline."""

READ_TIME_SHARE = 0.05
"""A run that is being written is read as a whole for at most this share of the time."""

KEPT_EXPERIMENTS = 4
"""Experiments of which a listing and summaries are kept. Over a directory, a URL may give its one any name."""

SMALL_READ_RUNS = 64
"""Runs whose last records are read in one call. Findings are texts of any length."""

ENTRY_BYTES = 512
"""Memory of a table besides its numbers and texts."""

LISTING_SECONDS = 0.2
"""Requests within so many seconds share a listing. TensorBoard's data server takes 40 ms to list."""

LAST_STEP = (1 << 62) - 1
"""A step that no run reaches."""

SmallTable = Literal["last record", "sample"]


class CachedTable(NamedTuple):
    """A table, and the state of its tag when it was read."""

    tag: Tag
    table: Table
    complete_until: int | None = None
    """Step behind which records may be missing; None if none is."""
    reread_after: float = 0.0
    """Time from which an incomplete table is read as a whole again, on time.monotonic's clock."""


class LruCache:
    """Tables by key, of which the least recently used are dropped above a limit of bytes. Thread-safe.

    Args:
      max_bytes: the limit. A table that alone exceeds it is kept.
      idle_bytes: the limit above which tables are dropped that were not used for IDLE_SECONDS.
    """

    def __init__(self, max_bytes: int, idle_bytes: int | None = None):
        self._max_bytes = max_bytes
        self._idle_bytes = max_bytes if idle_bytes is None else idle_bytes
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[tuple, CachedTable] = collections.OrderedDict()
        self._sizes: dict[tuple, int] = {}
        self._used: dict[tuple, float] = {}
        self.bytes = 0
        """Memory of all tables."""

    def get(self, key: tuple) -> CachedTable | None:
        """Return the table of a key, which becomes the most recently used."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                self._used[key] = time.monotonic()
            return self._entries.get(key)

    def put(self, key: tuple, entry: CachedTable) -> CachedTable:
        """Store a table, even one that alone exceeds the limit, and return it."""
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            self._used[key] = time.monotonic()
            self.bytes -= self._sizes.get(key, 0)
            self._sizes[key] = count_bytes(entry.table)
            self.bytes += self._sizes[key]
        self.drop()
        return entry

    def drop(self) -> None:
        """Drop what exceeds the limits, the least recently used first."""
        with self._lock:
            while len(self._entries) > 1 and self.bytes > self._idle_bytes:
                oldest = next(iter(self._entries))
                if self.bytes <= self._max_bytes and time.monotonic() - self._used[oldest] < IDLE_SECONDS:
                    break
                del self._entries[oldest], self._used[oldest]
                self.bytes -= self._sizes.pop(oldest)


def count_bytes(table: Table) -> int:
    """Return the memory of a table: of texts their bytes, and not those of the pointers to them."""
    arrays = table.values if table.values.dtype == object else ()
    texts = sum(len(text) for array in arrays for text in np.ravel(array) if isinstance(text, bytes | str))
    return ENTRY_BYTES + table.steps.nbytes + table.seconds.nbytes + table.values.nbytes + texts


class TableCache:
    """Cached tables, the last listing and summaries of ended runs, shared between requests. Thread-safe."""

    def __init__(self, data_provider: Any):
        self.provider = data_provider
        self.whole_tables = LruCache(WHOLE_TABLES_BYTES, IDLE_TABLES_BYTES)
        self.small_tables = LruCache(SMALL_TABLES_BYTES)
        self.summaries: dict[tuple[str, str], tuple[Run, dict[str, Any]]] = {}
        """By experiment and run: a run that has ended, and its summary."""
        self.reader = futures.ThreadPoolExecutor(1, "tapescope reader")
        """Reads for all server threads, each of which would keep the memory of a read for itself."""
        self.read_lock = threading.Lock()
        """Held while a whole table is read, so that concurrent requests do not each hold a copy of it."""
        self._rows: dict[tuple[str, str], tuple[Tag, dict[str, Any]]] = {}
        """By experiment and run: the tag `rows` and its last content."""
        self._families: dict[bytes, Family] = {}
        """The descriptions in the last listing."""
        self._listings: dict[str, Listing] = {}
        self._listing_lock = threading.Lock()

    def snapshot(self, ctx: Any, experiment: str) -> "Snapshot":
        """Return the runs as they are now. Concurrent callers share one listing."""
        self.whole_tables.drop()  # an open page asks every second
        with self._listing_lock:
            listing = before = self._listings.pop(experiment, None)
            if listing is None or time.monotonic() - listing.created > LISTING_SECONDS:
                tags = self.provider.list_tensors(ctx, experiment_id=experiment, plugin_name=metadata.PLUGIN_NAME)
                families: dict[bytes, Family] = {}

                def parse(content: bytes) -> Family:
                    family = families[content] = self._families.get(content) or metadata.parse(content)
                    return family

                runs = {name: self._read_run(ctx, experiment, name, tags[name], parse) for name in sorted(tags)}
                self._families = families
                listing = Listing(runs, before)
            self._listings[experiment] = listing  # the last one is the newest
            self._drop_unlisted()
        return Snapshot(self, ctx, experiment, listing)

    def _read_run(self, ctx: Any, experiment: str, name: str, tags: Any, parse: Callable[[bytes], Family]) -> Run:
        """Return a run of the listing; one that cannot be read has a problem in place of its tags."""
        try:
            return self._with_rows(ctx, experiment, name, parse_run(tags, parse))
        except Exception as error:  # the boundary of a run: it must not cost the others
            logger.exception("tapescope: the run %r cannot be listed", name)
            return Run({}, (f"it cannot be read ({type(error).__name__}: {error})",))

    def _drop_unlisted(self) -> None:
        """Drop what is kept of the experiments that were asked for least recently, and of runs that are gone."""
        while len(self._listings) > KEPT_EXPERIMENTS:
            del self._listings[next(iter(self._listings))]
        for kept in (self.summaries, self._rows):
            for key in list(kept):
                if key[0] not in self._listings or key[1] not in self._listings[key[0]].runs:
                    kept.pop(key, None)

    def _with_rows(self, ctx: Any, experiment: str, name: str, run: Run) -> Run:
        """Return a run whose families have all rows, where some were added after the first record."""
        tag = run.tags.get("rows")
        if tag is None:
            return run
        read, rows = self._rows.get((experiment, name), (None, {}))
        if read != tag:
            unextended = Snapshot(self, ctx, experiment, Listing({name: run}))
            rows = tables.last_object(unextended._read([name], ["rows"], 1)[name, "rows"])
            self._rows[experiment, name] = tag, rows
        extended = {family: t._replace(family=tables.extend(t.family, rows)) for family, t in run.tags.items()}
        return run._replace(tags=extended)


class Snapshot:
    """The runs at one moment and their tables, for one request."""

    def __init__(self, cache: TableCache, ctx: Any, experiment: str, listing: Listing):
        self.runs = listing.runs
        self.changed = listing.changed
        self.summary = listing.summary
        self.incomplete_after: list[int] = []
        """For each returned table that may miss records, the step behind which."""
        self._cache = cache
        self._ctx = ctx
        self._experiment = experiment
        self._first = 0
        self._last = LAST_STEP
        self._must_be_complete = False

    def between(self, first: int, last: int) -> "Snapshot":
        """Return a snapshot of the same moment whose tables hold only the steps from `first` to `last`."""
        narrower = copy.copy(self)
        narrower._first = first
        narrower._last = last
        return narrower

    def complete(self) -> "Snapshot":
        """Return a snapshot of the same moment whose tables hold every record, however long reading takes."""
        slower = copy.copy(self)
        slower._must_be_complete = True
        return slower

    def with_run(self, name: str, run: Run) -> "Snapshot":
        """Return a snapshot of the same moment in which a run is replaced."""
        other = copy.copy(self)
        other.runs = {**self.runs, name: run}
        return other

    def table(self, run: str, family: str, column: str | None = None) -> Table | None:
        """Return the records of a family within the snapshot's steps, None if the run has no such family.

        With a column, the table has only what that column needs. Of many runs only so much is kept in memory.

        Of a run that is being written it may be the records of the last whole read and the newest of each request
        since then; see `incomplete_after`.
        """
        tag = self.runs[run].tags.get(family)
        if tag is None:
            return None
        with self._cache.read_lock:
            entry = self._whole_table(run, family, tag, column)
        if entry.complete_until is not None:
            self.incomplete_after.append(entry.complete_until)
        return tables.between(entry.table, self._first, self._last)

    def _whole_table(self, run: str, family: str, tag: Tag, column: str | None) -> CachedTable:
        def needed(table: Table) -> Table:
            return table if column is None else tables.narrow(table, column)

        key = (self._experiment, run, family, column)
        start = time.monotonic()
        entry = self._cache.whole_tables.get(key)
        if entry and entry.tag == tag and entry.complete_until is None:
            return entry
        may_be_incomplete = entry is not None and start < entry.reread_after and not self._must_be_complete
        if entry and may_be_incomplete and entry.tag == tag:
            return entry
        if entry and may_be_incomplete and entry.tag.family == tag.family:
            longer = _appended(entry.table, needed(self._last_record(run, family, tag)))
            if longer is not None:
                until = entry.tag.last_step
                if entry.complete_until is not None:
                    until = min(until, entry.complete_until)
                return self._cache.whole_tables.put(key, CachedTable(tag, longer, until, entry.reread_after))
        table = needed(self._read([run], [family], ALL_RECORDS)[run, family])
        end = time.monotonic()
        return self._cache.whole_tables.put(
            key, CachedTable(tag, table, reread_after=end + (end - start) / READ_TIME_SHARE)
        )

    def last_record(self, run: str, family: str) -> Table | None:
        """Return a table of the last record only, None if the run has no such family."""
        tag = self.runs[run].tags.get(family)
        return self._last_record(run, family, tag) if tag else None

    def _last_record(self, run: str, family: str, tag: Tag) -> Table:
        key = (self._experiment, run, family, "last record")
        entry = self._cache.small_tables.get(key)
        if entry is None or entry.tag != tag:
            entry = self._cache.small_tables.put(key, CachedTable(tag, self._read([run], [family], 1)[run, family]))
        return entry.table

    def sample(self, run: str, family: str) -> Table | None:
        """Return some of the records, None if the run has no such family: enough for a sparkline.

        It begins with SAMPLE_RECORDS records and grows by the last record of each call. A run that is being written
        would otherwise have to be read again as a whole for each poll.
        """
        tag = self.runs[run].tags.get(family)
        if tag is None:
            return None
        key = (self._experiment, run, family, "sample")
        entry = self._cache.small_tables.get(key)
        if entry and entry.tag == tag:
            return entry.table
        table = None
        if entry and entry.tag.family == tag.family:
            table = _appended(entry.table, self._last_record(run, family, tag))
        if table is None or len(table.steps) > 2 * SAMPLE_RECORDS:
            table = self._read([run], [family], SAMPLE_RECORDS)[run, family]
        return self._cache.small_tables.put(key, CachedTable(tag, table)).table

    def cached_summary(self, run: str) -> dict[str, Any] | None:
        """Return the summary of a run that has ended, None if there is none or the run has changed since."""
        summarized, summary = self._cache.summaries.get((self._experiment, run), (None, None))
        return summary if summarized == self.runs[run] else None

    def cache_summary(self, run: str, summary: dict[str, Any]) -> dict[str, Any]:
        """Store the summary of a run if it has ended, and return it."""
        if summary["state"] == "ended":
            self._cache.summaries[self._experiment, run] = (self.runs[run], summary)
        return summary

    def hyperparameters(self, runs: tuple[str, ...]) -> dict[str, Settings]:
        """Return the hyperparameters of each run, empty for a run without any."""
        return read_hyperparameters(self._cache.provider, self._ctx, self._experiment, runs)

    def preload(self, runs: Sequence[str], families: Sequence[str], kind: SmallTable) -> None:
        """Read the last records or samples of several runs in one call, which is faster than a call for each."""
        wanted = {}
        for run in runs:
            for family in families:
                tag = self.runs[run].tags.get(family)
                key = (self._experiment, run, family, kind)
                entry = self._cache.small_tables.get(key)
                if tag and not (entry and (entry.tag == tag or kind == "sample")):
                    wanted[run, family] = key
        if len(wanted) < 2:
            return
        wanted_runs = sorted({run for run, _ in wanted})
        wanted_families = sorted({family for _, family in wanted})
        records = 1 if kind == "last record" else SAMPLE_RECORDS
        read = self._read(wanted_runs, wanted_families, records)
        for (run, family), key in wanted.items():
            self._cache.small_tables.put(key, CachedTable(self.runs[run].tags[family], read[run, family]))

    def _read(self, runs: Sequence[str], families: Sequence[str], records: int) -> dict[tuple[str, str], Table]:
        """Return tables by run and family, for the families that each run has."""
        wanted = {(r, f): self.runs[r].tags[f].family for r in runs for f in families if f in self.runs[r].tags}
        largest = max(math.prod(tables.shape(family) or (1,)) for family in wanted.values())
        records = max(1, min(records, READ_BYTES // max(4 * largest, 1)))

        def read(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Table]:
            runs = sorted({run for run, _ in keys})
            tags = sorted({metadata.tag(family) for _, family in keys})
            try:
                data = self._cache.provider.read_tensors(
                    self._ctx,
                    experiment_id=self._experiment,
                    plugin_name=metadata.PLUGIN_NAME,
                    downsample=records,
                    run_tag_filter=provider.RunTagFilter(runs=runs, tags=tags),
                )
            except errors.PublicError:  # TensorBoard answers these itself
                raise
            except Exception:  # the boundary of a read: bytes that do not match their shape, or too many of them
                if len(runs) > 1 or len(tags) > 1:  # each alone, so that one broken tensor does not hide the others
                    return {single: table for key in keys for single, table in read([key]).items()}
                data = {}
            return {key: tables.table(wanted[key], data.get(key[0], {}).get(wanted[key].tag, ())) for key in keys}

        try:
            return self._cache.reader.submit(read, wanted).result()
        finally:
            self._cache.reader.submit(release_memory)


def _appended(table: Table, last: Table) -> Table | None:
    """Return a table with the last record appended, None if its step is not later, as after a restart."""
    if not len(table.steps) or not len(last.steps) or table.steps[-1] > last.steps[0]:
        return None
    return tables.joined(table, tables.between(last, int(table.steps[-1]) + 1, LAST_STEP))
