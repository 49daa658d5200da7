"""Links of the README made absolute, for the description that a package index shows.

    python scripts/absolute_links.py https://github.com/OWNER/NAME v0.1.0

Rewrites README.md in place. The release workflow calls it on its own checkout before it builds: only there is the
address of the repository known, and an index has no page that a relative link could lead to.
"""

import pathlib
import re
import sys

README = pathlib.Path(__file__).parents[1] / "README.md"

_RELATIVE_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)]+)\)")


def absolute_links(markdown: str, repository: str, tag: str) -> str:
    """Return the text with each relative link replaced by an address below the repository at `tag`.

    Args:
      markdown: the text of a page at the root of the repository.
      repository: the address of the repository, without a slash at the end.
      tag: a tag, branch or commit.

    Returns:
      The text; images lead to the file itself, other links to the page about it.
    """

    def replacement(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        return f"{image}{label}({repository}/{'raw' if image else 'blob'}/{tag}/{target})"

    return _RELATIVE_LINK.sub(replacement, markdown)


if __name__ == "__main__":
    README.write_text(absolute_links(README.read_text(), *sys.argv[1:]))
