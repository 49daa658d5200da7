"""10,000 requests over every route to tabs over 400 spoiled sets of runs; large runs; files cut at every byte."""

import os
import pathlib
import random
import resource
import sys
import tempfile
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

from bench.faults.rows import Row, told
from scripts.testbed import cut_files
from scripts.testbed.hostile import SMALL, Tab, good, request, spoiled
from scripts.testbed.synthetic import Spec

REQUESTS = 25
"""To each set of runs."""


def fuzzed(sets: int) -> Row:
    """No answer but 200, 400 and 404, and a good run beside the spoiled ones answers as it does alone."""
    failed, codes, disturbed = [], {200: 0, 400: 0, 404: 0}, 0
    alone = Tab({"good": good()})
    for seed in range(sets):
        rng = random.Random(seed)
        runs = {f"bad {i}": spoiled(rng, good(SMALL._replace(replicas=rng.choice([1, 2])))) for i in range(3)}
        tab = Tab({"good": good(), **runs})
        for _ in range(REQUESTS):
            route, asked = request(rng, ["good", *runs])
            try:
                codes[tab.checked(route, **asked).status_code] += 1
            except Exception as error:  # as a server would answer with a 500
                failed.append(f"{seed} {route} {asked}: {error}")
        mine, other = (t.get("view", view="flow", run="good").data for t in (tab, alone))
        disturbed += mine != other
    for line in failed[:5]:
        print(line[:300], file=sys.stderr)
    told_ = ", ".join(f"{n} x {code}" for code, n in codes.items())
    promise = f"{sets * REQUESTS} requests over all routes, to {sets} sets of spoiled runs"
    return Row(promise, f"{told_}, {len(failed)} x 500; {disturbed} good runs disturbed", not failed and not disturbed)


def large() -> Row:
    """Views of a run of 10,000 layers and of one of a million units: the largest answer, and the memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide, many = good(Spec(depth=10_000, units=1, histograms=False), 3), good(Spec(2, 1_000_000, histograms=False), 2)
    tab = Tab({"wide": wide, "many": many})
    asked = [("flow", "wide"), ("budget", "wide"), ("layer", "wide"), ("layer", "many"), ("flow", "many")]
    sizes = [len(tab.checked("view", view=view, run=run).data) for view, run in asked]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seen = f"largest answer {max(sizes) / 2**20:.1f} MiB, memory grows by {grown:.0f} MiB"
    return Row("10,000 layers, 1,000,000 units", seen, max(sizes) < 16 << 20 and grown < 1024)


def python_cut(root: pathlib.Path, every: int) -> Row:
    """A run's file cut at every byte, read by TensorBoard's Python loader."""
    content, ends = cut_files.write_run(root / "whole")
    directory = root / "logdir" / "cut"
    directory.mkdir(parents=True)
    lengths, wrong = range(0, len(content), every), 0
    for length in lengths:
        (directory / "events.out.tfevents.1").write_bytes(content[:length])
        tab, step = cut_files.tab_with_python_loader(root / "logdir"), cut_files.last_complete_step(ends, length)
        shown = cut_files.shown_steps(tab)
        right = shown == ({} if step < 0 else {"cut": step})
        wrong += not (right and (not shown or cut_files.is_complete_until(cut_files.recorded_steps(tab, "cut"), step)))
    promise = f"a file cut at {len(lengths):,} places, all routes, TensorBoard's Python loader"
    return Row(promise, f"no 500; {wrong} shown other than to the last whole record", not wrong)


def server_cut(root: pathlib.Path, every: int, spoiled: int) -> Row:
    """The same, and files with a byte changed, as runs beside a good one, read by the data server."""
    content, ends = cut_files.write_run(root / "whole")
    rng, lengths, wrong, strange = random.Random(0), list(range(0, len(content), every)), 0, 0
    batches = [lengths[i : i + 250] for i in range(0, len(lengths), 250)]
    for number, batch in enumerate(batches):
        logdir = root / f"logdir {number}"
        files = {f"cut {length}": content[:length] for length in batch}
        files |= {f"changed {i}": cut_files.change_byte(content, rng) for i in range(spoiled // len(batches))}
        for name, bytes_ in {**files, "good": content}.items():
            (logdir / name).mkdir(parents=True)
            (logdir / name / "events.out.tfevents.1").write_bytes(bytes_)
        expected = {f"cut {n}": step for n in batch if (step := cut_files.last_complete_step(ends, n)) >= 0}
        tab = cut_files.tab_with_data_server(logdir)
        found = cut_files.wait_for_steps(tab, {**expected, "good": cut_files.STEPS[-1]})
        wrong += sum(found.get(run) != step for run, step in expected.items())
        wrong += sum(not cut_files.is_complete_until(cut_files.recorded_steps(tab, run), step) for run, step in expected.items())
        strange += sum(
            not set(cut_files.recorded_steps(tab, r)) <= set(cut_files.STEPS) for r in found if r.startswith("changed")
        )
        strange += cut_files.recorded_steps(tab, "good") != list(cut_files.STEPS)
    promise = (
        f"a file cut at {len(lengths):,} places, {spoiled} with a byte changed, all routes, TensorBoard's data server"
    )
    seen = (
        f"no 500; {wrong} cut ones shown other than to the last whole record, {strange} changed ones with made-up steps"
    )
    return Row(promise, seen, not wrong and not strange)


def main() -> None:
    """The rows of the table."""
    warnings.simplefilter("ignore", RuntimeWarning)  # numbers at the end of float32
    quick = "--quick" in sys.argv
    rows = [fuzzed(20 if quick else 400), large()]
    with tempfile.TemporaryDirectory() as python, tempfile.TemporaryDirectory() as server:
        rows.append(python_cut(pathlib.Path(python), 97 if quick else 1))
        rows.append(server_cut(pathlib.Path(server), 97 if quick else 1, 20 if quick else 500))
    told(rows)


if __name__ == "__main__":
    main()
