"""The script that runs the tests on several versions of TensorFlow, without running them."""

import pathlib
import re

from scripts import matrix

ROOT = pathlib.Path(__file__).parents[1]
PAGE = f"# A page\n\n| {' | '.join(matrix.COLUMNS)} |\n|{' --- |' * len(matrix.COLUMNS)}\n\nText after it.\n"


def row(tensorflow, python="3.11.7", passed="5"):
    return [tensorflow, "3.6.0", "2.16.2", "6.9.0", python, passed, "0", "1", "60"]


def table(page):
    return [line for line in page.splitlines() if line.startswith("| 2.")]


def test_rows_are_sorted_by_version():
    page = PAGE
    for version in ("2.21.0", "2.9.1", "2.22.0-rc0"):
        page = matrix.with_row(page, row(version))
    assert [line.split(" | ")[0] for line in table(page)] == ["| 2.9.1", "| 2.21.0", "| 2.22.0-rc0"]
    assert page.endswith("\n\nText after it.\n")


def test_a_row_replaces_that_of_the_same_versions():
    page = matrix.with_row(matrix.with_row(PAGE, row("2.18.0")), row("2.18.1", passed="7"))
    page = matrix.with_row(page, row("2.18.1", python="3.12.1"))
    assert [line.split(" | ")[5] for line in table(page)] == ["7", "5"]


def test_an_environment_has_what_the_tests_need_and_chooses_five_packages():
    names = {re.split(r"[<>=]", line)[0] for line in matrix.other_requirements((ROOT / "setup.cfg").read_text())}
    assert {"numpy", "absl-py", "pytest", "hypothesis"} <= names
    assert not names & {"tensorflow", "tf_keras", "keras", "tensorboard", "plotly"}


def test_the_matrix_begins_with_the_oldest_tensorflow_that_is_allowed():
    (floor,) = re.findall(r"^    tensorflow>=([\d.]+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert matrix.MATRIX[0].tensorflow.endswith(f"=={floor}")


def test_the_page_has_a_row_without_failures_for_each_environment():
    rows = [line.strip("| ").split(" | ") for line in table((ROOT / "docs" / "compatibility.md").read_text())]
    passed = {".".join(row[0].split(".")[:2]): int(row[5]) for row in rows if row[6] == "0"}
    expected = {re.sub(r".*==(\d+\.\d+).*", r"\1", environment.tensorflow) for environment in matrix.MATRIX}
    assert passed.keys() == expected
    assert min(passed.values()) > 2500
