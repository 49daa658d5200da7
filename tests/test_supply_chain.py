"""Limits of the installed packages: they read and write runs, and need few packages of known versions."""

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
ASKED_FOR = {"sink_services.py": ["urllib.request", "urlopen"]}
"""Uses that a user asks for by name: the sink `webhook:URL` posts to that address."""
SOURCES = sorted(path for root in LIBRARY for path in root.rglob("*.py"))
PAGES = sorted((ROOT / "plugins/tensorboard_plugin_tapescope/static").iterdir())


def forbidden_uses(source: str) -> list[str]:
    """Return the forbidden modules that a Python source imports and the forbidden functions that it calls."""
    uses = []
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        uses += [name for name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
            if (name in FORBIDDEN_CALLS and owner != "re") or (owner == "socket" and name not in LOCAL_SOCKET_CALLS):
                uses.append(f"{owner}.{name}".lstrip("."))
            if any(k.arg == "allow_pickle" for k in node.keywords):
                uses.append("allow_pickle")
    return uses


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_library_uses_no_pickle_eval_or_network(path):
    assert forbidden_uses(path.read_text()) == ASKED_FOR.get(path.name, [])


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("import urllib.request", "urllib.request"),
        ("from pickle import loads", "pickle"),
        ("eval('1')", "eval"),
        ("import socket\nsocket.socket()", "socket.socket"),
        ("f.load(a, allow_pickle=True)", "allow_pickle"),
    ],
)
def test_a_forbidden_use_is_found(source, use):
    assert forbidden_uses(source) == [use]


@pytest.mark.parametrize("source", ["import re\nre.compile('x')", "import socket\nsocket.gethostname()"])
def test_an_allowed_use_is_not_found(source):
    assert forbidden_uses(source) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_page_evaluates_no_text(path):
    text = path.read_text()
    assert not re.search(r"\beval\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc", text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_page_names_no_other_host(path):
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_page_requests_only_its_own_routes(path):
    text = path.read_text()
    assert not re.search(r"XMLHttpRequest|WebSocket|EventSource|sendBeacon", text)
    assert [target for target in re.findall(r"\bfetch\(([^)]*)", text) if not target.startswith("`./")] == []


def test_the_page_does_request_routes():
    assert any(re.search(r"\bfetch\(`\./", path.read_text()) for path in PAGES)


def requirements(*extras: str) -> list[Requirement]:
    """Return what an installation needs, with the packages of some extras."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    return [Requirement(line) for line in "\n".join(texts).splitlines() if line]


FOR_USERS = requirements("trainers", "frame")


@pytest.mark.parametrize("needed", FOR_USERS, ids=lambda needed: needed.name)
def test_a_dependency_has_an_oldest_version(needed):
    assert any(s.operator == ">=" for s in needed.specifier)


@pytest.mark.parametrize("needed", FOR_USERS, ids=lambda needed: needed.name)
def test_the_installed_version_of_a_dependency_is_allowed(needed):
    assert needed.specifier.contains(importlib.metadata.version(needed.name))


def test_an_installation_needs_six_packages():
    names = {needed.name for needed in requirements()}
    assert names == {"tensorflow", "keras", "tensorboard", "numpy", "absl-py", "plotly"}


@pytest.mark.parametrize("needed", requirements(), ids=lambda needed: needed.name)
def test_a_needed_package_has_a_newest_version(needed):
    assert any(s.operator == "<" for s in needed.specifier)


@pytest.mark.parametrize("needed", FOR_USERS, ids=lambda needed: needed.name)
def test_the_build_notes_justify_a_dependency(needed):
    table = (ROOT / "BUILD_NOTES.md").read_text().split("## Dependencies")[1]
    assert needed.name in table


def test_oldest_versions_are_those_of_setup_cfg():
    constraints = oldest.oldest_versions((ROOT / "setup.cfg").read_text())
    assert {"tensorflow==2.16.2", "numpy==1.26", "plotly==6"} <= set(constraints)
    assert {f"{n.name}=={s.version}" for n in FOR_USERS for s in n.specifier if s.operator == ">="} <= set(constraints)


def test_an_audit_reports_vulnerabilities_and_how_many_packages_were_checked():
    vulnerable = {"name": "some", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1", "2"]}]}
    safe = {"name": "good", "version": "1", "vulns": []}
    skipped = {"name": "mine", "skip_reason": "not found"}
    summary = audit.summarize({"dependencies": [vulnerable, safe, skipped]})
    assert summary == "pip-audit: checked 2 of 3 packages, known vulnerabilities: 1\nsome 1: CVE-1, fixed in 1.1, 2"


def test_an_audit_reports_that_nothing_could_be_checked():
    skipped = {"name": "mine", "skip_reason": "not found"}
    assert audit.summarize({"dependencies": [skipped]}) == "pip-audit: could not check any of 1 packages"
