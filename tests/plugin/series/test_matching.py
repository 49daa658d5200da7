"""Rows of two runs matched without the names of their models."""

import pytest

from tensorboard_plugin_tapescope.series import matching


def rows(model, layers=("hidden", "output"), others=()):
    """Names and owners of the kernels and biases of some layers, and of variables that no layer owns."""
    prefix = f"{model}/" if model else ""
    names = [f"{prefix}{layer}/{kind}" for layer in layers for kind in ("kernel", "bias")]
    owned = [[2 * i, 2 * i + 1] for i in range(len(layers))]
    names += [f"{prefix}{other}" for other in others]
    return names, matching.row_owners(names, layers, owned)


def test_a_variable_belongs_to_the_layer_that_owns_it():
    assert rows("m", ["a"], ["scale"])[1] == ("a", "a", "m/scale")


def test_owners_that_are_damaged_leave_variables_to_themselves():
    assert matching.row_owners(["v", "w"], ["a"], [[7, 1]]) == ("v", "a")


def test_variables_match_without_the_name_of_the_model():
    assert matching.match_rows(*rows("relu_sigmoid"), *rows("sigmoid_relu")) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_variables_of_no_recorded_layer_match_without_the_name_of_the_model():
    pairs = matching.match_rows(*rows("one", ["a"], ["embedding/table"]), *rows("two", ["a"], ["embedding/table"]))
    assert (2, 2) in pairs


def test_a_model_without_a_name_matches_one_with_a_name():
    assert matching.match_rows(*rows("one"), *rows("")) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_layers_that_only_one_run_has_do_not_match():
    assert matching.match_rows(*rows("one", ["a", "b"]), *rows("two", ["b", "c"])) == [(2, 0), (3, 1)]


def test_the_second_call_of_a_shared_layer_is_found_in_the_name_of_its_variables():
    assert matching.matching_keys(["m/a/kernel", "m/free"], ["a#2", "m/free"]) == ("a#2/kernel", "free")


def test_keys_that_would_not_be_unique_are_the_names():
    names = ("m/a/x/kernel", "m/a/y/kernel")
    assert matching.matching_keys(names, ("a", "a")) == names


def test_equal_names_match_where_keys_would_not_be_unique():
    names = ("m/a/x/kernel", "m/a/y/kernel")
    assert matching.match_rows(names, ("a", "a"), names[:1], ("a",)) == [(0, 0)]


def test_runs_without_rows_have_no_match():
    assert matching.match_rows([], [], *rows("m")) == []


def match_layers(first, second):
    return [(first[i], second[j]) for i, j in matching.match_rows(first, first, second, second)]


@pytest.mark.parametrize(
    "second",
    [["dense_2", "norm_1", "dense_3"], ["dense_9", "norm", "dense_11"]],
)
def test_a_model_that_was_built_later_has_other_numbers(second):
    first = ["dense", "norm", "dense_1"]
    assert match_layers(first, second) == list(zip(first, second, strict=True))


def test_numbers_of_nested_models_and_calls_are_counted_by_model():
    first = ["encoder/dense", "encoder/dense#2", "decoder/dense"]
    second = ["encoder_1/dense_3", "encoder_1/dense_3#2", "decoder_1/dense_7"]
    assert match_layers(first, second) == list(zip(first, second, strict=True))


@pytest.mark.parametrize("second", [["conv_1", "conv_3"], ["conv_3", "conv_4", "conv_5"]])
def test_a_number_that_both_have_is_part_of_the_name(second):
    first = ["conv_1", "conv_2", "conv_3"]
    assert match_layers(first, second) == [(name, name) for name in first if name in second]


def test_each_row_matches_once():
    pairs = match_layers(["b_0", "b", "c_3", "a_01"], ["b_5", "b_6", "c", "a_1"])
    assert len({second for _, second in pairs}) == len(pairs)


def test_other_names_do_not_match_by_their_number():
    assert match_layers(["dense"], ["conv_2"]) == []
