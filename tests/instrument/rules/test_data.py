"""The rule about the scale of the data, and what is pooled over the records."""

import math

import numpy as np
import pytest

from tapescope.rules import data_view, engine
from tapescope.rules.data_view import DataRow
from tensorboard_plugin_tapescope import metadata
from tests.instrument.rules.records import LAYOUT, NAN, OBJECTIVE, find, healthy, noisy_flat, put

INPUT = DataRow("input", "input", integer=False, followers=("trained",), normalizers=(), weighted=False)
TARGET = DataRow("target", "target", integer=False, followers=(), normalizers=(), weighted=False)


def columns_of(values):
    """Return the data columns of one array."""
    known = {
        "elements": values.size,
        "rms": np.sqrt(np.mean(values**2)),
        "mean": values.mean(),
        "std": values.std(),
        "min": values.min(),
        "max": values.max(),
        "zero": (values == 0).mean(),
        "nonfinite": 0,
        "whole": (values == np.floor(values)).mean(),
        "negative": (values < 0).mean(),
        "above_one": (values > 1).mean(),
        "below_minus_one": (values < -1).mean(),
    }
    return {c.name: float(known.get(c.name.removeprefix("data_"), NAN)) for c in metadata.DATA_COLUMNS}


def judge(*pairs, count=6, objective=OBJECTIVE, severity="warning", change=None, rule="unscaled_data", layout=LAYOUT):
    """Return the findings of a rule in a healthy run whose data are these rows and arrays, one array for each record.

    Args:
        *pairs: A row, and a function from the number of the record to its array.
        count: Number of records.
        objective: Of the run.
        severity: The least severe that is returned.
        change: Alters the columns of each record.
        rule: The rule whose findings are returned.
        layout: Of the layers and variables.
    """
    rows = tuple(row for row, _ in pairs)
    target = next((i for i, row in enumerate(rows) if row.kind == "target"), -1)
    layout = layout._replace(data=rows, objectives=(objective._replace(target=target),))

    def with_data(t, columns):
        of_rows = [columns_of(make(t)) for _, make in pairs]
        columns |= {name: np.array([c[name] for c in of_rows]) for name in of_rows[0]}
        if change is not None:
            change(t, columns)

    return [f for f in find(count, with_data, layout, severity=severity) if f.rule == rule]


def normal(scale=1.0, offset=0.0, size=2000):
    return lambda t: offset + scale * np.random.default_rng(t).normal(size=size)


def uniform(low, high, size=2000, whole=False):
    def make(t):
        values = np.random.default_rng(t).uniform(low, high, size=size)
        return np.floor(values) if whole else values

    return make


