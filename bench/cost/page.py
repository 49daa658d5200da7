"""The results of `python -m bench.cost` as a page."""

import os
import platform

AIMS = {"unmeasured": 1.00, "default": 1.02, "lean": 1.08, "all": 1.20, "first call": 2.5, "memory": 1.05}


def machine():
    import keras
    import tensorflow as tf

    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        name = models[0] if models else name
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    )


def brief(result):
    """One line for the terminal."""
    return ", ".join(f"{key} {_short(value)}" for key, value in result.items())


def _short(value):
    if isinstance(value, dict):
        return f"{value['ratio']:.3f}" if "ratio" in value else "..."
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def ratios(table):
    """By part of the bench and program: its ratio to the plain one."""
    return {
        f"{key}: {name}": row["ratio"]
        for key, result in table["results"].items()
        for name, row in result.items()
        if isinstance(row, dict) and "ratio" in row and name not in ("plain", "tf.summary")
    }


def page(table):
    """The whole page, Markdown."""
    found = table["results"]
    quick = " A quick run, with few repeats: not to be quoted." if table["quick"] else ""
    failed = f" Failed, and not here: {', '.join(table['failed'])}." if table["failed"] else ""
    head = [
        "# What measuring costs",
        "",
        f"Made by `make bench` in {table['minutes']} minutes; all numbers are in `docs/overhead.json`.{quick}{failed}",
        f"Machine: {table['machine']}.",
        "",
        "Ratios to the same training without measuring: medians of interleaved repeats, with half the width of their "
        "95 % interval; in brackets the ratio of processor times. Bold is what misses its aim by more than that. "
        "*Floor*: the time to read once all that is measured, at the bandwidth of this machine's memory, and what "
        "measuring a step takes as a multiple of it. Tensors that the step has just written are often still in the "
        "cache, so a multiple below 1 is possible.",
    ]
    sections = (_steps, _first_calls, _depth, _memory, _fit, _rest, lambda _: _again(table))
    return "\n".join([*head, *(line for section in sections for line in section(found))]) + "\n"


def _table(heading, columns, rows, words=""):
    """A section with a table; nothing where it has no rows."""
    if not rows:
        return []
    lines = ["", f"## {heading}", "", *([words, ""] if words else [])]
    return [*lines, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(r)} |" for r in rows)]


def _steps(found):
    from bench.cost.networks import ABOUT

    programs = ("unmeasured", "lean", "all")
    rows = [["*aim*", "", "", *(f"{AIMS[k]:.2f}" for k in (*programs, "default")), "", "", ""]]
    for key, row in found.items():
        if not key.startswith("steps"):
            continue
        _, name, kind = key.split(" ", 2)
        floor, plain = found.get(f"steps {name} float32", row)["floor"]["ms"], row["plain"]["ms"]
        loop = found.get(f"loops {name} {kind}", {}).get("default")
        summary = ""
        if "tf.summary" in row:
            times = (row["tf.summary"]["ratio"] - 1) / max(1e-9, row["all"]["ratio"] - 1)
            summary = f"{row['tf.summary']['ratio']:.1f} ({times:.0f} x our overhead)"
        rows.append(
            [
                *(ABOUT[name], kind.replace(" jit", ", XLA"), f"{plain:.2f}"),
                *(_ratio(row.get(program), AIMS[program]) for program in programs),
                *(_ratio(loop, AIMS["default"]), summary, f"{floor:.2f}", f"{(row['all']['ms'] - plain) / floor:.1f}"),
            ]
        )
    columns = "network", "", "plain, ms", "not measured", "every step, no histograms", "every step, all"
    more = "every tenth step, all, recorded", "`tf.summary` in the step", "floor, ms", "x floor"
    return _table("A step", [*columns, *more], rows)


def _first_calls(found):
    rows = []
    for key, row in found.items():
        if "first call" in row:
            first = row["first call"]
            what = key[6:].replace(" jit", ", XLA") if key.startswith("steps") else f"chain of {key[6:]} layers of 64"
            rows.append([what, f"{first['plain_s']:.2f}", f"{first['ratio']:.2f}"])
    words = (
        "Processor time until both programs have run once (tracing, rewriting, compiling), to that of the plain one; "
        f"aim {AIMS['first call']}."
    )
    return _table("The first call", ["", "plain, s", "ratio"], rows, words)


