"""Requests to the tab over 400 sets of corrupted runs, over very large runs, and over files cut at every byte."""

import os
import pathlib
import random
import resource
import sys
import tempfile
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

from bench.faults import attacks
from bench.faults.row import Row, print_rows
from scripts.testbed.cut_files import (
    STEPS,
    change_byte,
    is_complete_until,
    last_complete_step,
    recorded_steps,
    shown_steps,
    tab_with_data_server,
    tab_with_python_loader,
    wait_for_steps,
    write_run,
)
from scripts.testbed.hostile import SMALL, Tab, good, request, spoiled
from scripts.testbed.synthetic import Spec

REQUESTS = 25
"""Requests to each set of runs."""


def fuzzed(sets: int) -> Row:
    """Check that all answers are 200, 400 or 404, and that a good run is not affected by corrupted ones."""
    failed = []
    codes = {200: 0, 400: 0, 404: 0}
    affected = 0
    alone = Tab({"good": good()})
    for seed in range(sets):
        rng = random.Random(seed)
        runs = {f"bad {i}": spoiled(rng, good(SMALL._replace(replicas=rng.choice([1, 2])))) for i in range(3)}
        tab = Tab({"good": good(), **runs})
        for _ in range(REQUESTS):
            route, asked = request(rng, ["good", *runs])
            try:
                codes[tab.checked(route, **asked).status_code] += 1
            except Exception as error:  # a server would answer with 500
                failed.append(f"{seed} {route} {asked}: {error}")
        answers = [each.get("view", view="flow", run="good").data for each in (tab, alone)]
        affected += answers[0] != answers[1]
    for line in failed[:5]:
        print(line[:300], file=sys.stderr)
    counts = ", ".join(f"{n} x {code}" for code, n in codes.items())
    test = f"{sets * REQUESTS} requests over all routes, to {sets} sets of corrupted runs"
    result = f"{counts}, {len(failed)} x 500; {affected} good runs affected"
    return Row(test, result, not failed and not affected)


def large() -> Row:
    """Request views of a run of 10,000 layers and of one with a million units."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide = good(Spec(depth=10_000, units=1, histograms=False), 3)
    many = good(Spec(depth=2, units=1_000_000, histograms=False), 2)
    tab = Tab({"wide": wide, "many": many})
    requests = [("flow", "wide"), ("budget", "wide"), ("layer", "wide"), ("layer", "many"), ("flow", "many")]
    sizes = [len(tab.checked("view", view=view, run=run).data) for view, run in requests]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    result = f"largest answer {max(sizes) / 2**20:.1f} MiB, memory grows by {grown:.0f} MiB"
    return Row("10,000 layers, 1,000,000 units", result, max(sizes) < 16 << 20 and grown < 1024)


def python_cut(root: pathlib.Path, every: int) -> Row:
    """Cut a run's file at every byte and read it by TensorBoard's Python loader."""
    content, ends = write_run(root / "whole")
    directory = root / "logdir" / "cut"
    directory.mkdir(parents=True)
    lengths = range(0, len(content), every)
    wrong = 0
    for length in lengths:
        (directory / "events.out.tfevents.1").write_bytes(content[:length])
        tab = tab_with_python_loader(root / "logdir")
        step = last_complete_step(ends, length)
        shown = shown_steps(tab)
        right = shown == ({} if step < 0 else {"cut": step})
        wrong += not (right and (not shown or is_complete_until(recorded_steps(tab, "cut"), step)))
    test = f"a file cut at {len(lengths):,} places, all routes, TensorBoard's Python loader"
    return Row(test, f"no 500; {wrong} not shown up to the last complete record", not wrong)


def server_cut(root: pathlib.Path, every: int, spoiled: int) -> Row:
    """Read the same cut files, and files with a byte changed, by the data server next to a good run."""
    content, ends = write_run(root / "whole")
    rng = random.Random(0)
    lengths = list(range(0, len(content), every))
    batches = [lengths[i : i + 250] for i in range(0, len(lengths), 250)]
    wrong = 0
    invented = 0
    for number, batch in enumerate(batches):
        logdir = root / f"logdir {number}"
        files = {f"cut {length}": content[:length] for length in batch}
        files |= {f"changed {i}": change_byte(content, rng) for i in range(spoiled // len(batches))}
        files["good"] = content
        for name, data in files.items():
            (logdir / name).mkdir(parents=True)
            (logdir / name / "events.out.tfevents.1").write_bytes(data)
        expected = {f"cut {n}": step for n in batch if (step := last_complete_step(ends, n)) >= 0}
        tab = tab_with_data_server(logdir)
        found = wait_for_steps(tab, {**expected, "good": STEPS[-1]})
        wrong += sum(found.get(run) != step for run, step in expected.items())
        wrong += sum(not is_complete_until(recorded_steps(tab, run), step) for run, step in expected.items())
        changed = [run for run in found if run.startswith("changed")]
        invented += sum(not set(recorded_steps(tab, run)) <= set(STEPS) for run in changed)
        invented += recorded_steps(tab, "good") != list(STEPS)
    test = (
        f"a file cut at {len(lengths):,} places, {spoiled} with a byte changed, all routes, TensorBoard's data server"
    )
    result = (
        f"no 500; {wrong} cut files not shown up to the last complete record, {invented} changed files with invented "
        "steps"
    )
    return Row(test, result, not wrong and not invented)


def main() -> None:
    """Print the rows of the table."""
    warnings.simplefilter("ignore", RuntimeWarning)  # overflow of numbers near the limits of float32
    quick = "--quick" in sys.argv
    rows = [fuzzed(20 if quick else 400), large(), *attacks.on_the_tab()]
    with tempfile.TemporaryDirectory() as python, tempfile.TemporaryDirectory() as server:
        rows.append(python_cut(pathlib.Path(python), 97 if quick else 1))
        rows.append(server_cut(pathlib.Path(server), 97 if quick else 1, 20 if quick else 500))
    print_rows(rows)


if __name__ == "__main__":
    main()
