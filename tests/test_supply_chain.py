"""What the installed packages may do: read and write runs; and what they may need: little, and of known versions."""

import ast
import configparser
import importlib.metadata
import pathlib
import re

import pytest
from packaging.requirements import Requirement
from scripts import audit, oldest

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = (ROOT / "instrument", ROOT / "plugins")
FORBIDDEN_MODULES = {
    *("pickle", "dill", "shelve", "marshal", "subprocess", "ftplib", "smtplib", "telnetlib", "xmlrpc"),
    *("requests", "urllib", "urllib3", "http", "aiohttp", "httpx", "ssl"),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "urlopen", "create_connection"}
LOCAL_SOCKET_CALLS = {"gethostname"}
SOURCES = sorted(path for root in LIBRARY for path in root.rglob("*.py"))
PAGES = sorted((ROOT / "plugins/tensorboard_plugin_tapescope/static").iterdir())


def wrong(source: str) -> list[str]:
    """What a Python source does that it must not: by the names it imports and calls."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        found += [name for name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            of = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
            if (name in FORBIDDEN_CALLS and of != "re") or (of == "socket" and name not in LOCAL_SOCKET_CALLS):
                found.append(f"{of}.{name}".lstrip("."))
            if any(k.arg == "allow_pickle" for k in node.keywords):
                found.append("allow_pickle")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_pickle_no_eval_no_network_in_the_library(path):
    assert wrong(path.read_text()) == []


def test_what_it_must_not_do_is_found():
    bad = ("import urllib.request", "from pickle import loads", "eval('1')", "import socket", "socket.socket()")
    found = ["urllib.request", "pickle", "eval", "socket.socket", "load", "allow_pickle"]
    assert sorted(wrong("\n".join([*bad, "f.load(a, allow_pickle=True)"]))) == sorted(set(found) - {"load"})
    assert wrong("import re\nre.compile('x')\nimport socket\nsocket.gethostname()") == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_page_runs_no_text_and_asks_only_its_own_routes(path):
    text = path.read_text()
    assert not re.search(r"\beval\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc", text)
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert not re.search(r"XMLHttpRequest|WebSocket|EventSource|sendBeacon", text)
    for asked in re.findall(r"\bfetch\(([^)]*)", text):
        assert asked.startswith("`./"), asked


def requirements() -> list[Requirement]:
    """What an installation needs, and the extras that users install."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    texts = "\n".join([config["options"]["install_requires"], extras["trainers"], extras["frame"]])
    return [Requirement(line) for line in texts.splitlines() if line]


@pytest.mark.parametrize("needed", requirements(), ids=lambda needed: needed.name)
def test_dependencies_have_an_oldest_version_and_what_is_installed_is_allowed(needed):
    assert any(s.operator == ">=" for s in needed.specifier), f"{needed} has no oldest version"
    assert needed.specifier.contains(importlib.metadata.version(needed.name))


def test_an_installation_needs_six_packages_each_with_a_newest_version():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = [Requirement(line) for line in config["options"]["install_requires"].splitlines() if line]
    assert {n.name for n in needed} == {"tensorflow", "keras", "tensorboard", "numpy", "absl-py", "plotly"}
    assert all(any(s.operator == "<" for s in n.specifier) for n in needed)
    notes = (ROOT / "BUILD_NOTES.md").read_text()
    assert all(n.name in notes for n in needed)


def test_oldest_versions_are_those_of_setup_cfg():
    found = oldest.oldest((ROOT / "setup.cfg").read_text())
    assert {"tensorflow==2.21", "numpy==1.26", "plotly==7"} <= set(found)
    assert {f"{n.name}=={s.version}" for n in requirements() for s in n.specifier if s.operator == ">="} <= set(found)


def test_an_audit_says_what_is_known_and_whether_anybody_was_asked():
    weak = {"name": "some", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1", "2"]}]}
    good, skipped = {"name": "good", "version": "1", "vulns": []}, {"name": "mine", "skip_reason": "not found"}
    said = audit.told({"dependencies": [weak, good, skipped]})
    assert said == "pip-audit: asked about 2 of 3 packages, known weaknesses: 1\nsome 1: CVE-1, mended in 1.1, 2"
    assert "not one of 1 packages" in audit.told({"dependencies": [skipped]})
