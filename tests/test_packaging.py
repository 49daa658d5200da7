"""The contents of an installation, of a source distribution, and of the page on a package index."""

import configparser
import pathlib
import re

from scripts.absolute_links import absolute_links

ROOT = pathlib.Path(__file__).parents[1]
SOURCE_ROOTS = ("instrument", "plugins", "trainers")
REPOSITORY = "https://example.org/owner/name"


def test_every_package_is_listed_in_setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    inits = [path for name in SOURCE_ROOTS for path in (ROOT / name).rglob("__init__.py")]
    packages = {".".join(path.parent.relative_to(ROOT).parts[1:]) for path in inits}
    assert len(packages) > 10
    assert set(config["options"]["packages"].split()) == packages


def test_a_relative_link_becomes_absolute():
    changed = absolute_links("[notes](BUILD_NOTES.md#known-gaps)", REPOSITORY, "v1")
    assert changed == f"[notes]({REPOSITORY}/blob/v1/BUILD_NOTES.md#known-gaps)"


def test_a_relative_image_becomes_absolute():
    changed = absolute_links("![the tab](docs/a.png)", REPOSITORY, "v1")
    assert changed == f"![the tab]({REPOSITORY}/raw/v1/docs/a.png)"


def test_other_links_stay():
    text = "[a](https://example.org/b) [b](#section) [c](mailto:d@example.org)"
    assert absolute_links(text, REPOSITORY, "v1") == text


def test_every_link_of_the_readme_becomes_absolute():
    changed = absolute_links((ROOT / "README.md").read_text(), REPOSITORY, "v1")
    targets = re.findall(r"\]\(([^)]+)\)", changed)
    assert len(targets) > 5
    assert all(target.startswith(("https://", "#")) for target in targets)


def test_every_relative_link_of_the_readme_leads_to_a_file():
    targets = re.findall(r"\]\((?!\w+:|#)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_action_of_the_workflows_is_pinned_by_version():
    workflows = [path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    used = re.findall(r"uses: (\S+)", "\n".join(workflows))
    assert len(used) > 5
    assert [action for action in used if not re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", action)] == []
