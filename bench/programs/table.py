"""The scores of whole programs as tables, and the sections of docs/calibration.md that hold them."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Outcome(NamedTuple):
    """What the rules said about one program."""

    name: str
    fault: str
    """Empty for a program that is sound."""
    rules: tuple[str, ...]
    """Rules of which one names the fault."""
    found: tuple[tuple[str, str | None], ...]
    """Rule and layer of each warning and error, the likeliest cause first."""

    @property
    def named(self) -> bool:
        """Whether a finding names the fault."""
        return any(rule in self.rules for rule, _ in self.found)

    @property
    def first(self) -> bool:
        """Whether the first finding names the fault."""
        return bool(self.found) and self.found[0][0] in self.rules

    def line(self) -> str:
        """Return the outcome as one line."""
        verdict = ("named" if self.named else "FOUND" if self.found else "MISSED") if self.fault else ""
        verdict = verdict or ("FALSE" if self.found else "silent")
        found = ", ".join(f"{rule}[{layer}]" if layer else rule for rule, layer in self.found)
        return f"{verdict:7} {self.name}: {found}"


def drawn_table(outcomes: Sequence[Outcome], seed: int, interval: Callable[[float, int], str]) -> str:
    """Return the table of programs drawn at random, by fault.

    Args:
        outcomes: Of all programs.
        seed: They were drawn with.
        interval: Returns the 95 % interval of a number of hits out of a total, as text.
    """
    faulty = [o for o in outcomes if o.fault]
    healthy = [o for o in outcomes if not o.fault]
    lines = [
        f"Seed {seed}.",
        "",
        "| fault | programs | any finding | named | named first |",
        "| --- | --- | --- | --- | --- |",
    ]
    for fault in sorted({o.fault for o in faulty}):
        lines.append(_row(fault, [o for o in faulty if o.fault == fault]))
    lines.append(_row("**all**", faulty))
    named = sum(o.named for o in faulty)
    alarms = sum(bool(o.found) for o in healthy)
    lines += [
        "",
        f"Named: {interval(named, len(faulty))}. "
        f"Of {len(healthy)} healthy programs {alarms} got a warning or an error: {interval(alarms, len(healthy))}.",
    ]
    missed = [o.line() for o in outcomes if (o.fault and not o.named) or (not o.fault and o.found)]
    if missed:
        lines += ["", "Not named, or a false alarm:", "", *(f"- `{line.strip()}`" for line in missed)]
    return "\n".join(lines)


def _row(title: str, outcomes: Sequence[Outcome]) -> str:
    counts = (sum(bool(o.found) for o in outcomes), sum(o.named for o in outcomes), sum(o.first for o in outcomes))
    return f"| {title} | {len(outcomes)} | {' | '.join(map(str, counts))} |"


HEADING = "## Whole programs"
"""Begin of the part of docs/calibration.md that these tables are in."""


def keep_sections(page: pathlib.Path, text: str) -> str:
    """Return a new page with the part of the old one from HEADING on."""
    _, heading, sections = page.read_text().partition(f"{HEADING}\n")
    return f"{text.rstrip()}\n\n{heading}{sections}" if heading else text


def replace_section(page: pathlib.Path, name: str, text: str) -> None:
    """Replace what is between the comments `<!-- begin: name -->` and `<!-- end: name -->` of a page."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    content = page.read_text()
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
