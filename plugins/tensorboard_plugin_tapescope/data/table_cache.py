"""What TensorBoard has loaded of each run: the tables behind a listing, read once and kept for a while."""

import collections
import contextlib
import copy
import ctypes
import math
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from tensorboard.data import provider

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.data.listing import Listing, Run, Tag, described
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.tables import Table

KEEP_BYTES = 64 << 20
"""Of whole tables in memory; the least recently used go first."""
KEEP_SMALL_BYTES = 16 << 20
"""Of last records and of what lines the size of a word are drawn from: every poll needs them, so no table may push
them out."""
READ_BYTES = 64 << 20
"""Of one read: histograms of many layers are sampled by step to stay below it. gRPC itself ends at 256 MiB."""
ALL = 1_000_000  # 0 would mean none
LINE = 200
"""Records that a line the size of a word begins with."""
READING_SHARE = 0.05
"""Of the time a run that writes is read as a whole, at most: in between its tables grow by its last record alone."""

SAME_SECONDS = 0.2
"""For so long a listing serves the requests that follow on one another; the data server takes 40 ms to answer."""
LAST, SEEN = "last", "seen"
UNREADABLE = (ValueError, TypeError, OverflowError, MemoryError)
"""What TensorBoard raises where a tensor's bytes do not fit what it says of itself."""
LATEST = 1 << 62
"""A step that no run reaches."""


class Kept(NamedTuple):
    """A table in memory, of a tag as it stood then."""

    tag: Tag
    table: Table
    whole_until: int = LATEST
    """Behind this step records may be missing, which came between two looks."""
    again: float = 0.0
    """When it is due to be read as a whole, if anything may be missing; on time.monotonic's clock."""


class Keep:
    """Tables by key, the least recently used dropped where there is more than `limit` bytes. Safe between threads."""

    def __init__(self, limit: int):
        self._limit, self._lock = limit, threading.Lock()
        self._kept: collections.OrderedDict[tuple, Kept] = collections.OrderedDict()

    def get(self, key: tuple) -> Kept | None:
        """The table kept under the key, which becomes the last one to go."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple, kept: Kept) -> Kept:
        """Keeps a table, even one that alone is larger than the limit."""
        with self._lock:
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(k.table.values.nbytes for k in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
        return kept


class Records:
    """Keeps tables between requests. Safe to use from many threads."""

    def __init__(self, data_provider: Any):
        self.provider = data_provider
        self.whole, self.small = Keep(KEEP_BYTES), Keep(KEEP_SMALL_BYTES)
        self._listed: dict[str, Listing] = {}
        self.rows: dict[tuple[str, str], tuple[Run, dict[str, Any]]] = {}
        """By experiment and run: what is said of a run that has ended, and the run of which it is said."""
        self.reader = futures.ThreadPoolExecutor(1, "tapescope reader")
        """Reads for all of the server's threads, each of which would keep the memory of a read to itself."""
        self._listing = threading.Lock()
        self.reading = threading.Lock()
        """Held while tables are read: one at a time, or each of several requests would hold a copy of the same."""

    def snapshot(self, ctx: Any, experiment: str) -> "Snapshot":
        """The runs as they stand now."""
        with self._listing:  # who comes while TensorBoard is asked gets the same answer
            listed = self._listed.get(experiment)
            if listed is None or time.monotonic() - listed.asked > SAME_SECONDS:
                found = self.provider.list_tensors(ctx, experiment_id=experiment, plugin_name=metadata.PLUGIN_NAME)
                listed = self._listed[experiment] = Listing({name: described(found[name]) for name in sorted(found)})
        return Snapshot(self, ctx, experiment, listed)


