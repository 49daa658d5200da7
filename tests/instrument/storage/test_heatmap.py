"""The heatmap that sinks get now and then: when, of which records, and how it is drawn."""

import numpy as np
import pytest

from tapescope.analysis.picture import draw_heatmap
from tapescope.storage import heatmap
from tapescope.storage.heatmap import Heatmap, HeatmapHistory

LAYERS = ("a", "b")


def filled(records, layers=LAYERS):
    """Return a history, and the heatmaps that it returned, by number of records."""
    history = HeatmapHistory()
    found = {n + 1: history.add(10 * n, layers, np.full(len(layers), n + 1.0)) for n in range(records)}
    return history, {number: each for number, each in found.items() if each is not None}


def test_a_heatmap_is_due_at_powers_of_two():
    _, found = filled(140)
    assert list(found) == [16, 32, 64, 128]
    assert found[32].steps.tolist() == list(range(0, 320, 10))
    np.testing.assert_array_equal(found[32].values[:, 1], np.arange(1, 33))


def test_the_last_heatmap_has_what_came_after():
    history, _ = filled(20)
    assert len(history.latest().steps) == 20
    assert history.latest() is None


@pytest.mark.parametrize("records", [0, 1])
def test_a_run_without_two_records_has_none(records):
    history, _ = filled(records)
    assert history.latest() is None


def test_a_long_run_is_thinned_evenly():
    _, found = filled(4096)
    steps = found[4096].steps
    assert heatmap.MAX_RECORDS / 2 <= len(steps) <= heatmap.MAX_RECORDS
    assert set(np.diff(steps)) == {np.diff(steps)[0]}
    np.testing.assert_array_equal(found[4096].values[:, 0], steps // 10 + 1)


def test_layers_that_come_later_are_absent_before():
    history, _ = filled(3)
    history.add(30, (*LAYERS, "c"), np.ones(3))
    latest = history.latest()
    assert latest.layers == (*LAYERS, "c")
    assert np.isnan(latest.values[:3, 2]).all()
    assert latest.values[3, 2] == 1


def pixels(values, layers=LAYERS):
    """Return the colours of the cells: the last rows of the picture above its footer, [L, T, 3]."""
    values = np.array(values, np.float32)
    picture = draw_heatmap(Heatmap("delta_norm", np.arange(len(values)), layers, values))
    image = np.asarray(picture)
    top, left, size = 26, image.shape[1] - 646, 14
    cells = image[top + 2 : top + size * len(layers) : size, left : left + 640]
    return cells[:, 320 // len(values) :: 640 // len(values)]


def test_each_layer_is_a_row_and_each_record_a_column():
    cells = pixels([[1e-4, 1.0], [1e-4, 1.0], [1.0, 1e-4], [1.0, 1e-4]])
    dark, light = cells[0, 0], cells[1, 0]
    assert dark.sum() < light.sum()
    np.testing.assert_array_equal(cells, [[dark, dark, light, light], [light, light, dark, dark]])


def test_absent_values_and_zeros_have_colours_of_their_own():
    cells = pixels([[np.nan, 0.0], [1e-3, 1.0], [np.inf, 1.0]])
    assert len({tuple(cells[0, 0]), tuple(cells[1, 0]), tuple(cells[0, 1]), tuple(cells[1, 1])}) == 4
    np.testing.assert_array_equal(cells[0, 0], cells[0, 2])


@pytest.mark.parametrize("count", [1, 3, 500])
def test_any_number_of_layers_with_any_names_is_drawn(count):
    names = tuple(f"block/größe_{'x' * (i % 70)}_{i}" for i in range(count))
    picture = draw_heatmap(Heatmap("delta_norm", np.arange(5), names, np.ones([5, count], np.float32)))
    assert picture.width < 1000
    assert picture.height < 1500


@pytest.mark.parametrize("value", [np.nan, 0.0, 1.0, np.inf])
def test_equal_values_are_drawn(value):
    assert pixels(np.full([4, 2], value)).shape == (2, 4, 3)
