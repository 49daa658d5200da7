"""What mkdocs.yml needs beside mkdocs: pages from files elsewhere, formulas as MathML, nothing from the network."""

import html
import json
import pathlib
import re
from typing import Any

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
ELSEWHERE = {
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "BUILD_NOTES.md": "BUILD_NOTES.md",
    "http_api.md": "plugins/tensorboard_plugin_tapescope/http_api.md",
    "examples/index.md": "examples/README.md",
}
"""Pages that are kept where those look for them who change what they tell of."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from elsewhere, and one for each example."""
    pages = {uri: (ROOT / path).read_text() for uri, path in ELSEWHERE.items()}
    programs = [path for path in sorted((ROOT / "examples").iterdir()) if path.suffix in (".py", ".ipynb")]
    pages |= {f"examples/{path.stem}.md": example(path) for path in programs}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Has links to what lies elsewhere, which are right in the repository, lead to the pages made of it."""
    if page.file.src_uri.startswith("examples/"):
        return re.sub(r"\]\((\w+)\.(?:py|ipynb)\)", r"](\1.md)", markdown)
    for uri, path in ELSEWHERE.items():
        markdown = markdown.replace(f"](../{path}", f"]({uri}")
    return re.sub(r"\]\(\.\./(examples/\w+)\.(?:py|ipynb)\)", r"](\1.md)", markdown)


def example(path: pathlib.Path) -> str:
    """The page of a program or a notebook; its first line is the title."""
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
    """LaTeX to MathML, which browsers draw by themselves."""
    formula = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(formula, _mathml, content, flags=re.DOTALL)


def _mathml(found: re.Match[str]) -> str:
    kind = "inline" if found[1] == "span" else "block"
    return latex2mathml.converter.convert(html.unescape(found[2]), display=kind)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Raises PluginError for a page that would load something from another machine."""
    loaded = re.search(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+", output)
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {loaded[0]}")
    return output
