"""A panel: one figure of a view with its title and note. Also sentences that several views need."""

from collections.abc import Sequence
from typing import NamedTuple

from tensorboard_plugin_tapescope.figures import style
from tensorboard_plugin_tapescope.series.tables import COLUMNS, Table


class Panel(NamedTuple):
    """One figure of a view; without a figure, `empty` says why there is none."""

    key: str
    title: str
    figure: style.Figure | None = None
    note: str = ""
    empty: str = ""
    rows: Sequence[str] = ()
    """Layers behind a heatmap's rows, the first at the top; a click on a row opens its layer."""
    wide: bool = False


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
    return f"Every recorded value of {title} is absent in this run. {definition}"
