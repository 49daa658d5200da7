"""Score the rules on published faulty programs and their fixed versions, which lie outside of this repository.

    python -m bench.programs.published DIR [--seeds=2] [--results=FILE] [--write]

DIR has `open/caseNN_*.py`, `common.py` and `data/`. Each program trains its faulty and its fixed version under Monitor
and appends a line of JSON to the file in FAULTY_OUT: `case`, `version`, `seed`, and `check`, the findings as
`severity:rule[layer]@step`. With --results the lines in FILE are scored, and nothing is trained.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.calibration.page import wilson
from bench.programs import table


class Published(NamedTuple):
    """Known facts about one program."""

    kind: str
    """N numbers of the training, S scale of the data, O output, loss and labels, H slow or short, G capacity and
    generalization, 0 no fault that shows."""
    fault: str
    rules: tuple[str, ...]
    """Rules that name a published fault."""
    others: str = ""
    """Published results: UMLAUT, DeepLocalize, AUTOTRAINER and DeepDiagnosis as identified, localized, fix named (Y, n,
    - not run), from DeepDiagnosis' paper; then detected/diagnosed by UMLAUT, AUTOTRAINER, DeepLocalize and DeepFD."""
    still: str = ""
    """Faults that remain in the fixed version, judged before the rules were written; of case 35 after."""


_OUTPUT = ("output_activation",)
_SCALE = ("unscaled_data",)
_LOSS = ("loss_mismatch",)
_RANGE = ("targets_out_of_range",)
_RATE = ("update_too_large",)
_SLOW = ("slow_learning",)

PROGRAMS = {
    1: Published(
        "N",
        "no activations, MSE, rate 3",
        _RATE + _LOSS,
        "UM YYY DL YYn AT Y-n DD YYY; 1/1 1/1 1/1 1/1",
        still="rate 3 stays",
    ),
    3: Published("H", "MAE, rate, epochs", _LOSS + _SLOW, "UM --- DL Ynn AT --- DD YYY; 1/1 0/0 1/0 1/1"),
    5: Published(
        "O",
        "ReLU for targets below 0",
        _RANGE,
        "UM --- DL nnn AT --- DD YYY; 1/0 0/0 0/0 1/0",
        still="targets above what tanh gives",
    ),
    7: Published(
        "O",
        "softmax of one unit",
        _OUTPUT,
        "UM Ynn DL YYn AT --- DD YYY; 1/0 0/0 1/0 1/0",
        still="raw data, hardly learned",
    ),
    9: Published(
        "O",
        "softmax of one unit, rate",
        _OUTPUT,
        "UM nnn DL YYn AT --- DD YYY; 1/0 0/0 1/1 1/1",
        still="hardly learned",
    ),
    11: Published("S", "raw data, rate, activation", _SCALE, "UM --- DL YYn AT Y-n DD nnn; 1/0 0/0 1/0 1/1"),
    13: Published("N", "rate 0.1", _RATE, "UM --- DL Ynn AT --- DD YYn; 1/1 0/0 1/0 1/1"),
    15: Published("O", "labels / 255", ("labels_degenerate",), "UM Ynn DL YYn AT Y-n DD YYY; 1/0 0/0 0/0 1/1"),
    17: Published("S", "raw x and y", _SCALE, "UM --- DL Ynn AT --- DD YYY; 1/1 0/0 1/0 1/0"),
    19: Published("S", "raw data, softmax and MSE", _SCALE + _LOSS, "UM YnY DL YYn AT Y-Y DD YYY; 1/0 1/1 1/0 1/0"),
    21: Published("O", "labels 0, 1, 2 for one sigmoid", _RANGE, "UM --- DL --- AT --- DD ---; 1/1 1/1 0/0 1/1"),
    23: Published("S", "raw data, ReLU output", _SCALE + _OUTPUT, "UM --- DL YYn AT Y-n DD YYY; 1/1 0/0 1/0 1/0"),
    25: Published("O", "ReLU and cross-entropy", _OUTPUT, "UM --- DL Ynn AT Y-n DD YYY; 1/1 1/1 1/1 1/0"),
    27: Published("S", "pixels of 0 to 255", _SCALE, "UM Y-Y DL YYn AT Y-Y DD Ynn; 1/0 0/0 1/0 1/1"),
    29: Published(
        "O", "loss: several classes an input", _LOSS, "UM --- DL YYn AT Y-n DD YYn; 1/0 0/0 1/0 1/0", still="raw data"
    ),
    31: Published("H", "rate, loss, epochs", _SLOW, "-; 1/0 0/0 0/0 1/1"),
    33: Published("G", "missing layers", (), still="raw data"),
    35: Published("G", "no dropout, epochs", ("overfitting",), "-; 1/0 0/0 1/0 0/0", "overfits as well, later"),
    37: Published("H", "rate 1e-4, loss", _SLOW),
    39: Published("0", "batch size", ()),
    41: Published("S", "pixels of 0 to 255", _SCALE),
    43: Published("N", "rate -1000", _RATE),
    45: Published("O", "logits into probabilities, pixels, dropout", _LOSS + _SCALE),
    47: Published("N", "eight sigmoid layers", ("vanishing", "saturation")),
    49: Published("N", "34 layers, dying ReLU", ("vanishing", "dead_units")),
    51: Published("N", "weights of N(0, 1)", ("poor_initialization",)),
    53: Published("N", "no output activation: log of negative; weights", ("poor_initialization", "non_finite")),
    55: Published("G", "dropout 0.5 in a tiny network", ()),
    57: Published("N", "sum for mean: 100 times the rate", _RATE),
    59: Published(
        "N",
        "optimizer, rate (targets that do not sum to 1)",
        _RATE + _LOSS,
        "-; 1/0 0/0 1/0 1/0",
        still="targets do not sum to 1",
    ),
    61: Published("O", "labels 0..9 for one sigmoid, pixels", _RANGE),
    63: Published("O", "softmax of one unit", _OUTPUT),
}
"""The open programs by number."""


