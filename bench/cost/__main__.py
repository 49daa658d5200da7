"""What measuring costs, all of it: `python -m bench.cost` prints the table, and writes it as JSON and as a page.

    python -m bench.cost [--quick] [--json=FILE] [--page=docs/overhead.md]

Every part runs in a process of its own. Ratios are to the same training without measuring, in the same process, the
programs interleaved. `--quick` runs a part of it, with few repeats: to see that it works.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from bench.cost import page


def jobs(quick):
    """(key of the result, function, arguments)."""
    nets = ("mlp",) if quick else ("mlp", "cnn", "resnet", "transformer")
    repeats = 6 if quick else 30
    for name in nets:
        for dtype in ("float32", "bfloat16"):
            yield f"steps {name} {dtype}", "steps.steps", (name, dtype, False, repeats)
        yield f"loops {name} float32", "steps.loops", (name, "float32", 3 if quick else 10, 20 if quick else 30)
        yield f"memory {name} plain", "limits.memory", (name, False)
        yield f"memory {name} measured", "limits.memory", (name, True)
    yield "loops mlp bfloat16", "steps.loops", ("mlp", "bfloat16", 3 if quick else 10, 20 if quick else 30)
    for name in nets:
        yield f"steps {name} float32 jit", "steps.steps", (name, "float32", True, repeats // 2)
    yield "steps mlp bfloat16 jit", "steps.steps", ("mlp", "bfloat16", True, repeats // 2)
    yield "fit mlp", "steps.fit", ("mlp", 3 if quick else 10)
    for layers in (10, 100) if quick else (10, 100, 500):
        yield f"depth {layers}", "limits.depth", (layers, repeats // 2)
    yield "record", "limits.record", ()
    yield "slow_disk", "limits.slow_disk", (100 if quick else 200,)
    yield "growth", "limits.growth", (2000 if quick else 100_000,)


def child(function, arguments):
    """Runs one part in this process, and prints its result as the last line."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    module, name = function.split(".")
    from importlib import import_module

    print(json.dumps(getattr(import_module(f"bench.cost.{module}"), name)(*arguments)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", default="docs/overhead.json")
    parser.add_argument("--page", default="docs/overhead.md")
    parser.add_argument("--only", default="", help="parts whose key has this in it")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], json.loads(given.child[1]))
        return 0
    results, failed, start = {}, [], time.time()
    for key, function, arguments in jobs(given.quick):
        if given.only not in key:
            continue
        command = [sys.executable, "-m", "bench.cost", "--child", function, json.dumps(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
        if done.returncode:
            failed.append(key)
            print(f"{key} failed:\n{done.stderr[-3000:]}", file=sys.stderr, flush=True)
            continue
        results[key] = json.loads(done.stdout.splitlines()[-1])
        print(f"{time.time() - start:5.0f} s  {key}: {page.brief(results[key])}", flush=True)
    if not given.only:
        about = {"machine": page.machine(), "quick": given.quick, "minutes": round((time.time() - start) / 60)}
        table = {**about, "failed": failed, "results": results, "before": before(given.json, about)}
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1)
            file.write("\n")
        text = page.page(table)
        with open(given.page, "w", encoding="utf-8") as file:
            file.write(text)
        print("\n" + text)
    return int(bool(failed))


def before(path, about):
    """The ratios of the run that this one replaces, if it was the same command on the same machine."""
    try:
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
    except (OSError, ValueError):
        return None
    return page.ratios(table) if all(table.get(k) == about[k] for k in ("machine", "quick")) else None


if __name__ == "__main__":
    sys.exit(main())