FAULTY = {
    "pixels": uniform(0, 255),
    "large": normal(1e8),
    "counts": uniform(0, 900, whole=True),
    "an offset": normal(1.0, 20.0),
    "a large offset": normal(2.0, 67.0),
    "a negative offset": normal(0.1, -5.0),
    "divided twice": uniform(0, 1 / 255),
    "micrometres": normal(1e-6),
    "zeros": lambda t: np.zeros(2000),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_unscaled_inputs_are_named(kind):
    (found,) = judge((INPUT, FAULTY[kind]))
    assert (found.layer, found.severity, found.step) == ("input", "warning", 0)


SOUND = {
    "standardized": normal(),
    "pixels of 0 to 1": uniform(0, 1),
    "pixels of -1 to 1": uniform(-1, 1),
    "small numbers": normal(0.1),
    "ages": uniform(0, 20),
    "flags": lambda t: (np.random.default_rng(t).random(2000) < 0.02).astype(float),
    "an offset of a few deviations": normal(1.0, 4.0),
    "one example": normal(0.01, 1.0, size=4),
}


@pytest.mark.parametrize("kind", SOUND)
def test_scaled_inputs_are_not_warned_about(kind):
    assert judge((INPUT, SOUND[kind])) == []


def test_a_few_standard_deviations_are_an_info():
    assert [f.severity for f in judge((INPUT, normal(15.0)), severity="info")] == ["info"]


@pytest.mark.parametrize(
    "row",
    [
        INPUT._replace(normalizers=("BatchNormalization",)),
        INPUT._replace(followers=("other",)),
        INPUT._replace(followers=("trained", "other")),
        INPUT._replace(followers=()),
    ],
)
def test_inputs_that_are_not_trained_on_as_they_are_are_excused(row):
    assert judge((row, normal(1e8))) == []


def test_pixels_are_divided_by_255():
    assert "x / 255" in judge((INPUT, uniform(0, 255)))[0].advice


def test_whole_numbers_may_be_words():
    (found,) = judge((INPUT._replace(integer=True), uniform(0, 5000, whole=True)))
    assert "Embedding" in found.advice


def test_large_targets_are_a_warning():
    (found,) = judge((INPUT, normal()), (TARGET, normal(1e6)), objective=REGRESSION)
    assert (found.layer, found.severity) == ("target", "warning")


REGRESSION = OBJECTIVE._replace(loss="mean_squared_error", activation="linear", units=1)


def test_targets_of_hundreds_are_an_info_while_the_loss_falls():
    rows = ((INPUT, normal()), (TARGET, normal(300)))
    assert [f.severity for f in judge(*rows, objective=REGRESSION, severity="info")] == ["info"]


def test_targets_of_hundreds_are_a_warning_if_the_loss_does_not_fall():
    rows = ((INPUT, normal()), (TARGET, normal(300)))
    found = judge(*rows, objective=REGRESSION, count=60, change=put("loss", None, 9e4))
    assert [f.severity for f in found] == ["warning"]


@pytest.mark.parametrize(
    "rows", [((INPUT, normal()), (TARGET, normal(300))), ((INPUT, normal(15)), (TARGET, normal()))]
)
def test_a_notable_scale_is_a_warning_if_the_loss_diverges(rows):
    def diverging(t, columns):
        columns["loss"] = np.float64(9e4 * 10**t)

    assert [f.severity for f in judge(*rows, objective=REGRESSION, change=diverging)] == ["warning"]


def test_targets_of_a_classification_or_an_unknown_loss_are_not_judged():
    for loss in ("sparse_categorical_crossentropy", "custom"):
        objective = REGRESSION._replace(loss=loss)
        assert judge((INPUT, normal()), (TARGET, normal(1e6)), objective=objective) == []


def test_targets_behind_an_output_of_unknown_scale_are_not_judged():
    objective = REGRESSION._replace(activation="unknown")
    assert judge((INPUT, normal()), (TARGET, normal(1e6)), objective=objective) == []


def test_the_first_target_of_batches_of_one_proves_nothing():
    rows = ((INPUT, normal()), (TARGET, lambda t: np.array([0.1 * t + 1 if t else -1.0])))
    relu = REGRESSION._replace(activation="relu")
    assert judge(*rows, objective=relu, count=60, rule="targets_out_of_range") == []


def test_records_are_pooled_by_their_elements():
    history = data_view.DataHistory(1)
    parts = [np.arange(10.0), np.arange(100.0) - 50]
    for part in parts:
        history.add({name: np.array([value]) for name, value in columns_of(part).items()})
    pooled = history.pooled(0)
    everything = np.concatenate(parts)
    assert pooled.mean == pytest.approx(everything.mean())
    assert pooled.std == pytest.approx(everything.std())
    assert (pooled.low, pooled.high) == (-50, 49)
    assert pooled.negative == pytest.approx((everything < 0).mean())


def test_a_row_without_a_finite_element_is_unknown():
    history = data_view.DataHistory(1)
    history.add({f"data_{name}": np.array([NAN]) for name in ("mean", "std")} | {"data_elements": np.array([0.0])})
    assert history.pooled(0) is None


def test_missing_values_name_the_data():
    def broken(t, columns):
        columns["data_nonfinite"] = np.array([4.0])
        columns["first_nonfinite_forward"] = np.float64(0)

    (found,) = judge((INPUT, normal()), change=broken, rule="non_finite")
    assert (found.layer, found.severity) == ("input", "error")
    assert "missing values" in found.advice
    assert "standard deviation of 0" in found.advice


def test_an_input_without_a_finite_element_is_named():
    def broken(t, columns):
        absent = {name: np.array([NAN]) for name in columns if name.startswith("data_")}
        columns.update(absent | {"data_elements": np.array([64.0]), "data_nonfinite": np.array([64.0])})
        columns["first_nonfinite_forward"] = np.float64(0)

    (found,) = judge((INPUT, normal()), change=broken, rule="non_finite")
    assert found.layer == "input"


def sorted_labels(classes, size=32):
    return lambda t: np.full(size, float(t % classes))


SPARSE = OBJECTIVE._replace(loss="sparse_categorical_crossentropy")


def test_batches_of_one_class_each_are_named():
    rows = ((INPUT, normal()), (TARGET, sorted_labels(5)))
    (found,) = judge(*rows, objective=SPARSE, rule="labels_degenerate")
    assert (found.severity, found.layer) == ("warning", "output")
    assert "Shuffle" in found.advice


def test_batches_without_the_rare_class_are_not_named():
    def rare(t):
        labels = np.zeros(32)
        labels[0] = t == 3
        return labels

    assert judge((INPUT, normal()), (TARGET, rare), objective=SPARSE, rule="labels_degenerate") == []


def test_small_batches_of_one_class_are_not_named():
    rows = ((INPUT, normal()), (TARGET, sorted_labels(3, size=4)))
    assert judge(*rows, objective=SPARSE, rule="labels_degenerate") == []


def test_scaled_ids_of_an_embedding_are_named():
    row = INPUT._replace(followers=("embedding",))
    assert "cut off" in judge((row, uniform(0, 1)))[0].message
    assert judge((row, uniform(0, 5000, whole=True))) == []


def test_an_input_that_is_the_same_everywhere_is_named():
    assert "7 everywhere" in judge((INPUT, lambda t: np.full(640, 7.0)))[0].message


def test_one_of_two_inputs_may_be_the_same_everywhere():
    assert judge((INPUT, lambda t: np.full(640, 0.7)), (INPUT._replace(name="other"), normal())) == []


FIRST_EXAMPLE = normal(size=64)(0)
REGRESSION = OBJECTIVE._replace(loss="mean_squared_error", units=1, activation="linear")


def alike(targets):
    """Return what is said of examples that are all the first one while the loss does not fall."""
    pairs = (INPUT, lambda t: np.tile(FIRST_EXAMPLE, 32)), (TARGET, targets)
    return judge(*pairs, count=60, objective=REGRESSION, change=noisy_flat)


def test_examples_that_are_all_alike_are_named():
    assert "seem to be alike" in alike(normal(size=32))[0].message


def test_a_batch_that_is_always_the_same_is_not_named():
    assert alike(lambda t: FIRST_EXAMPLE) == []


def test_examples_that_a_network_tells_apart_are_not_alike():
    assert alike(normal(scale=5.0, size=32)) == []


def test_weights_of_0_for_all_examples_are_named():
    none_counts = put("data_elements", 1, 0.0)
    pairs = (INPUT, normal()), (TARGET, normal(size=32))
    assert "weight" in judge(*pairs, change=none_counts, rule="labels_degenerate")[0].message
    assert judge(*pairs, rule="labels_degenerate") == []


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf, 1e38, 0.0])
def test_extreme_data_are_judged_without_an_exception(value):
    rows = (INPUT, TARGET)
    layout = LAYOUT._replace(data=rows, objectives=(SPARSE._replace(target=1, output=1),))
    rules = engine.RuleEngine(layout)
    for t in range(12):
        columns = healthy(t) | {c.name: np.full(2, value) for c in metadata.DATA_COLUMNS}
        rules.add(engine.Record(4 * t, columns))
    assert all(math.isfinite(v) for f in rules.findings for v in f.evidence.values())


