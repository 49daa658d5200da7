"""The range of colours: outlier rows and values do not take it, and the colour bar marks what lies beyond it."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.figures.colour_scale import ColourRange, colour_range, colour_stops, colour_ticks
from tensorboard_plugin_tapescope.figures.style import MINUS
from tensorboard_plugin_tapescope.metadata import COLUMNS, Column

GRADIENT = COLUMNS["gradient_norm"]
MEAN = COLUMNS["activation_mean"]


def rows(*magnitudes: float, steps: int = 50) -> np.ndarray:
    """Return values [steps, rows] within 20 % of each row's magnitude."""
    noise = np.random.default_rng(0).uniform(0.8, 1.2, [steps, len(magnitudes)])
    return noise * np.array(magnitudes)


def ends(column: Column, *grids: np.ndarray) -> tuple[float, float]:
    colours = colour_range(column, *grids)
    return colours.low, colours.high


@pytest.mark.parametrize("others", [3, 4, 9, 30])
def test_one_outlier_row_does_not_take_the_range(others):
    assert ends(GRADIENT, rows(*[0.03] * others, 1e-9)) == (-2, -1)


def test_an_outlier_row_above_does_not_take_the_range():
    assert ends(GRADIENT, rows(*[0.03] * 9, 1e7)) == (-2, -1)


def test_two_outlier_rows_of_twelve_do_not_take_the_range():
    assert ends(GRADIENT, rows(*[0.03] * 10, 1e-9, 1e-8)) == (-2, -1)


def test_a_row_a_decade_away_from_the_others_is_shown_beside_an_outlier():
    assert ends(GRADIENT, rows(*[0.03] * 9, 0.003, 1e-9)) == (-3, -1)


def test_a_gradient_that_vanishes_layer_by_layer_is_shown_in_full():
    assert ends(GRADIENT, rows(*(3 * 10.0 ** -np.arange(2, 12)))) == (-11, -1)


def test_half_of_the_rows_are_not_outliers():
    assert ends(GRADIENT, rows(*[0.03] * 5, *[3e-9] * 5)) == (-9, -1)


def test_up_to_four_decades_are_shown_in_full():
    assert ends(GRADIENT, rows(*[0.03] * 9, 3e-5)) == (-5, -1)


def test_one_outlier_value_of_many_does_not_take_the_range():
    values = rows(*[0.03] * 10)
    values[7, 2] = 1e-9
    assert ends(GRADIENT, values) == (-2, -1)


def test_of_few_values_all_are_shown():
    assert ends(GRADIENT, np.array([[3e-2, 3e-2], [3e-2, 3e-9]])) == (-9, -1)


def test_several_heatmaps_share_one_range():
    assert ends(GRADIENT, rows(0.03, 0.03), rows(3e-4, 3e-4)) == (-4, -1)


def test_one_run_whose_gradient_vanished_is_shown_beside_another():
    assert ends(GRADIENT, rows(*[0.03] * 4), rows(*[3e-9] * 4)) == (-9, -1)


@pytest.mark.parametrize("values", [np.full((3, 2), np.nan), np.zeros((3, 2)), np.zeros((0, 2)), np.zeros((3, 0))])
def test_without_positive_values_a_logarithmic_range_is_one_decade(values):
    assert ends(GRADIENT, values) == (-1, 0)


def test_without_heatmaps_there_is_a_range():
    assert ends(GRADIENT) == (-1, 0)


def test_zeros_have_a_band_below_the_range():
    colours = colour_range(GRADIENT, np.array([[0.0, 0.03]]))
    assert (colours.has_zeros, colours.bottom, colours.low) == (True, -3, -2)


def test_the_band_of_zeros_has_place_for_its_label_under_many_decades():
    colours = ColourRange("log", -1, 39, has_zeros=True)
    assert (colours.low - colours.bottom) / (colours.high - colours.bottom) > 0.13
    zero, lowest, *_ = colour_ticks(colours, np.array([0.0, 1.0]))["tickvals"]
    assert colours.bottom < zero < lowest == -1
    assert colour_stops(colours, dark=False)[1][0] == pytest.approx((-1 - colours.bottom) / (39 - colours.bottom))


