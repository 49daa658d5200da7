"""Measure the whole cost of measuring, print it, and write it as JSON and as a page.

    python -m bench.cost [--quick] [--json=FILE] [--page=docs/overhead.md]

Every part runs in its own process. Ratios are to the same training without measuring, in the same process, with the
programs interleaved. `--quick` runs a few parts with few repeats, to see that the program works.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.cost import page


class Job(NamedTuple):
    """One part of the benchmark."""

    key: str
    """Its key in the results."""
    function: str
    """`module.function` within this package."""
    arguments: tuple[Any, ...] = ()


def jobs(quick: bool) -> Iterator[Job]:
    """Yield all parts in the order in which they run."""
    networks = ("mlp",) if quick else ("mlp", "cnn", "resnet", "transformer")
    repeats = 6 if quick else 30
    blocks = 3 if quick else 10
    steps_a_block = 20 if quick else 30
    for name in networks:
        for dtype in ("float32", "bfloat16"):
            yield Job(f"steps {name} {dtype}", "steps.steps", (name, dtype, False, repeats))
        yield Job(f"loops {name} float32", "steps.loops", (name, "float32", blocks, steps_a_block))
        yield Job(f"memory {name} plain", "limits.memory", (name, False))
        yield Job(f"memory {name} measured", "limits.memory", (name, True))
    yield Job("steps embedding float32", "steps.steps", ("embedding", "float32", False, repeats // 2))
    yield Job("loops mlp bfloat16", "steps.loops", ("mlp", "bfloat16", blocks, steps_a_block))
    for name in networks:
        yield Job(f"steps {name} float32 jit", "steps.steps", (name, "float32", True, repeats // 2))
    yield Job("steps mlp bfloat16 jit", "steps.steps", ("mlp", "bfloat16", True, repeats // 2))
    yield Job("fit mlp", "steps.fit", ("mlp", 3 if quick else 10))
    for layers in (10, 100) if quick else (10, 100, 500):
        yield Job(f"depth {layers}", "limits.depth", (layers, repeats // 2))
    yield Job("record", "limits.record")
    yield Job("slow_disk", "limits.slow_disk", (100 if quick else 200,))
    yield Job("growth", "limits.growth", (2000 if quick else 100_000,))


def run_child(function: str, arguments: list[Any]) -> None:
    """Run one part in this process and print its result as the last line."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    module, name = function.split(".")
    print(json.dumps(getattr(importlib.import_module(f"bench.cost.{module}"), name)(*arguments)))


def run(job: Job) -> dict[str, Any] | None:
    """Run one part in a process of its own; return its result, or None if it failed."""
    command = [sys.executable, "-m", "bench.cost", "--child", job.function, json.dumps(job.arguments)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"{job.key} failed:\n{done.stderr[-3000:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Run all parts; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run a few parts with few repeats")
    parser.add_argument("--json", default="docs/overhead.json", help="file of all numbers (default: %(default)s)")
    parser.add_argument("--page", default="docs/overhead.md", help="the page (default: %(default)s)")
    parser.add_argument("--only", default="", help="run parts whose key contains this, and write no file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.child[0], json.loads(options.child[1]))
        return 0
    results = {}
    failed = []
    start = time.time()
    for job in jobs(options.quick):
        if options.only not in job.key:
            continue
        result = run(job)
        if result is None:
            failed.append(job.key)
        else:
            results[job.key] = result
            print(f"{time.time() - start:5.0f} s  {job.key}: {page.brief(result)}", flush=True)
    if not options.only:
        write(options, results, failed, round((time.time() - start) / 60))
    return int(bool(failed))


def write(options: argparse.Namespace, results: dict[str, Any], failed: list[str], minutes: int) -> None:
    """Write the JSON file and the page, and print the page."""
    from bench.cost import networks

    table = {
        "machine": page.machine(),
        "quick": options.quick,
        "minutes": minutes,
        "networks": networks.TITLES,
        "failed": failed,
        "results": results,
    }
    table["before"] = previous_ratios(options.json, table)
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump(table, file, indent=1)
        file.write("\n")
    text = page.page(table)
    with open(options.page, "w", encoding="utf-8") as file:
        file.write(text)
    print("\n" + text)


def previous_ratios(path: str, table: dict[str, Any]) -> dict[str, float] | None:
    """Return the ratios of the run that this one replaces, if it ran the same command on the same machine."""
    try:
        with open(path, encoding="utf-8") as file:
            previous = json.load(file)
    except (OSError, ValueError):
        return None
    same = all(previous.get(key) == table[key] for key in ("machine", "quick"))
    return page.ratios(previous) if same else None


if __name__ == "__main__":
    sys.exit(main())
