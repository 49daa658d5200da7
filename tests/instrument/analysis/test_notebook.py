"""The MIME bundle that `Run.plot` gives to Jupyter, VS Code and Colab, without any of them."""

import json
import sys
import types

import pytest
from plotly import io

JSON = "application/vnd.plotly.v1+json"


@pytest.fixture
def renderer(request, monkeypatch):
    """Set plotly's renderer, which it chooses by itself in a notebook."""
    before = io.renderers.default
    io.renderers.default = request.param
    yield request.param
    io.renderers.default = before


@pytest.fixture(scope="module")
def figure(recorded):
    return recorded.plot("gradient_norm")


@pytest.mark.parametrize(
    ("renderer", "mime"),
    [
        ("plotly_mimetype", JSON),  # JupyterLab and Notebook 7
        ("vscode", JSON),
        ("colab", "text/html"),
    ],
    indirect=["renderer"],
)
def test_each_notebook_gets_the_type_that_it_shows(figure, renderer, mime):
    assert mime in figure._repr_mimebundle_()


@pytest.mark.parametrize("renderer", ["vscode"], indirect=True)
def test_the_bundle_is_the_tabs_heatmap_as_json(figure, renderer):
    content = json.loads(json.dumps(figure._repr_mimebundle_()[JSON]))
    assert content["data"][0]["type"] == "heatmap"


@pytest.mark.parametrize("renderer", ["vscode"], indirect=True)
def test_a_kernel_without_nbformat_shows_the_figure(figure, renderer, monkeypatch):
    """Neither IPython nor nbformat is installed here, so that `plotly.io.show` raises as in such a kernel."""
    shown = []
    display = types.SimpleNamespace(display=lambda bundle, raw: shown.append((bundle, raw)))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("plotly.io._renderers.nbformat", None)
    figure._ipython_display_()
    ((bundle, raw),) = shown
    assert raw
    assert bundle[JSON]["data"]


@pytest.mark.parametrize("renderer", ["iframe"], indirect=True)
def test_without_a_bundle_plotlys_error_is_raised(figure, renderer, monkeypatch):
    def show(figure):
        raise ValueError("no way to show it")

    monkeypatch.setattr(io, "show", show)
    monkeypatch.setattr(type(figure), "_repr_mimebundle_", lambda self: {})
    with pytest.raises(ValueError, match="no way to show it"):
        figure._ipython_display_()
