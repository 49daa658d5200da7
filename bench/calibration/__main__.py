"""Calibrates the rules: trains every set-up, scores what was found, writes docs/calibration.md and prints its tables.

    python -m bench.calibration [--jobs=2] [--only=REGEX [--write]] [--keep=DIR]

Every faulty set-up has one fault, put there on purpose, so that the rule and the layers that ought to be found are
known. Thresholds were chosen on the set-ups that are not held out; the figures that count are those of the held-out
ones, whose networks, data and seeds are others.
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

from bench.calibration import measuring, page, setups

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "calibration.md"


def main() -> None:
    """See the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument(
        "--only", default="", help="train those of which part, family, name and seed match, print, and write no page"
    )
    parser.add_argument("--keep", default="", help="directory of trainings, which later calls need not repeat")
    parser.add_argument("--write", action="store_true", help="write the page though --only is given")
    given = parser.parse_args()
    chosen = [i for i, s in enumerate(setups.all_setups()) if re.search(given.only, s.key)]
    results = []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(given.jobs, context, measuring.start) as pool:
        for result in pool.map(functools.partial(measuring.measure, keep=given.keep), chosen):
            results.append(result)
            print(f"\r{len(results)} of {len(chosen)}: {result.name}\x1b[K", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    text = page.page(results, given.only)
    if given.write or not given.only:
        PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
