"""Import rules: nothing imports upward, there is no circle, and reading a run needs neither TensorFlow nor Keras."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PLUGIN = "tensorboard_plugin_tapescope"
ORDER = (
    (f"{PLUGIN}.metadata",),
    (f"{PLUGIN}.series",),
    (f"{PLUGIN}.figures", f"{PLUGIN}.data"),
    (f"{PLUGIN}.views",),
    (f"{PLUGIN}.plugin",),
    (f"{PLUGIN}.loader", PLUGIN),
    ("tapescope.failsafe", "tapescope.step_times"),
    ("tapescope.schedule",),
    ("tapescope.capture",),
    ("tapescope.statistics",),
    ("tapescope.rules",),
    ("tapescope.storage",),
    ("tapescope.tape",),
    ("tapescope.probe",),
    ("tapescope.step_copies", "tapescope.slow_measurement"),
    ("tapescope.recorder",),
    ("tapescope.fit",),
    ("tapescope.analysis",),
    ("tapescope.replays",),
    ("tapescope",),
    ("tapescope.cli",),
    ("tapescope.__main__",),
    ("tapescope_trainers.user_code",),
    ("tapescope_trainers.flags", "tapescope_trainers.logs", "tapescope_trainers.serve"),
    ("tapescope_trainers.distributed",),
    ("tapescope_trainers.training",),
    (
        "tapescope_trainers.train",
        "tapescope_trainers.replay",
        "tapescope_trainers.coordinates",
        "tapescope_trainers.demo",
        "tapescope_trainers.study",
        "tapescope_trainers",
    ),
)
"""Modules and packages from the bottom up: each may import its own line and the lines above it."""
READS_WITHOUT_TENSORFLOW = ("tapescope.rules", "tapescope.analysis", PLUGIN)
WRITES = ("tapescope.recorder", *(f"tapescope.storage.{name}" for name in ("run_writer", "event_file", "summaries")))
SHARED = (f"{PLUGIN}.metadata", f"{PLUGIN}.series")
DRAWS = {"tapescope.analysis.plotting", f"{PLUGIN}.figures", "plotly"}

Graph = dict[str, set[str]]


def sources(*folders: str) -> dict[str, str]:
    """Return the source of each module below the folders, by its dotted name."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path.read_text()
    return found


def _nodes(node: ast.AST, with_typing: bool):
    """Yield all nodes below one, without the bodies of `if TYPE_CHECKING:` unless asked for."""
    yield node
    for child in ast.iter_child_nodes(node):
        if with_typing or not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield from _nodes(child, with_typing)


def graph(modules: dict[str, str], at_run_time: bool = False) -> Graph:
    """Return what each module imports, anywhere in it: modules of ours by full name, others by their package.

    With `at_run_time`, imports for type checkers are left out and a module imports the packages that it is in.
    """
    found: Graph = {}
    for module, source in modules.items():
        names = []
        for node in _nodes(ast.parse(source), not at_run_time):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        imported = {_longest(name, modules) for name in names}
        if at_run_time:
            imported |= {parent for name in (module, *imported) for parent in _parents(name) if parent in modules}
        found[module] = imported - {module}
    return found


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _longest(name: str, modules: dict[str, str]) -> str:
    """Return the module of ours that an imported name is or is in; for others the top-level package."""
    known = [part for part in (*_parents(name), name) if part in modules]
    return known[-1] if known else name.split(".")[0]


def _inside(module: str, packages) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def rank(module: str) -> int:
    """Return the line of ORDER that a module is in; a package's own entry covers its `__init__` alone."""
    for number, names in enumerate(ORDER):
        if _inside(module, [name for name in names if "." in name]) or module in names:
            return number
    raise LookupError(f"{module} has no line in ORDER")


def upward(imports: Graph) -> list[str]:
    ours = {module: {name for name in found if name in imports} for module, found in imports.items()}
    return [f"{a} imports {b}" for a, found in ours.items() for b in sorted(found) if rank(b) > rank(a)]


def unshared(imports: Graph) -> list[str]:
    """Return imports of the plugin by the library beyond the wire contract, the series, and figures for `analysis`."""
    found = []
    for module in imports:
        allowed = (*SHARED, f"{PLUGIN}.figures") if _inside(module, {"tapescope.analysis"}) else SHARED
        wrong = [name for name in imports[module] if _inside(name, {PLUGIN}) and not _inside(name, allowed)]
        if _inside(module, {"tapescope"}):
            found += [f"{module} imports {name}" for name in sorted(wrong)]
    return found


