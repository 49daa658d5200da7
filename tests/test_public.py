"""Public names, arguments and defaults, flags, commands and columns, as recorded in public.txt.

For an intended change: `python -m tests.test_public > tests/public.txt`, and an entry in CHANGELOG.md.
"""

import argparse
import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tapescope
from tapescope import cli
from tapescope_trainers import flags
from tensorboard_plugin_tapescope import metadata

RECORDED = pathlib.Path(__file__).parent / "public.txt"
MADE_BY = {"Tape": ", made by Probe.tape, a tf.GradientTape"}
"""Classes whose constructors users do not call."""


def describe_arguments(function: Any) -> str:
    """Return names, kinds and defaults. Types are left out: pyright checks them, and Python versions print others."""
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def describe_members(cls: type) -> Iterator[str]:
    """Yield the public members that a class does not inherit from a base class of another package."""
    foreign = [base for base in cls.__mro__[1:] if not base.__module__.startswith("tapescope")]
    assigned = re.findall(r"^ +self\.([a-z]\w*)\b.*=", inspect.getsource(cls), re.MULTILINE)
    for name in sorted({*assigned, *vars(cls)}):
        if (name.startswith("_") and name != "__getitem__") or any(hasattr(base, name) for base in foreign):
            continue
        member = vars(cls).get(name)
        yield f"    .{name}{describe_arguments(member) if inspect.isfunction(member) else ''}"


def describe_commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in subparsers.choices.items():
        words = [f"tapescope {name}"]
        for action in command._actions:
            if action.dest != "help":
                option = action.option_strings[0] if action.option_strings else str(action.metavar)
                default = "" if action.default in (None, False) else f"={action.default}"
                words.append(option + default)
        yield " ".join(words)


def describe_all() -> Iterator[str]:
    yield "import tapescope"
    for name in sorted(tapescope.__all__):
        public = getattr(tapescope, name)
        yield f"  tapescope.{name}{MADE_BY.get(name) or describe_arguments(public)}"
        if inspect.isclass(public):
            yield from describe_members(public)
    yield "\ncommands"
    yield from (f"  {line}" for line in describe_commands(cli.make_parser()))
    yield "\nflags of tapescope-train"
    for flag in sorted(flags.Options._fields):
        yield f"  --{flag}={flags.FLAGS[flag].default}"
    yield f"\non the wire, schema {metadata.SCHEMA}"
    for family in ("all_variable", "all_layer", "step", "replica", "data", "head", "residual"):
        names = [column.name for column in getattr(metadata, f"{family.upper()}_COLUMNS")]
        yield f"  {family.removeprefix('all_')}: {' '.join(names)}"
    yield f"  unit states: {' '.join(metadata.UNIT_STATES)}"
    yield f"  histograms: {metadata.BINS} bins from 2^{metadata.LOW_EXPONENT} to 2^{metadata.HIGH_EXPONENT}"


def test_public_names_are_the_recorded_ones():
    assert "\n".join(describe_all()) + "\n" == RECORDED.read_text(), __doc__


if __name__ == "__main__":
    print("\n".join(describe_all()))
