"""All programs of the corpus, trained plainly and measured; `--page` writes docs/corpus.md.

    python -m tests.corpus [--page=docs/corpus.md] [--keep=FILE] [NAME...]

With `--keep`, results are added to a file, and the page has those of the file and of this call. The exit code is 1 if a
program differs from what is expected of it.
"""

import argparse
import json
import pathlib
import sys
import traceback

from tests import corpus
from tests.corpus import page
from tests.corpus.program import Result, compare, unexpected


def main() -> int:
    """Run the programs, write the page, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="programs or themes; all by default")
    parser.add_argument("--page", type=pathlib.Path, help="the page to write")
    parser.add_argument("--keep", type=pathlib.Path, help="a JSON file of results, to add these to")
    arguments = parser.parse_args()
    kept = json.loads(arguments.keep.read_text()) if arguments.keep and arguments.keep.exists() else {}
    results = {name: Result(**fields) for name, fields in kept.items()}
    failed = 0
    for program in corpus.programs():
        if arguments.names and not {program.name, program.theme} & set(arguments.names):
            continue
        try:
            results[program.name] = result = compare(program)
            problems = unexpected(program, result)
        except Exception:
            results.pop(program.name, None)
            problems = [traceback.format_exc()]
        failed += bool(problems)
        seconds = f"{results[program.name].seconds:.1f} s" if program.name in results else "failed"
        print(f"{program.theme}.{program.name}: {seconds}", *problems, sep="\n  ", flush=True)
        if arguments.keep:
            arguments.keep.write_text(json.dumps({name: each._asdict() for name, each in results.items()}))
    if arguments.page:
        arguments.page.write_text(page.text(corpus.programs(), results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