def reached(imports: Graph, start: str) -> set[str]:
    """Return all that a module imports directly or through others; itself only if it is in a circle."""
    seen: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports.get(module, ())
    return seen


def circles(imports: Graph) -> list[str]:
    return [module for module in imports if module in reached(imports, module)]


def reaching(imports: Graph, starts, targets) -> list[str]:
    """Return `module: what it reaches` for modules in the packages `starts` that reach one of `targets`."""
    chosen = [module for module in imports if _inside(module, starts)]
    assert chosen, starts
    found = {module: sorted(n for n in reached(imports, module) if _inside(n, targets)) for module in chosen}
    return [f"{module}: {', '.join(names)}" for module, names in found.items() if names]


OURS = sources("instrument", "trainers", "plugins")
ALL_IMPORTS = graph(OURS)
RUN_TIME_IMPORTS = graph(OURS, at_run_time=True)


def test_no_import_runs_upward():
    assert upward(ALL_IMPORTS) == []


def test_the_library_imports_only_shared_parts_of_the_plugin():
    assert unshared(ALL_IMPORTS) == []


def test_no_circle_of_imports():
    assert circles(ALL_IMPORTS) == []


def test_reading_a_run_imports_neither_tensorflow_nor_keras():
    assert reaching(RUN_TIME_IMPORTS, READS_WITHOUT_TENSORFLOW, {"tensorflow", "keras"}) == []


def test_writing_a_run_imports_nothing_that_draws():
    assert reaching(RUN_TIME_IMPORTS, WRITES, DRAWS) == []


@pytest.mark.parametrize(
    ("package", "other"), [("tests", "bench"), ("bench", "tests"), ("scripts", "bench"), ("scripts", "tests")]
)
def test_tests_and_benchmarks_are_independent(package, other):
    imports = graph({f"{package}.{name}": source for name, source in sources(package).items()})
    assert [module for module, found in imports.items() if _inside(other, found)] == []


# Each check finds a planted violation.

SHARED_MODULES = {f"{PLUGIN}.figures": "", f"{PLUGIN}.series": ""}
PLANTED = {
    "tapescope": "",
    "tapescope.rules": "",
    "tapescope.rules.engine": "def late():\n    from tapescope.storage import run",
    "tapescope.storage": "",
    "tapescope.storage.run": "import tensorflow.io as io",
    "tapescope.storage.summaries": "import typing\nif typing.TYPE_CHECKING:\n    from tapescope import recorder",
    "tapescope.recorder": "from tapescope.analysis import plotting\nfrom tapescope.storage.summaries import families",
    "tapescope.analysis": "import keras",
    "tapescope.analysis.plotting": "",
}


def test_an_upward_import_is_found():
    assert upward(graph(PLANTED)) == [
        "tapescope.rules.engine imports tapescope.storage.run",
        "tapescope.storage.summaries imports tapescope.recorder",
        "tapescope.recorder imports tapescope.analysis.plotting",
    ]


def test_an_import_of_the_plugin_that_is_not_shared_is_found():
    imports = graph({"tapescope.recorder": f"import {PLUGIN}.figures\nimport {PLUGIN}.series", **SHARED_MODULES})
    assert unshared(imports) == [f"tapescope.recorder imports {PLUGIN}.figures"]


def test_a_module_without_a_rank_is_found():
    with pytest.raises(LookupError, match=r"tapescope\.new has no line in ORDER"):
        rank("tapescope.new")


def test_a_circle_under_type_checking_is_found():
    assert circles(graph(PLANTED)) == ["tapescope.storage.summaries", "tapescope.recorder"]


def test_an_indirect_import_of_tensorflow_or_keras_is_found():
    found = reaching(graph(PLANTED, at_run_time=True), READS_WITHOUT_TENSORFLOW[:2], {"tensorflow", "keras"})
    assert found == [
        "tapescope.rules.engine: tensorflow",
        "tapescope.analysis: keras",
        "tapescope.analysis.plotting: keras",
    ]


def test_a_writer_that_draws_is_found():
    found = reaching(graph(PLANTED, at_run_time=True), ("tapescope.recorder",), DRAWS)
    assert found == ["tapescope.recorder: tapescope.analysis.plotting"]


def test_an_import_between_tests_and_benchmarks_is_found():
    assert graph({"bench.page": "import tests.steps\nfrom bench.cost import page"}) == {
        "bench.page": {"tests", "bench"}
    }
