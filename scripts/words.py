"""A check of the tracked text for words that the project avoids, and for docstrings that begin without a verb or noun.

    python scripts/words.py            # every tracked file
    python scripts/words.py FILE...    # these files

Prints one line for each place and exits with 1 where there is one. Readers search for the terms of TensorFlow, Python
and statistics; the list has words that hide them, each with what to write in its place.
"""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
PATTERNS = ("*.py", "*.js", "*.css", "*.md", "*.ipynb", "*.toml", "*.cfg", "*.yml", "*.yaml", "Makefile", ".ci/run")
EXEMPT = {"scripts/words.py", "tests/test_words.py"}
"""The files that quote the words."""

WORDS = {
    r"mend(?:s|ed|ing)?": "fix",
    r"grave(?:r|st)": "more severe, most severe",
    r"lest": "so that ... not",
    r"shall": "must, will",
    r"manieth": "every n-th",
    r"(?:told|tells) of": "described, reported",
    r"in words": "as text",
    r"(?<!there )is no(?! longer)": "is not a",
}
"""Regular expressions, matched as whole words whatever the case, and what to write instead."""

BEGINNINGS = ("Of", "What", "Where", "Whether", "By", "As")
"""First words that no docstring of a module, class or function may have; a property is described as a field is."""
PROPERTIES = {"property", "cached_property"}

_AVOIDED = {
    re.compile(rf"\b(?:{word})\b".replace(" ", r"\s"), re.IGNORECASE): instead for word, instead in WORDS.items()
}


def avoided_words(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and a message for each avoided word in `text`."""
    for pattern, instead in _AVOIDED.items():
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, f"`{' '.join(match[0].split())}`: write {instead}"


def docstring_beginnings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and a message for each docstring of a Python source that begins with an avoided word."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if PROPERTIES & {ast.unparse(decorator).split(".")[-1] for decorator in getattr(node, "decorator_list", ())}:
            continue
        first = (ast.get_docstring(node) or "").partition(" ")[0]
        if first in BEGINNINGS:
            line = node.body[0].lineno
            yield line, f"a docstring begins with `{first}`: begin with a verb (function) or a noun (module, class)"


def problems(path: pathlib.Path) -> list[str]:
    """Return one line for each place in a file that uses an avoided word or docstring beginning."""
    text = path.read_text(encoding="utf-8")
    found = list(avoided_words(text))
    if path.suffix == ".py":
        found += docstring_beginnings(text)
    return [f"{path.relative_to(ROOT)}:{line}: {message}" for line, message in sorted(found)]


def tracked_files() -> list[pathlib.Path]:
    """Return the tracked files that hold text of the project."""
    listed = subprocess.run(["git", "ls-files", "-z", *PATTERNS], cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def main(arguments: list[str]) -> int:
    """Print the problems of the given files, or of all tracked ones, and return the exit code."""
    files = [pathlib.Path(name).resolve() for name in arguments] or tracked_files()
    checked = [path for path in files if path.relative_to(ROOT).as_posix() not in EXEMPT]
    lines = [line for path in checked for line in problems(path)]
    print("\n".join(lines), end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