def test_shares_run_from_0_to_1():
    assert ends(COLUMNS["saturated"], rows(0.2)) == (0, 1)


def test_counts_run_to_the_largest_of_few():
    assert ends(COLUMNS["units_dead"], np.array([[0.0, 12.0]])) == (0, 12)


def test_one_large_count_of_many_does_not_take_the_range():
    counts = np.full((50, 10), 4.0)
    counts[3, 3] = 4096
    assert ends(COLUMNS["units_dead"], counts) == (0, 4)


def test_a_diverging_range_is_symmetric_and_round():
    assert ends(MEAN, np.array([[-0.55, 0.1]])) == (-0.6, 0.6)


def test_one_outlier_row_does_not_take_a_diverging_range():
    assert ends(MEAN, rows(*[0.4] * 9, -1000)) == (-0.5, 0.5)


def test_rows_of_zeros_leave_a_diverging_range():
    assert ends(MEAN, np.zeros((3, 2))) == (-1, 1)


OUTLIER = rows(*[0.03] * 9, 1e-9)


def test_values_below_the_range_mark_its_lowest_tick():
    ticks = colour_ticks(colour_range(GRADIENT, OUTLIER), OUTLIER)
    assert ticks["ticktext"] == [f"≤ 10<sup>{MINUS}2</sup>", f"10<sup>{MINUS}1</sup>"]


def test_values_above_the_range_mark_its_highest_tick():
    values = rows(*[0.03] * 9, 1e7)
    assert colour_ticks(colour_range(GRADIENT, values), values)["ticktext"][-1] == f"≥ 10<sup>{MINUS}1</sup>"


def test_without_values_beyond_the_range_no_tick_is_marked():
    values = rows(*[0.03] * 9)
    assert colour_ticks(colour_range(GRADIENT, values), values)["ticktext"][0] == f"10<sup>{MINUS}2</sup>"


def test_zeros_are_not_marked_as_below_the_range():
    values = np.array([[0.0, 0.03]])
    assert colour_range(GRADIENT, values).beyond(values) == (0, 0)


def test_both_ends_of_a_long_range_have_a_tick():
    values = np.array([[1e-12, 1e-3]])
    assert colour_ticks(colour_range(GRADIENT, values), values)["tickvals"] == [-12, -9, -6, -3]


def test_the_end_of_a_range_that_no_stride_divides_is_marked():
    ticks = colour_ticks(ColourRange("log", -11, 0), np.array([[5.0]]))
    assert ticks["tickvals"][-1] == 0
    assert ticks["ticktext"][-1] == "≥ 10<sup>0</sup>"


def test_a_diverging_range_is_marked_at_both_ends():
    values = np.array([[-9.0, 9.0]])
    texts = colour_ticks(ColourRange("diverging", -1.0, 1.0), values)["ticktext"]
    assert texts == [f"≤ {MINUS}1", f"{MINUS}0.5", "0", "0.5", "≥ 1"]


def test_the_note_states_the_share_of_values_beyond_the_range():
    assert colour_range(GRADIENT, OUTLIER).note(OUTLIER) == (
        "Colours do not change below 10⁻² (10 % of the values); hover over a cell for its exact value."
    )


def test_a_small_share_is_stated_as_such():
    values = rows(*[0.03] * 10)
    values[7, 2] = 1e-9
    assert "below 10⁻² (less than 1 % of the values)" in colour_range(GRADIENT, values).note(values)


def test_without_values_beyond_the_range_there_is_no_note():
    values = rows(0.03)
    assert colour_range(GRADIENT, values).note(values) == ""


def test_colour_stops_run_from_0_to_1_with_and_without_a_band_of_zeros():
    for has_zeros in (False, True):
        places = [place for place, _ in colour_stops(ColourRange("log", -3, 0, has_zeros), dark=False)]
        assert places == sorted(places)
        assert (places[0], places[-1]) == (0, 1)
