"""Comparison of equal runs, of runs that differ in one layer, and of models with different names."""

import json

import numpy as np
import pytest

import tapescope
from tapescope import cli
from tapescope.analysis.compare import _relative_difference, compare, comparison_json, comparison_text
from tests.instrument.analysis.runs import record_run


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """Return a run whose layer1 has another initializer."""
    return record_run(tmp_path_factory.mktemp("changed"), changed_layer=1)


@pytest.fixture(scope="module")
def renamed(tmp_path_factory):
    """Return a run of the same training whose model has another name."""
    return record_run(tmp_path_factory.mktemp("renamed"), model_name="other")


def test_two_runs_of_the_same_training_are_equal(recorded, tmp_path):
    result = compare(recorded, record_run(tmp_path), tolerance=1e-6)
    assert result.equal
    assert (result.aligned, result.forward, result.backward, result.unmatched) == (5, None, None, ())
    assert set(result.ratios["gradient_norm"].values()) == {1.0}
    assert "equal within 1e-06" in comparison_text(result, 1e-6)


def test_one_training_that_was_measured_at_other_steps_is_equal(recorded, tmp_path):
    result = compare(recorded, record_run(tmp_path, every=1), tolerance=1e-6)
    assert (result.aligned, result.equal) == (5, True)
    assert not {"units_dead", "gradient_cosine", "stable_rank"} & set(result.ratios)


def test_the_text_explains_a_difference_that_is_not_finite(recorded, changed):
    result = compare(recorded, changed)._replace(largest=np.inf)
    assert "largest relative difference inf (only one of the two numbers is finite)" in comparison_text(result, 1e-3)


@pytest.mark.parametrize("layer", [1, 2])
def test_the_first_layer_that_differs_is_named(layer, recorded, tmp_path):
    result = compare(recorded, record_run(tmp_path, changed_layer=layer), tolerance=1e-5)
    assert (result.forward.name, result.forward.step) == (f"layer{layer}", 0)


def test_the_last_layer_differs_first_on_the_way_back(recorded, changed):
    """The losses differ, so all gradients do."""
    result = compare(recorded, changed, tolerance=1e-5)
    assert (result.backward.name, result.backward.column, result.backward.step) == ("layer3", "delta_norm", 0)


def test_the_text_names_the_first_layer_that_differs(recorded, changed):
    text = comparison_text(compare(recorded, changed, tolerance=1e-5), 1e-3)
    assert "first in forward order: layer1 at step 0" in text


def test_the_json_has_no_numbers_that_are_not_finite(recorded, changed):
    data = json.loads(comparison_json(compare(recorded, changed)))
    assert (data["forward"]["name"], data["equal"]) == ("layer1", False)


def test_variables_match_without_the_names_of_the_models(recorded, renamed):
    assert recorded.variables[0] == "chain/layer0/kernel"
    assert renamed.variables[0] == "other/layer0/kernel"
    result = compare(recorded, renamed, tolerance=1e-6)
    assert result.equal
    assert result.unmatched == ()
    assert list(result.ratios["gradient_norm"])[:2] == ["layer0/kernel", "layer0/bias"]


def test_names_that_are_equal_are_kept_whole(recorded, changed):
    assert "chain/layer0/kernel" in compare(recorded, changed).ratios["gradient_norm"]


def test_layers_that_only_one_run_has_are_named(recorded, tmp_path):
    result = compare(recorded, record_run(tmp_path, widths=(6, 6, 2)))
    assert result.unmatched == ("chain/layer3/bias", "chain/layer3/kernel", "layer3")


@pytest.mark.parametrize("kept", [(), ("data",)])
def test_runs_without_a_common_layer_are_refused(recorded, copy, kept):
    for name, series in copy._series.items():
        if series.family.family in kept:
            continue
        family = series.family._replace(names=tuple(f"x{i}" for i in range(len(series.family.names))), details={})
        copy._series[name] = series._replace(family=family)
    with pytest.raises(ValueError, match="have no layer or variable in common"):
        compare(recorded, copy)