def _depth(found):
    rows = []
    for key, row in found.items():
        if key.startswith("depth"):
            plain, measured = row["plain"]["ms"], row["all"]["ms"]
            layer = 1000 * (measured - plain) / int(key[6:])
            rows.append([key[6:], f"{plain:.2f}", f"{measured:.2f}", _ratio(row["all"]), f"{layer:.0f}"])
    words = "A chain of layers of 64 units, batch 64; every step measured, all."
    return _table("Depth", ["layers", "plain, ms", "measured, ms", "ratio", "microseconds a layer"], rows, words)


def _memory(found):
    from bench.cost.networks import ABOUT

    rows = []
    for name, about in ABOUT.items():
        pair = [found.get(f"memory {name} {kind}") for kind in ("plain", "measured")]
        if all(pair):
            plain, measured = (one["peak_mib"] for one in pair)
            rows.append([about, f"{plain:.0f}", f"{measured:.0f}", f"{measured / plain:.3f}"])
    words = f"The process' largest resident memory, every step measured, all; aim {AIMS['memory']}."
    return _table("Memory", ["network", "plain, MiB", "measured, MiB", "ratio"], rows, words)


def _fit(found):
    rows = [[name, f"{row['ms']:.2f}", f"{row['ratio']:.2f}"] for name, row in found.get("fit mlp", {}).items()]
    return _table("`model.fit`", ["callback", "ms a step", "ratio"], rows, "The MLP, in float32.")


def _rest(found):
    lines = []
    if record := found.get("record"):
        lines.append(
            f"- A record of the chain of 100 layers: {record['numbers']} numbers in {record['families']} families take "
            f"{record['own_bytes']} bytes, {record['bytes_a_number']:.2f} a number (aim: 4, and 300 a family); what "
            f"TensorBoard's own tabs get beside it {record['builtin_tabs_bytes']}."
        )
    if disk := found.get("slow_disk"):
        lines.append(
            f"- A disk of 1 MB/s, every step of a chain of 10 layers measured and recorded: {disk['steps']} steps took "
            f"{disk['ratio']:.3f} times as long as with a fast one (aim: 1.01); {disk['left_out']} records did not fit "
            f"the queue, and were counted and said. Writing out the queue at the end: {disk['closing_s']:.1f} s."
        )
    if grown := found.get("growth"):
        lines.append(
            f"- {grown['steps']} steps of the smallest model, every tenth measured: over the second half resident "
            f"memory grew by {grown['mib_per_100000_steps']:.1f} MiB in 100,000 steps; threads "
            f"{_fromto(grown['threads'])}, open files {_fromto(grown['files'])}, a step "
            f"{_fromto(grown['step_ms'], '.3f')} ms."
        )
    estimates = {k.split()[1]: r["default"] for k, r in found.items() if k.startswith("loops") and "float32" in k}
    if estimates:
        texts = [
            f"{n} {r['own estimate'][0]:.3f} ± {r['own estimate'][1]:.3f} (here {r['ratio']:.3f})"
            for n, r in estimates.items()
        ]
        lines.append(f"- What the schedule itself estimates (`measure_overhead_pct`): {', '.join(texts)}.")
    return ["", "## The record, the disk, and many steps", "", *lines] if lines else []


def _again(table):
    """How far this run is from the one before it."""
    if not table["before"]:
        return []
    now, before = ratios(table), table["before"]
    rows = [
        [key, f"{before[key]:.3f}", f"{now[key]:.3f}", f"{now[key] - before[key]:+.3f}"] for key in now if key in before
    ]
    words = "The same ratios in the run before this one, on the same machine."
    return _table("Another run", ["", "before", "now", "difference"], rows, words)


def _ratio(row, aim=None):
    if row is None:
        return ""
    missed = aim is not None and row["ratio"] - row["error"] > aim
    ratio = f"{row['ratio']:.3f}"
    return f"{f'**{ratio}**' if missed else ratio} ± {row['error']:.3f} ({row['cpu_ratio']:.2f})"


def _fromto(pair, form=""):
    return f"{pair[0]:{form}} to {pair[1]:{form}}"
