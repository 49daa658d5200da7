"""What others build upon stays as it is: names, arguments and defaults, flags, commands and columns, in public.txt.

Where a change is meant: `python -m tests.test_public > tests/public.txt`, and a line in CHANGELOG.md.
"""

import argparse
import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tapescope
from tapescope import cli, probe
from tapescope_trainers import flags
from tensorboard_plugin_tapescope import metadata

KEPT = pathlib.Path(__file__).parent / "public.txt"


def arguments(function: Any) -> str:
    """Names, kinds and defaults; types are for pyright, and their names differ between versions of Python."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def members(of: type) -> Iterator[str]:
    """What an object has beside what its foreign base classes promise."""
    foreign = [base for base in of.__mro__[1:] if not base.__module__.startswith("tapescope")]
    own = re.findall(r"^ +self\.([a-z]\w*)\b.*=", inspect.getsource(of), re.MULTILINE)
    for name in sorted({*own, *vars(of)}):
        if (name.startswith("_") and name != "__getitem__") or any(hasattr(base, name) for base in foreign):
            continue
        member = vars(of).get(name)
        yield f"    .{name}{arguments(member) if inspect.isfunction(member) else ''}"


def commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    (several,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in several.choices.items():
        given = [a for a in command._actions if a.dest != "help"]
        words = [a.option_strings[0] if a.option_strings else str(a.metavar) for a in given]
        defaults = ["" if a.default in (None, False) else f"={a.default}" for a in given]
        yield " ".join([f"tapescope {name}", *(w + d for w, d in zip(words, defaults, strict=True))])


def text() -> Iterator[str]:
    yield "import tapescope"
    for name in sorted(tapescope.__all__):
        public = getattr(tapescope, name)
        yield f"  tapescope.{name}{arguments(public)}"
        if inspect.isclass(public):
            yield from members(public)
    yield "  Probe.tape(...), a tf.GradientTape"
    yield from members(probe.Tape)
    yield "\ncommands"
    yield from (f"  {line}" for line in commands(cli.parser()))
    yield "\nflags of tapescope-train"
    for flag in sorted(flags.Options._fields):
        yield f"  --{flag}={flags.FLAGS[flag].default}"
    yield f"\non the wire, schema {metadata.SCHEMA}"
    for family in ("variable", "layer", "step", "replica"):
        yield f"  {family}: {' '.join(c.name for c in getattr(metadata, f'{family.upper()}_COLUMNS'))}"
    yield f"  unit states: {' '.join(metadata.UNIT_STATES)}"
    yield f"  histograms: {metadata.BINS} bins from 2^{metadata.LOW_EXPONENT} to 2^{metadata.HIGH_EXPONENT}"


def test_what_others_build_upon_is_what_it_was():
    assert "\n".join(text()) + "\n" == KEPT.read_text(), __doc__


if __name__ == "__main__":
    print("\n".join(text()))
