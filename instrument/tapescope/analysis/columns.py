"""Explanations of the columns of a run, as the wire contract and the tab define them."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.series import tables


class ColumnHelp(NamedTuple):
    """The explanation of one column."""

    name: str
    of: str
    """Rows that it has a number for: "variable", "layer", "step", "replica and variable", "data row", "attention head",
    "depth" or "unit"."""
    shape: str
    """Shape of `Run[name]`, with T records, V variables, L layers, R replicas, D rows of data, H heads,
    P points of the residual stream, B bins, W windows."""
    unit: str
    scale: str
    bad: str
    """Which values deserve a look: "low", "high" or "far from 0"."""
    definition: str


_FAMILIES = (
    ("variable", "[T, V]", metadata.ALL_VARIABLE_COLUMNS),
    ("layer", "[T, L]", metadata.ALL_LAYER_COLUMNS),
    ("step", "[T]", metadata.STEP_COLUMNS),
    ("replica and variable", "[T, R, V]", metadata.REPLICA_COLUMNS),
    ("data row", "[T, D]", metadata.DATA_COLUMNS),
    ("attention head", "[T, H]", metadata.HEAD_COLUMNS),
    ("depth", "[T, P]", metadata.RESIDUAL_COLUMNS),
    ("layer", "in the tab only", tuple(tables.DERIVED.values())),
)

_TENSORS = (
    ("gradient_histogram", "variable", "[T, V, B]", "number of the gradient's elements in each signed logarithmic bin"),
    ("activation_histogram", "layer", "[T, L, B]", "number of the output's elements in each signed logarithmic bin"),
    (
        "unit_state",
        "unit",
        "[W, sum U]",
        f"state of each unit when a window of examples closed, an index into: {', '.join(metadata.UNIT_STATES)}",
    ),
)


def explain(names: Sequence[str] = ()) -> list[ColumnHelp]:
    """Return the explanations of columns.

    Args:
      names: of the columns; all if empty.

    Raises:
      ValueError: there is no such column.
    """
    known = {
        column.name: ColumnHelp(column.name, of, shape, column.unit, column.scale, _bad(column.name), column.definition)
        for of, shape, columns in _FAMILIES
        for column in columns
    }
    known |= {
        name: ColumnHelp(name, of, shape, "elements" if of != "unit" else "", "count", "", definition)
        for name, of, shape, definition in _TENSORS
    }
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            suggestion = f"did you mean {nearest[0]}?" if nearest else "`tapescope columns` lists all"
            raise ValueError(f"NAME must be a column; got {name!r}: {suggestion}")
    return [known[name] for name in names or known]


def _bad(name: str) -> str:
    if name == "activation_mean":
        return "far from 0"
    return "low" if name in tables.LOW_IS_BAD else "high"


def to_text(columns: Sequence[ColumnHelp]) -> str:
    """Return explanations as text, two lines for each column."""
    return "\n".join(_paragraph(column) for column in columns)


def _paragraph(column: ColumnHelp) -> str:
    of = "of the step" if column.of == "step" else f"of each {column.of}"
    facts = ", ".join(fact for fact in (of, column.shape, column.unit, column.scale) if fact)
    return f"{column.name}  ({facts})\n    {column.definition}"