WORDS = INPUT._replace(followers=("embedding",), integer=True)
EMBEDDED = LAYOUT._replace(variable_names=("words/embeddings", *LAYOUT.variable_names[1:]))


@pytest.mark.parametrize(("highest", "unused", "named"), [(1, 0.98, True), (2, 0.98, False), (1, 0.5, False)])
def test_words_that_are_all_the_unknown_one_are_named(highest, unused, named):
    change = put("gradient_zero", 0, unused)
    found = judge((WORDS, uniform(0, highest + 1, whole=True)), change=change, layout=EMBEDDED)
    assert ["vocabulary" in f.advice for f in found] == [True] * named


def test_one_of_two_inputs_may_have_two_categories():
    rows = ((WORDS, uniform(0, 2, whole=True)), (WORDS._replace(name="other"), uniform(0, 100, whole=True)))
    assert judge(*rows, change=put("gradient_zero", 0, 0.98), layout=EMBEDDED) == []


@pytest.mark.parametrize(("batches", "severity"), [(46, ["info"]), (NAN, ["info"]), (1, [])])
def test_a_batch_that_is_always_the_same_is_noted_where_an_epoch_has_others(batches, severity):
    rows = ((INPUT, lambda t: FIRST_EXAMPLE), (TARGET, lambda t: FIRST_EXAMPLE[:8]))
    found = judge(*rows, count=10, objective=REGRESSION._replace(batches_per_epoch=batches), severity="info")
    assert [f.severity for f in found] == severity


