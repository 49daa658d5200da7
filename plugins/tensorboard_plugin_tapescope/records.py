"""What TensorBoard has loaded of each run: the tables behind a listing, read once and kept for a while."""

import collections
import contextlib
import ctypes
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from tensorboard.data import provider

from tensorboard_plugin_tapescope import metadata, tables
from tensorboard_plugin_tapescope.listing import Listing, Run, Tag, described
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
LAST, SEEN = "last", "seen"
UNREADABLE = (ValueError, TypeError, OverflowError, MemoryError)
"""What TensorBoard raises where a tensor's bytes do not fit what it says of itself."""
LATEST = 1 << 62
"""A step that no run reaches."""


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
        self._listed: dict[str, Listing] = {}
        self.rows: dict[tuple[str, str], tuple[Run, dict[str, Any]]] = {}
        """By experiment and run: what is said of a run that has ended, and the run of which it is said."""
        self.reader = futures.ThreadPoolExecutor(1, "tapescope reader")
        """Reads for all of the server's threads, each of which would keep the memory of a read to itself."""
        self._lock, self._listing = threading.Lock(), threading.Lock()
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
        self, records: Records, ctx: Any, experiment: str, listing: Listing, steps: tuple[int, int] = (0, LATEST)
    ):
        self.runs, self.once = listing.runs, listing.once
        self._records, self._ctx, self._experiment = records, ctx, experiment
        self._listing, self._steps = listing, steps

    def within(self, first: int, last: int) -> "Snapshot":
        """The same moment, its tables of these steps alone."""
        return Snapshot(self._records, self._ctx, self._experiment, self._listing, (first, last))

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

    def seen(self, run: str, family: str) -> Table | None:
        """All records at first, and from then on the last of each look: enough for a line the size of a word.

        What came between two looks is not there, and need not be read, which for a run that writes would be all of it.
        """
        tag = self.runs[run].tags.get(family)
        last = self.last(run, family)
        if tag is None or last is None:
            return None
        key = (self._experiment, run, family, SEEN)
        kept = self._records.get(key)
        if kept and kept.tag == tag:
            return kept.table
        if kept and kept.grown < FRESH and kept.tag.family == tag.family and len(kept.table.steps) and len(last.steps):
            end = int(kept.table.steps[-1])
            if end <= last.steps[0]:
                table = tables.joined(kept.table, tables.between(last, end + 1, LATEST))
                return self._records.put(key, Kept(tag, table, kept.grown + 1))
        whole = self.within(0, LATEST).table(run, family)
        return whole and self._records.put(key, Kept(tag, whole))

    def row(self, run: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` says of a run; of one that has ended, what it said when the run came to where it is."""
        key = (self._experiment, run)
        of, row = self._records.rows.get(key, (None, {}))
        if of != self.runs[run]:
            row = make()
            if row["state"] == "ended":
                self._records.rows[key] = self.runs[run], row
        return row

    def preload(self, families: Sequence[str], last: bool) -> None:
        """Reads the families of all runs in one call, where many would wait for many answers.

        Those that are read whole are for `seen`: where something was, they are not needed.
        """
        wanted = {}
        for run, held in self.runs.items():
            for family in families:
                key = (self._experiment, run, family, *([LAST] if last else []))
                kept, tag = self._records.get(key if last else (*key, SEEN)), held.tags.get(family)
                if tag and not (kept and (kept.tag == tag or not last)):
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
