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
    load = os.getloadavg()[0]
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}; load {load:.1f} at the start"
    )


def brief(result):
    """One line for the terminal."""
    return ", ".join(f"{key} {_short(value)}" for key, value in result.items())


def _short(value):
    if isinstance(value, dict):
        return f"{value['ratio']:.3f}" if "ratio" in value else "..."
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def page(table):
    from bench.cost.networks import ABOUT

    found = table["results"]
    names = [name for name in ABOUT if f"steps {name} float32" in found]
    lines = [
        "# What measuring costs",
        "",
        f"Made by `make bench` in {table['seconds'] / 60:.0f} minutes; all numbers are in overhead.json beside it."
        + (" A quick run, with few repeats: not to be quoted." if table["quick"] else ""),
        f"Machine: {table['machine']}.",
        "",
        "Ratios to the same training without measuring: medians of interleaved repeats, with half the width of their "
        "95 % interval; in brackets the ratio of processor times. *Floor*: the time to read once all that is measured, "
        "at the bandwidth of this machine's memory, and what measuring a step takes as a multiple of it. Tensors that "
        "the step has just written are often still in the cache, so a multiple below 1 is possible.",
        "",
        "## A step",
        "",
        "| network | | plain, ms | not measured | every step, no histograms | every step, all | every tenth step, all, "
        "recorded | `tf.summary` in the step | floor, ms | x floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| *aim* | | | {' | '.join(f'{AIMS[k]:.2f}' for k in ('unmeasured', 'lean', 'all', 'default'))} | | | |",
    ]
    for name in names:
        floor = found[f"steps {name} float32"]["floor"]["ms"]
        for kind in ("float32", "bfloat16", "float32 jit", "bfloat16 jit"):
            row = found.get(f"steps {name} {kind}")
            if row is None:
                continue
            loop = found.get(f"loops {name} {kind}", {}).get("default")
            plain = row["plain"]["ms"]
            times = (row["all"]["ms"] - plain) / floor
            cells = [_ratio(row.get("unmeasured")), _ratio(row.get("lean")), _ratio(row["all"]), _ratio(loop)]
            summary = f"{row['tf.summary']['ratio']:.1f}" if "tf.summary" in row else ""
            if "tf.summary" in row:
                summary += (
                    f" ({(row['tf.summary']['ratio'] - 1) / max(1e-9, row['all']['ratio'] - 1):.0f} x our overhead)"
                )
            kind = kind.replace(" jit", ", XLA")
            cells = [ABOUT[name], kind, f"{plain:.2f}", *cells, summary, f"{floor:.2f}", f"{times:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## The first call",
        "",
        "Processor time until both programs have run once (tracing, rewriting, compiling), to that of the plain one; "
        f"aim {AIMS['first call']}.",
        "",
        "| | plain, s | ratio |",
        "|---|---|---|",
    ]
    for key, row in found.items():
        if key.startswith(("steps", "depth")):
            first = row["first call"]
            what = key[6:].replace(" jit", ", XLA") if key.startswith("steps") else f"chain of {key[6:]} layers of 64"
            lines.append(f"| {what} | {first['plain_s']:.2f} | {first['ratio']:.2f} |")
    lines += [
        "",
        "## Depth",
        "",
        "A chain of layers of 64 units, batch 64; every step measured, all.",
        "",
        "| layers | plain, ms | measured, ms | ratio | microseconds a layer |",
        "|---|---|---|---|---|",
    ]
    for key, row in found.items():
        if key.startswith("depth"):
            more = 1000 * (row["all"]["ms"] - row["plain"]["ms"]) / int(key[6:])
            lines.append(
                f"| {key[6:]} | {row['plain']['ms']:.2f} | {row['all']['ms']:.2f} | {_ratio(row['all'])} | {more:.0f} |"
            )
    lines += [
        "",
        "## Memory",
        "",
        f"The process' largest resident memory, every step measured, all; aim {AIMS['memory']}.",
        "",
        "| network | plain, MiB | measured, MiB | ratio |",
        "|---|---|---|---|",
    ]
    for name in names:
        plain, measured = (found[f"memory {name} {kind}"]["peak_mib"] for kind in ("plain", "measured"))
        lines.append(f"| {ABOUT[name]} | {plain:.0f} | {measured:.0f} | {measured / plain:.3f} |")
    lines += ["", "## `model.fit`", "", "| callback | ms a step | ratio |", "|---|---|---|"]
    lines += [f"| {name} | {row['ms']:.2f} | {row['ratio']:.2f} |" for name, row in found["fit mlp"].items()]
    record, disk, grown = found["record"], found["slow_disk"], found["growth"]
    lines += [
        "",
        "## The record, the disk, and many steps",
        "",
        f"- A record of the chain of 100 layers: {record['numbers']} numbers in {record['families']} families take "
        f"{record['own_bytes']} bytes, {record['bytes_a_number']:.2f} a number (aim: 4, and 300 a family); what "
        f"TensorBoard's own tabs get beside it {record['builtin_tabs_bytes']}.",
        f"- A disk of 1 MB/s, every step of a chain of 10 layers measured and recorded: {disk['steps']} steps took "
        f"{disk['ratio']:.3f} times as long as with a fast one (aim: 1.01); {disk['left_out']} records did not fit the "
        f"queue, and were counted and said. Writing out the queue at the end: {disk['closing_s']:.1f} s.",
        f"- {grown['steps']} steps of the smallest model, every tenth measured: over the second half resident memory "
        f"grew by {grown['mib_per_100000_steps']:.1f} MiB in 100,000 steps; threads {_fromto(grown['threads'])}, open "
        f"files {_fromto(grown['files'])}, a step {_fromto(grown['step_ms'], '.3f')} ms.",
    ]
    estimates = [(n, found[f"loops {n} float32"]["default"]) for n in names if f"loops {n} float32" in found]
    if estimates:
        texts = [
            f"{n} {r['own estimate'][0]:.3f} +- {r['own estimate'][1]:.3f} (here {r['ratio']:.3f})"
            for n, r in estimates
        ]
        lines += [
            "- What the schedule itself estimates, and writes as `measure_overhead_pct`: " + ", ".join(texts) + "."
        ]
    return "\n".join(lines) + "\n"


def _ratio(row):
    return "" if row is None else f"{row['ratio']:.3f} ± {row['error']:.3f} ({row['cpu_ratio']:.2f})"


def _fromto(pair, form=""):
    return f"{pair[0]:{form}} to {pair[1]:{form}}"