def main() -> None:
    """Train, score, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIR", help="directory of the programs")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each version (default: %(default)s)")
    parser.add_argument("--results", default="", help="file with lines of JSON: score these, train nothing")
    parser.add_argument("--write", action="store_true", help="write the table into docs/calibration.md")
    options = parser.parse_args()
    file = options.results or _train(pathlib.Path(options.directory), options.seeds)
    text = published_table([json.loads(line) for line in pathlib.Path(file).read_text().splitlines()])
    if options.write:
        table.replace_section(pathlib.Path("docs/calibration.md"), "published programs", text)
    print(text)


def _train(directory: pathlib.Path, seeds: int) -> str:
    """Run every program, and return the file with the results."""
    work = tempfile.mkdtemp()
    results = os.path.join(work, "results.jsonl")
    path = os.pathsep.join([str(directory.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "FAULTY_OUT": results, "FAULTY_RUNS": os.path.join(work, "runs")}
    for program in sorted((directory / "open").glob("case*.py")):
        for seed in range(seeds):
            print(f"{program.stem}, seed {seed}", file=sys.stderr, flush=True)
            command = [sys.executable, str(program.resolve()), "both", str(seed)]
            subprocess.run(command, cwd=work, env=environment, check=False, capture_output=True)
    return results


def published_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of the programs: what was said of the faulty and of the fixed version of each."""
    lines = ["| # | kind | published fault | faulty: warnings and errors | cause named | fixed | published tools |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    named: dict[str, list[bool]] = {}
    alarms = []
    for number, program in PROGRAMS.items():
        of_program = [r for r in results if int(re.findall(r"\d+", r["case"])[0]) == number]
        faulty = [r for r in of_program if r["version"] == "buggy"]
        fixed = [r for r in of_program if r["version"] == "fixed"]
        if not faulty or not fixed:
            continue
        hits = [any(rule in program.rules for rule in _rules(r)) for r in faulty]
        if program.kind != "0":
            named.setdefault(program.kind, []).extend(hits)
        alarms += [(bool(_rules(r)), bool(program.still)) for r in fixed]
        said = ", ".join(dict.fromkeys(rule for r in faulty for rule in _rules(r))) or "-"
        of_fixed = ", ".join(dict.fromkeys(rule for r in fixed for rule in _rules(r))) or "-"
        of_fixed += f" (still: {program.still})" if program.still else ""
        shown = "none" if program.kind == "0" else f"{sum(hits)} of {len(hits)}"
        cells = (number, program.kind, program.fault, said, shown, of_fixed, program.others or "-")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| kind | trainings | cause named |", "| --- | --- | --- |"]
    for kind, hits in named.items():
        lines.append(f"| {kind} | {len(hits)} | {sum(hits)} |")
    everything = [hit for hits in named.values() for hit in hits]
    lines.append(f"| all | {len(everything)} | {wilson(sum(everything), len(everything))} |")
    false = sum(warned and not still for warned, still in alarms)
    warned = sum(warned for warned, _ in alarms)
    lines.append("")
    lines.append(
        f"Trainings of fixed programs with a warning or an error: {warned} of {len(alarms)}, {false} of them where "
        "nothing is known to be wrong still."
    )
    return "\n".join(lines)


def _rules(result: dict[str, Any]) -> list[str]:
    """Return the rules of the warnings and errors of one training, in their order."""
    found = [re.match(r"(\w+):(\w+)", text) for text in result.get("check", ())]
    return [match[2] for match in found if match and match[1] != "info"]


if __name__ == "__main__":
    main()