@pytest.mark.parametrize(
    "rows",
    [
        ((INPUT, normal()), (TARGET, lambda t: FIRST_EXAMPLE)),
        ((INPUT, lambda t: FIRST_EXAMPLE), (TARGET, normal())),
        ((INPUT, lambda t: np.eye(8)), (TARGET, lambda t: np.eye(8))),
    ],
)
def test_other_batches_and_one_hot_rows_are_not_the_same_batch(rows):
    found = judge(*rows, count=10, objective=REGRESSION._replace(batches_per_epoch=46.0), severity="info")
    assert found == []


def test_the_same_batch_of_each_epoch_may_be_measured():
    """Records are four steps apart, as are the epochs."""
    rows = ((INPUT, lambda t: FIRST_EXAMPLE), (TARGET, lambda t: FIRST_EXAMPLE[:8]))
    assert judge(*rows, count=10, objective=REGRESSION._replace(batches_per_epoch=4.0), severity="info") == []


@pytest.mark.parametrize(("labels", "named"), [(uniform(0, 30, 320, True), True), (uniform(0, 29, 320, True), False)])
def test_labels_that_are_the_inputs_are_noted(labels, named):
    rows = ((WORDS, uniform(0, 30, 320, whole=True)), (TARGET, labels))
    found = judge(*rows, objective=SPARSE._replace(units=30), rule="labels_degenerate", severity="info")
    assert ["shift the labels" in f.advice for f in found] == [True] * named


OUTPUT = TARGET._replace(name="output", kind="output")


def test_an_infinite_loss_of_infinite_outputs_is_no_warning_of_numpy():
    def broken(t, columns):
        columns["loss"] = np.float64(np.inf)
        columns["data_std"] = np.array([1.0, np.inf])

    assert judge((TARGET, normal()), (OUTPUT, normal()), change=broken, rule="loss_mismatch") == []


def squares(share=1.0, covariance=0.0):
    """Return a change to a loss that is a share of the mean square over all pairs, less twice a covariance."""

    def change(t, columns):
        variances, means = columns["data_std"] ** 2, columns["data_mean"]
        columns["loss"] = np.float64(share * (variances.sum() + np.diff(means)[0] ** 2 - 2 * covariance))

    return change


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_loss_of_each_output_and_all_targets_is_an_error(share):
    (found,) = judge((TARGET, normal()), (OUTPUT, normal(0.2)), change=squares(share), rule="loss_mismatch")
    assert (found.severity, "[N, N]" in found.message) == ("error", True)


@pytest.mark.parametrize(
    ("output", "change"),
    [
        (normal(0.2), squares(covariance=1e-3)),
        (normal(0.2), squares(share=0.9)),
        (normal(0.2), put("loss", None, NAN)),
        (normal(1e-3), squares()),
        (normal(0.2, size=4000), squares()),
    ],
    ids=["a covariance", "another loss", "no loss", "outputs that hardly differ", "more outputs"],
)
def test_another_loss_is_not_of_all_targets(output, change):
    assert judge((TARGET, normal()), (OUTPUT, output), change=change, rule="loss_mismatch") == []


@pytest.mark.parametrize(("longest", "named"), [(500, True), (1500, False)])
def test_padding_is_named_where_the_output_is_the_same_for_all_examples(longest, named):
    def constant(t, columns):
        columns |= {f"activation_{end}": np.array([-1, -1, -1, 0.5]) for end in ("min", "max")}
        columns["examples_seen"] = np.float64(32 * (t + 1))

    def padded(t):
        return np.where(np.arange(2000) < longest, uniform(1, 400, whole=True)(t), 0)

    (found,) = judge((WORDS, padded), change=constant, rule="constant_output")
    assert ("mask_zero" in found.advice) == named
