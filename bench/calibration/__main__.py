"""Calibrate the rules: train every set-up, score the findings, and write docs/calibration.md.

    python -m bench.calibration [--jobs=2] [--only=REGEX [--write]] [--keep=DIR]

A faulty set-up has one fault, injected on purpose, so that the rule and the layers to be found are known. Thresholds
were chosen on the set-ups that are not held out. The figures that count are those of the held-out set-ups, which have
other networks, data and seeds.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import re
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from bench.calibration import page, results, setups
from bench.programs import table

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "calibration.md"


def main() -> None:
    """Train, score, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: %(default)s)")
    parser.add_argument(
        "--only", default="", help="train the set-ups whose part, family, name and seed match; print, write no page"
    )
    parser.add_argument("--keep", default="", help="directory for the trainings, which later calls read")
    parser.add_argument("--write", action="store_true", help="write the page even with --only")
    options = parser.parse_args()
    chosen = [i for i, setup in enumerate(setups.all_setups()) if re.search(options.only, setup.key)]
    measured = []
    context = multiprocessing.get_context("spawn")
    measure = functools.partial(results.measure, keep=options.keep)
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context, results.start_process) as pool:
        for result in pool.map(measure, chosen):
            measured.append(result)
            print(f"\r{len(measured)} of {len(chosen)}: {result.name}\x1b[K", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    text = page.page(measured, options.only)
    if options.write or not options.only:
        PAGE.write_text(table.keep_sections(PAGE, text))
    print(text)


if __name__ == "__main__":
    main()
