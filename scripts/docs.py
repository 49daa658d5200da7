"""Hooks of mkdocs: pages from files outside of docs/, formulas as MathML, and no request to another machine."""

import html
import json
import os.path
import pathlib
import re
from typing import Any

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = {
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "BUILD_NOTES.md": "BUILD_NOTES.md",
    "SECURITY.md": "SECURITY.md",
    "development/capture.md": "instrument/tapescope/capture/README.md",
    "development/fit.md": "instrument/tapescope/fit/README.md",
    "development/storage.md": "instrument/tapescope/storage/README.md",
    "http_api.md": "plugins/tensorboard_plugin_tapescope/http_api.md",
    "examples/index.md": "examples/README.md",
}
"""Pages of the site whose source is outside of docs/, next to what they describe: address on the site, source file."""

_LINK = re.compile(r"\]\((?!\w+:|#|/)([^)#\s]+)")
"""The target of a relative link, without its anchor."""
_EXTERNAL = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+")
"""An element that loads from another machine."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose source is outside of docs/, and a page for each example."""
    pages = {uri: (ROOT / path).read_text() for uri, path in SOURCES.items()}
    programs = [path for path in sorted((ROOT / "examples").iterdir()) if path.suffix in (".py", ".ipynb")]
    pages |= {f"examples/{path.stem}.md": example_page(path) for path in programs}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text with its relative links, which are right in the repository, changed to those of the site."""
    uri = page.file.src_uri
    source = SOURCES.get(uri, uri if uri.startswith("examples/") else f"docs/{uri}")
    return _LINK.sub(lambda link: f"]({site_link(link[1], source, uri)}", markdown)


def site_link(target: str, source: str, uri: str) -> str:
    """Return a link of the site for one of the repository.

    Args:
      target: the link as it stands in the source file, without an anchor.
      source: the source file, relative to the root of the repository.
      uri: the page's own address on the site.

    Returns:
      The link relative to `uri`. A file that has no page of its own keeps its link, for mkdocs to report.
    """
    path = os.path.normpath(os.path.join(os.path.dirname(source), target))
    pages = {file: page for page, file in SOURCES.items()}
    if path in pages:
        page = pages[path]
    elif path.startswith("examples/") and path.endswith((".py", ".ipynb")):
        page = f"{os.path.splitext(path)[0]}.md"
    elif path.startswith("docs/"):
        page = path.removeprefix("docs/")
    else:
        return target
    return os.path.relpath(page, os.path.dirname(uri) or ".")


def example_page(path: pathlib.Path) -> str:
    """Return the page of a program or a notebook; its first line is the title."""
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
        text = "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)
        title, _, rest = text.removeprefix("# ").partition("\n")
    else:
        text = path.read_text()
        title = text.removeprefix('"""').partition("\n")[0].rstrip('."')
        rest = f"```python\n{text}\n```"
    return f"# {title}\n\n`examples/{path.name}`\n\n{rest}\n"


def on_page_content(content: str, **_: Any) -> str:
    """Return the page with LaTeX replaced by MathML, which browsers draw without a script."""
    formula = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(formula, _mathml, content, flags=re.DOTALL)


def _mathml(match: re.Match[str]) -> str:
    element, formula = match.groups()
    return latex2mathml.converter.convert(html.unescape(formula), display="inline" if element == "span" else "block")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Return the page unchanged; raise PluginError if it would load something from another machine."""
    external = re.search(
        r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+", output
    )
    if external:
        raise PluginError(f"{page.file.src_uri} loads from another machine: {external[0]}")
    return output
