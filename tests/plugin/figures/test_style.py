"""Labels of figures: escaped, short, different from each other, and with the part of the name that matters."""

import pytest

from tensorboard_plugin_tapescope.figures import style
from tensorboard_plugin_tapescope.metadata import Column


@pytest.mark.parametrize(
    ("name", "label"),
    [("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"), ("a\nb", "a b"), ("", "(no name)"), ("x" * 99, "x" * 16 + "…" + "x" * 17)],
)
def test_a_name_is_escaped_and_short(name, label):
    assert style.display_name(name) == label


def test_the_scope_that_all_names_share_is_left_out():
    assert style.unique_labels(["net/a/kernel", "net/a/bias", "net/ab"]) == ["a/kernel", "a/bias", "ab"]


def test_a_single_name_keeps_its_scope():
    assert style.unique_labels(["net/a/kernel"]) == ["net/a/kernel"]


def test_so_many_last_parts_of_a_name_stay():
    assert style.unique_labels(["net/a/kernel", "net/a/bias"], parts=2) == ["a/kernel", "a/bias"]
    assert style.unique_labels(["a/kernel", "a/bias"], parts=2) == ["a/kernel", "a/bias"]


def test_labels_of_equal_names_are_different():
    assert style.unique_labels(["block/one", "block/one"]) == ["one", "one (2)"]


def test_a_unit_stands_behind_the_title_unless_it_is_in_the_name():
    assert style.column_title(Column("noise_scale", "", "examples")) == "noise scale (examples)"
    assert style.column_title(Column("measure_ms", "", "ms")) == "measure ms"


def test_lines_of_a_hover_label_are_escaped_and_short():
    lines = style.wrap_lines("one <b> two " * 9, width=20).split("<br>")
    assert max(map(len, lines)) <= 20 + len("&lt;b&gt;")
    assert "<b>" not in "".join(lines)


def test_run_colours_follow_the_place_among_all_runs():
    runs = [f"run {i}" for i in range(9)]
    assert style.run_colours(["run 1", "run 8"], runs) == [style.PALETTE[1], style.PALETTE[1]]
