"""The page's modules that need no browser, tested by Node's own runner. Without Node they are skipped."""

import json
import pathlib
import shutil
import subprocess

import pytest

from tensorboard_plugin_tapescope.plugin import read_pages

TESTS = pathlib.Path(__file__).parent / "static"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="no node on the path: the page's modules are not tested")


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> pathlib.Path:
    """Return a directory with the page's modules and their tests, which Node takes for ES modules."""
    root = tmp_path_factory.mktemp("modules")
    (root / "package.json").write_text(json.dumps({"type": "module"}))
    (root / "static").mkdir()
    for name, content in read_pages().items():
        (root / "static" / name).write_bytes(content)
    shutil.copytree(TESTS, root / "tests")
    return root


def run(test: pathlib.Path, modules: pathlib.Path) -> subprocess.CompletedProcess:
    command = [str(NODE), "--test", str(modules / "tests" / test.name)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("test", sorted(TESTS.glob("*.test.js")), ids=lambda path: path.name)
def test_a_module_passes_its_tests(test, modules):
    result = run(test, modules)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_failing_test_is_noticed(modules):
    failing = modules / "tests" / "failing.test.js"
    failing.write_text('import { test } from "node:test";\ntest("fails", () => { throw new Error("on purpose"); });\n')
    assert run(failing, modules).returncode != 0


def test_every_tested_module_is_a_page():
    tested = {path.name.replace(".test.js", ".js") for path in TESTS.glob("*.test.js")}
    assert tested
    assert tested <= set(read_pages())
