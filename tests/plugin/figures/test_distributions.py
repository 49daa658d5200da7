"""Histograms as figures: the bins that are drawn, and their ticks."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import distributions
from tensorboard_plugin_tapescope.figures.encoding import decode


@pytest.fixture(scope="module")
def figure() -> dict:
    """Two steps with five elements each near -1, 1e-9, 0 and 1."""
    counts = np.zeros((2, metadata.BINS), np.int64)
    edges = metadata.bin_edges()
    for value in (-1.0, 1e-9, 1.0):
        counts[:, np.searchsorted(edges, value, side="right") - 1] += 5
    counts[:, metadata.SIDE_BINS] += 5
    return distributions.distribution(np.array([0, 1]), counts, "gradient")


def test_shares_of_a_step_add_up_to_one(figure):
    np.testing.assert_allclose(np.nansum(decode(figure["data"][0]["z"]), axis=0), 1)


def test_most_of_the_gap_around_zero_is_left_out(figure):
    assert len(decode(figure["data"][0]["z"])) < metadata.BINS / 2


def ticks(figure: dict) -> dict[str, float]:
    axis = figure["layout"]["yaxis"]
    return dict(zip(axis["ticktext"], axis["tickvals"], strict=True))


def test_a_power_of_ten_is_at_the_lower_edge_of_its_bin(figure):
    centres = np.array(figure["data"][0]["meta"]["rows"])
    one = int(np.flatnonzero(np.isclose(centres, 1.2, atol=0.3))[0])
    assert ticks(figure)["10<sup>0</sup>"] == pytest.approx(one - 0.5)


def test_zero_is_at_the_middle_bin(figure):
    assert ticks(figure)["0"] == pytest.approx(figure["data"][0]["meta"]["rows"].index(0))


def test_no_label_overlaps_that_of_zero(figure):
    places = ticks(figure)
    zero = places.pop("0")
    assert min(abs(place - zero) for place in places.values()) > len(figure["data"][0]["meta"]["rows"]) / 20


def test_empty_histograms_are_drawn():
    figure = distributions.distribution(np.array([0]), np.zeros((1, metadata.BINS), np.int64), "gradient")
    assert np.isnan(decode(figure["data"][0]["z"])).all()


def test_overlaid_histograms_share_their_bins():
    counts = np.zeros((2, metadata.BINS), np.int64)
    counts[0, 150] = 1
    counts[1, 160] = 3
    first, second = distributions.overlay(["a", "b"], counts, "output")["data"]
    assert len(decode(first["x"])) == len(decode(second["x"]))
    assert decode(second["y"]).max() == 1


def test_curves_of_one_colour_have_other_dashes():
    counts = np.ones((2, metadata.BINS), np.int32)
    figure = distributions.overlay(["a", "b"], counts, "gradient", colours=["#12b5cb", "#12b5cb"])
    assert [trace["line"]["dash"] for trace in figure["data"]] == ["solid", "dash"]
