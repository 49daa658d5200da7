"""A panel: one figure of a view with its title and note. Also sentences that several views need."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tensorboard_plugin_tapescope.figures import style
from tensorboard_plugin_tapescope.series.tables import COLUMNS, Table


class Panel(NamedTuple):
    """One figure of a view; without a figure or table, `empty` says why there is none."""

    key: str
    title: str
    figure: style.Figure | None = None
    note: str = ""
    empty: str = ""
    rows: Sequence[str] = ()
    """Layers behind a heatmap's rows, the first at the top; a click on a row opens its layer."""
    wide: bool = False
    help: str = ""
    """Definitions of what is shown, in the tooltip of the title."""
    table: dict[str, Any] | None = None
    """A table of texts instead of a figure, see http_api.md."""


def define(*columns: str) -> str:
    """Return the definitions of columns, each with its name."""
    definitions = (f"{style.column_title(COLUMNS[name])}: {COLUMNS[name].definition}." for name in columns)
    return " ".join(text[:1].upper() + text[1:] for text in definitions)


def definition_sentence(definition: str) -> str:
    """Return a definition as a sentence, with a capital letter and a full stop."""
    return f"{definition[:1].upper()}{definition[1:]}."


def explain_absence(column: str, table: Table | None) -> str:
    """Return why there is no figure of a column.

    Args:
      column: the column's name.
      table: the table that has the column, without a finite value of it; None if no table has it.
    """
    title = style.column_title(COLUMNS[column])
    definition = f"Definition: {COLUMNS[column].definition}."
    if table is None:
        return f"This run has no {title}: it was not measured. {definition}"
    if not len(table.values):
        return f"This run has no record of {table.family.tag} here, or none of the declared shape."
    return f"Every recorded value of {title} is absent or not finite in this run. {definition}"