def test_records_are_aligned_by_examples(recorded, tmp_path):
    half = record_run(tmp_path, batch=16, steps=6, every=1)
    assert compare(recorded, half, by="examples").aligned == 2  # after 32 and after 96 examples


def test_runs_without_a_common_step_are_refused(recorded, copy):
    copy._series = {name: series._replace(steps=series.steps + 1) for name, series in copy._series.items()}
    with pytest.raises(ValueError, match="have no record at the same step; try `by` examples"):
        compare(recorded, copy)


@pytest.mark.parametrize("tolerance", [0, -1, float("nan")])
def test_a_tolerance_that_is_not_positive_is_refused(recorded, tolerance):
    with pytest.raises(ValueError, match="`tolerance` must be a positive relative difference, such as 1e-3; got "):
        compare(recorded, recorded, tolerance)


def test_an_unknown_alignment_is_refused(recorded):
    with pytest.raises(ValueError, match='`by` must be "step" or "examples"; got \'time\''):
        compare(recorded, recorded, by="time")


def test_relative_differences():
    a = np.array([1.0, np.nan, np.nan, 0.0, 1e-9, np.inf])
    b = np.array([1.1, np.nan, 1.0, 0.0, 2e-9, np.inf])
    np.testing.assert_allclose(_relative_difference(a, b), [0.1 / 1.1, 0, np.inf, 0, 1e-9 / 1.1e-6, 0])


def test_the_command_line_returns_0_for_equal_runs(recorded):
    assert cli.main(["compare", recorded.logdir, recorded.logdir]) == 0


def test_the_command_line_returns_1_for_runs_that_differ(recorded, changed, capsys):
    assert cli.main(["compare", recorded.logdir, changed.logdir]) == 1
    assert "layer1" in capsys.readouterr().out


@pytest.mark.parametrize(("every", "lines"), [(2, 0), (1, 1)])
def test_the_command_line_names_the_columns_that_are_left_out(every, lines, recorded, tmp_path, capsys):
    other = record_run(tmp_path, every=every)
    cli.main(["compare", str(recorded.logdir), str(other.logdir)])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not compared, because ")]
    assert len(printed) == lines
    assert all("units_dead, units_dormant" in line and "gradient_cosine" in line for line in printed)


def test_the_command_line_prints_json(recorded, changed, capsys):
    cli.main(["compare", recorded.logdir, changed.logdir, "--json"])
    assert json.loads(capsys.readouterr().out)["forward"]["name"] == "layer1"


def test_the_command_line_compares_models_with_different_names(recorded, renamed):
    assert cli.main(["compare", recorded.logdir, renamed.logdir]) == 0


@pytest.mark.parametrize(
    "function",
    [
        tapescope.check,
        lambda run: tapescope.compare(run, run),
        tapescope.noise_scale,
        lambda run: tapescope.scaling([run]),
        lambda run: tapescope.write_report([run], "report.html"),
    ],
)
def test_a_path_is_not_a_run(recorded, function):
    with pytest.raises(ValueError, match=r"got .*: pass tapescope\.Run\(directory\)"):
        function(recorded.logdir)


@pytest.mark.parametrize("function", [tapescope.scaling, lambda run: tapescope.write_report(run, "report.html")])
def test_a_run_is_not_a_list_of_runs(recorded, function):
    with pytest.raises(ValueError, match=r"must be a list of tapescope\.Run; got Run: put it in a list"):
        function(recorded)


@pytest.mark.parametrize("function", [tapescope.scaling, lambda runs: tapescope.write_report(runs, "report.html")])
def test_an_empty_list_is_refused(function):
    with pytest.raises(ValueError, match=r"`runs` must have a tapescope\.Run or more"):
        function([])


def test_the_command_line_returns_2_for_a_directory_without_a_run(recorded, tmp_path, capsys):
    assert cli.main(["compare", recorded.logdir, str(tmp_path / "nowhere")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
