"""Score the rules on programs drawn at random, and write the table into docs/calibration.md.

    python -m bench.programs [--seed=7] [--count=120] [--write]

A seed that thresholds were chosen on is not held out any more: take the next one.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from bench.calibration.page import wilson
from bench.programs import drawn, table

import tapescope
from tapescope.rules import causes
from tapescope.rules.finding import Finding


def main() -> None:
    """Train, score, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7, help="of the programs (default: %(default)s)")
    parser.add_argument("--count", type=int, default=120, help="half are faulty, half healthy (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/calibration.md")
    options = parser.parse_args()
    outcomes = []
    for index in range(options.count):
        outcomes.append(_outcome(options.seed, index))
        print(outcomes[-1].line(), file=sys.stderr, flush=True)
    text = table.drawn_table(outcomes, options.seed, wilson)
    if options.write:
        table.replace_section(pathlib.Path("docs/calibration.md"), "drawn programs", text)
    print(text)


def _outcome(seed: int, index: int) -> table.Outcome:
    keras.utils.set_random_seed(seed * 1000 + index)
    keras.backend.clear_session()
    program = drawn.draw(seed, index)
    return table.Outcome(
        program.name, program.fault, program.rules, tuple((f.rule, f.layer) for f, _ in train_and_check(program))
    )


def train_and_check(program: drawn.Program) -> list[tuple[Finding, Finding | None]]:
    """Return the warnings and errors about a program, each with its cause, the likeliest cause first."""
    epochs = -(-program.steps * program.batch // len(program.x))
    with tempfile.TemporaryDirectory() as logdir, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monitor = tapescope.Monitor(logdir, tapescope.every(3), histograms=False)
        program.model.fit(
            program.x[: program.steps * program.batch],
            program.y[: program.steps * program.batch],
            batch_size=program.batch,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[monitor],
        )
        findings = tapescope.check(tapescope.Run(logdir))
    return [(f, cause) for f, cause in causes.by_cause(findings) if f.severity != "info"]


if __name__ == "__main__":
    main()