class Snapshot:
    """The runs at one moment, and their tables: one request's view of the data."""

    def __init__(self, records: Records, ctx: Any, experiment: str, listing: Listing):
        self.runs, self.once = listing.runs, listing.once
        self.whole_until: list[int] = []
        """Of each table that was handed out and may miss records: the step behind which."""
        self._records, self._ctx, self._experiment = records, ctx, experiment
        self._first, self._last_step, self._complete = 0, LATEST, False

    def within(self, first: int, last: int) -> "Snapshot":
        """The same moment, its tables of these steps alone."""
        narrower = copy.copy(self)
        narrower._first, narrower._last_step = first, last
        return narrower

    def complete(self) -> "Snapshot":
        """The same moment, its tables with every record, however long it takes to read them."""
        slower = copy.copy(self)
        slower._complete = True
        return slower

    def table(self, run: str, family: str) -> Table | None:
        """The records of a run's family within the steps; None where it has none. The unchanged is not read again.

        Of a run that writes, the newest record and all that came before the table was last read as a whole, which
        `whole_until` tells.
        """
        tag = self.runs[run].tags.get(family)
        if tag is None:
            return None
        with self._records.reading:
            kept = self._grown(run, family, tag)
        if kept.whole_until != LATEST:
            self.whole_until.append(kept.whole_until)
        return tables.between(kept.table, self._first, self._last_step)

    def _grown(self, run: str, family: str, tag: Tag) -> Kept:
        key, began = (self._experiment, run, family), time.monotonic()
        kept = self._records.whole.get(key)
        if kept and kept.tag == tag and kept.whole_until == LATEST:
            return kept
        if kept and kept.tag.family == tag.family and began < kept.again and not self._complete:
            if kept.tag == tag:
                return kept
            until = min(kept.whole_until, kept.tag.last_step)
            if table := _longer(kept.table, self._last(run, family, tag)):
                return self._records.whole.put(key, Kept(tag, table, until, kept.again))
        table = self._read([run], [family], ALL)[run, family]
        took = time.monotonic() - began
        return self._records.whole.put(key, Kept(tag, table, again=began + took / READING_SHARE))

    def last(self, run: str, family: str) -> Table | None:
        """Only the last record: a thousand times less to read than all of them."""
        tag = self.runs[run].tags.get(family)
        return tag and self._last(run, family, tag)

    def _last(self, run: str, family: str, tag: Tag) -> Table:
        key = (self._experiment, run, family, LAST)
        kept = self._records.small.get(key)
        if kept is None or kept.tag != tag:
            kept = self._records.small.put(key, Kept(tag, self._read([run], [family], 1)[run, family]))
        return kept.table

    def seen(self, run: str, family: str) -> Table | None:
        """Some of the records at first, and from then on the last of each look: enough for a line the size of a word.

        What came between two looks is not there, and need not be read, which for a run that writes would be all of it.
        """
        tag = self.runs[run].tags.get(family)
        if tag is None:
            return None
        key = (self._experiment, run, family, SEEN)
        kept = self._records.small.get(key)
        if kept and kept.tag == tag:
            return kept.table
        table = _longer(kept.table, self._last(run, family, tag)) if kept and kept.tag.family == tag.family else None
        if table is None or len(table.steps) > 2 * LINE:
            table = self._read([run], [family], LINE)[run, family]
        return self._records.small.put(key, Kept(tag, table)).table

    def row(self, run: str) -> dict[str, Any] | None:
        """What was said of a run that has ended, where it is still all there is to say."""
        of, row = self._records.rows.get((self._experiment, run), (None, None))
        return row if of == self.runs[run] else None

    def keep_row(self, run: str, row: dict[str, Any]) -> dict[str, Any]:
        """Keeps what is said of a run, if it has ended."""
        if row["state"] == "ended":
            self._records.rows[self._experiment, run] = self.runs[run], row
        return row

    def preload(self, among: Sequence[str], families: Sequence[str], kind: str) -> None:
        """Reads what `last` or `seen` gives of several runs in one call, where many would wait for many answers."""
        wanted = {}
        for run in among:
            for family in families:
                key = (self._experiment, run, family, kind)
                kept, tag = self._records.small.get(key), self.runs[run].tags.get(family)
                if tag and not (kept and (kept.tag == tag or kind == SEEN)):
                    wanted[run, family] = key
        if len(wanted) < 2:
            return
        runs, tags = sorted({run for run, _ in wanted}), sorted({family for _, family in wanted})
        read = self._read(runs, tags, 1 if kind == LAST else LINE)
        for (run, family), key in wanted.items():
            self._records.small.put(key, Kept(self.runs[run].tags[family], read[run, family]))

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


def _longer(table: Table, last: Table) -> Table | None:
    """A table with the last record behind it; None where that can't be, as after a restart from an earlier step."""
    if not len(table.steps) or not len(last.steps) or table.steps[-1] > last.steps[0]:
        return None
    return tables.joined(table, tables.between(last, int(table.steps[-1]) + 1, LATEST))


def give_back() -> None:
    """Memory of a read goes back to the system; glibc would keep it, up to three times what was read."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
