"""A Plotly figure that every notebook can show, also where the kernel's environment has no `nbformat`."""

import importlib
from typing import Any

from plotly import graph_objects


class NotebookFigure(graph_objects.Figure):
    """A `plotly.graph_objects.Figure`, shown by its MIME bundle where `plotly.io.show` cannot show it.

    `plotly.io.show` asks for nbformat. A server of notebooks has it, but the environment of a kernel in VS Code, or of
    a kernel that was registered with `ipykernel install`, often does not.
    """

    def _ipython_display_(self) -> None:
        """Show the figure in the cell's output."""
        try:
            super()._ipython_display_()
        except ValueError:
            bundle: dict[str, Any] = self._repr_mimebundle_()
            if not bundle:
                raise
            importlib.import_module("IPython.display").display(bundle, raw=True)
