"""What becomes of training and records when things go wrong; writes docs/faults.md. `make faults`, half an hour or so.

    python -m bench.faults [--quick] [--only NAME] [--table docs/faults.md]

Each part is a function that returns rows of the table: what was done, what was seen, and whether that is as promised.
Parts run in processes of their own, so that none meets what another left behind. Exits with 1 where a promise fails.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

from bench.faults.rows import Row

ROOT = pathlib.Path(__file__).parents[2]
PARTS = {
    "training": "Training",
    "nonfinite": "NaN and infinity",
    "files": "Files",
    "disk": "Disks",
    "long": "A long run",
    "tab": "The tab",
    "load": "Load",
}
"""Each a module, bench.faults.NAME, and a section of the page."""


WORDS = """# Faults, load and hostile input

Made by `make faults` (`bench/faults`); the same in small is among the tests.
"""


def run(part: str, quick: bool) -> list[Row]:
    """One part in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", f"bench.faults.{part}", *(["--quick"] if quick else [])]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    rows = [Row(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode or not rows:
        tail = " ".join(done.stderr.split()[-40:])
        rows.append(Row(part, f"ended with {done.returncode}: {tail}", False))
    return rows


def main() -> int:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, to try the program")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--table", type=pathlib.Path)
    given = parser.parse_args()
    rows = {part: run(part, given.quick) for part in ([given.only] if given.only else PARTS)}
    tables = {part: table(found) for part, found in rows.items()}
    print("\n".join(tables.values()))
    if given.table:
        old = given.table.read_text() if given.table.exists() else ""
        given.table.write_text(page(sections(old) | tables))
    return int(not all(row.kept for found in rows.values() for row in found))


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = [f"| {row.promise} | {row.seen} | {'yes' if row.kept else '**no**'} |" for row in rows]
    return "\n".join(["| what was done | what was seen | as promised |", "| --- | --- | --- |", *lines, ""])


def sections(page: str) -> dict[str, str]:
    """The tables of a page, by part: those of parts that are not run again stay."""
    found = dict(part.split("\n\n", 1) for part in page.split("## ")[1:])
    return {part: found[title].rstrip() + "\n" for part, title in PARTS.items() if title in found}


def page(tables: dict[str, str]) -> str:
    """The page of these tables."""
    parts = [f"## {title}\n\n{tables[part]}" for part, title in PARTS.items() if part in tables]
    return "\n".join([WORDS, *parts])


if __name__ == "__main__":
    sys.exit(main())
