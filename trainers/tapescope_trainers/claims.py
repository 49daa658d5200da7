"""The nine claims of the document, (a) to (i), and for each the tests that decide on it.

The claims say what has to be trained: the study's set-ups are those of its tests. The first test of each is what the
quick form runs. Thresholds say from where on an effect matters, and stand here, not with the results.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tapescope_trainers.grid import Setup
from tapescope_trainers.trial import Trial
from tapescope_trainers.verdicts import Claim, Test

SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1}
FAST: dict[str, Any] = {"learning_rate": 0.01}
EXAMPLE_1, EXAMPLE_2, EXAMPLE_3 = Setup("relu_sigmoid"), Setup("sigmoid_relu"), Setup("parallel_branches")
MOST = 2 / 3
"""Share from which on something is called most: a clear majority, for a half is what chance gives."""
Measure = Callable[[Trial], float]


def mean(column: str, layer: int, phase: str) -> Measure:
    """Of one layer, by its position."""
    return lambda t: t.mean(column, layer, phase)


def over(column: str, kind: str, phase: str) -> Measure:
    """Mean over the hidden layers with one activation."""
    return lambda t: t.mean(column, t.layers(kind), phase)


def backward_gain(phase: str) -> Measure:
    """Decades a layer: log10 of |dL/da| of the first hidden layer over that of the last, by the layers in between."""

    def measure(t: Trial) -> float:
        last = len(t.run.layers) - 2
        delta = t.run["delta_norm"][t.rows(phase)]
        return float(np.mean(np.log10(delta[:, 0] / delta[:, last])) / last)

    return measure


def learning(t: Trial) -> float:
    """Decades: the relative update of the first hidden layer's kernel over that of the last hidden layer's."""
    ratio = t.run["update_ratio"][t.rows("end")].mean(0)
    kernels = [i for i, name in enumerate(t.run.variables) if name.endswith("kernel")]
    first, last = np.maximum(ratio[[kernels[0], kernels[-2]]], 1e-12)  # an update below the weights' last digit is 0
    return float(np.log10(first / last))


def accuracy(t: Trial) -> float:
    """Of the validation examples, per cent."""
    return t.accuracy


def _saturation() -> Iterator[Test]:
    def stops(depth: int, where: str, **how: Any) -> Test:
        quantity = "relative update of the first layer over the last hidden one's, sigmoid minus ReLU, decades"
        sigmoid, relu = (Setup(kind, depth, **how) for kind in ("sigmoid", "relu"))
        return Test(f"depth {depth} with {where}", quantity, learning, sigmoid, relu, below=-1, wrong=adam_helps)

    adam_helps = (
        "That earlier layers stop learning is not general: two layers are too few for it, and Adam, which divides each "
        "gradient by its own size, goes on updating layers that a vanished gradient reaches."
    )
    yield stops(4, "SGD", **SGD)
    yield from (stops(depth, "SGD", **SGD) for depth in (2, 8))
    yield from (stops(depth, "Adam") for depth in (2, 4, 8))
    saturated, plain = Setup("sigmoid", 4, gain=16, **SGD), Setup("sigmoid", 4, **SGD)
    gate = over("flow_gate", "sigmoid", "start")
    yield Test(
        "saturated units (weights x 16)",
        "a sigmoid's gate, decades, saturated minus not",
        gate,
        saturated,
        plain,
        below=-0.3,
    )
    deep = Setup("sigmoid", 8, **SGD)
    yield Test(
        "depth 8 at the start",
        "share of saturated outputs where the gradient vanishes",
        over("saturated", "sigmoid", "start"),
        deep,
        above=0.01,
        decides=False,
        wrong="Saturation is not what makes the gradient vanish in a sigmoid network with usual initial weights: "
        "hardly any output is saturated there. The sigmoid's derivative is at most 1/4, so each layer costs at least "
        "0.6 decades at any input.",
    )
    yield Test(
        "depth 8 at the start",
        "a sigmoid's gate, decades",
        over("flow_gate", "sigmoid", "start"),
        deep,
        below=-0.6,
        decides=False,
    )


def _relu_passes() -> Iterator[Test]:
    quantity = "backward gain a layer, ReLU minus sigmoid, decades"

    def avoids(depth: int, initializer: str, phase: str, **how: Any) -> Test:
        relu, sigmoid = (Setup(kind, depth, initializer=initializer, **how) for kind in ("relu", "sigmoid"))
        where = f"depth {depth}, {initializer}, the {phase}"
        return Test(where, quantity, backward_gain(phase), relu, sigmoid, above=0.3)

    yield avoids(4, "glorot_uniform", "start", **SGD)
    yield avoids(4, "glorot_uniform", "end", **SGD)
    for initializer in ("glorot_uniform", "he_normal", "orthogonal"):
        yield avoids(8, initializer, "start", **SGD)
    yield avoids(8, "glorot_uniform", "end")
    for initializer in ("glorot_uniform", "he_normal"):
        relu = Setup("relu", 8, initializer=initializer, **SGD)
        yield Test(
            f"depth 8, {initializer}",
            "backward gain a layer of ReLU, decades (0: nothing lost)",
            backward_gain("start"),
            relu,
            above=-0.1,
            decides=False,
            wrong="A derivative of 1 for positive inputs alone does not keep the gradient's size: about half of the "
            "inputs are negative, which costs 0.15 decades a layer unless the initial weights make up for it (He).",
        )
    yield Test(
        "depth 8, glorot_uniform",
        "a ReLU's gate, decades",
        over("flow_gate", "relu", "start"),
        Setup("relu", 8, **SGD),
        above=-0.3,
        decides=False,
    )


def _relu_dies() -> Iterator[Test]:
    def dies(where: str, *, depth: int = 4, **how: Any) -> Test:
        return Test(
            where,
            "share of hidden ReLU units that are dead at the end",
            lambda t: t.dead(t.layers("relu"), "end"),
            Setup("relu", depth, **how),
            above=0.05,
            wrong="ReLU units die where steps are too large, not in general: at usual learning rates next to none do.",
        )

    yield dies("depth 2, Adam 0.1", depth=2, learning_rate=0.1)
    yield dies("Adam 0.1", learning_rate=0.1)
    yield dies("Adam 0.001")
    yield dies("Adam 0.01", **FAST)
    yield dies("Adam 0.001, he_normal", initializer="he_normal")
    yield dies("Adam 0.01, he_normal", initializer="he_normal", **FAST)
    yield dies("Adam 0.001, width 16", width=16)
    yield dies("SGD 0.1", **SGD)
    yield dies("SGD 1", optimizer="sgd", learning_rate=1.0)


def _sigmoid_after_relu() -> Iterator[Test]:
    chain, linear, sigmoids = Setup("relu-sigmoid"), Setup("linear-sigmoid"), Setup("sigmoid", 2)
    not_positive = (
        "The sigmoid does not receive mostly positive inputs after a ReLU: what goes into it is Wx + b, and W has both "
        "signs. Nor would it help if it did: the sigmoid's derivative is the same at z and -z."
    )
    for name, setup, phase in (
        ("the hidden sigmoid", chain, "start"),
        ("the hidden sigmoid", chain, "end"),
        ("Example 1's sigmoid", EXAMPLE_1, "start"),
        ("Example 1's sigmoid", EXAMPLE_1, "end"),
    ):
        yield Test(
            f"positive inputs of {name}, the {phase}",
            "share of the sigmoid's inputs that are positive",
            lambda t, phase=phase: t.between(0.5, 2.0, 1, phase),  # sigmoid(z) >= 1/2 where z >= 0
            setup,
            above=MOST,
            wrong=not_positive,
        )
    for against, name in ((linear, "a linear layer"), (sigmoids, "a sigmoid")):
        for phase in ("start", "end"):
            yield Test(
                f"a cheaper gate than after {name}, the {phase}",
                f"the sigmoid's gate after ReLU minus after {name}, decades",
                mean("flow_gate", 1, phase),
                chain,
                against,
                above=0.1,
                wrong="A ReLU before it makes a sigmoid's gate no cheaper.",
            )
    alternating = Setup("relu-sigmoid", 4)
    for against, name in (
        (Setup("linear-sigmoid", 4), "linear and sigmoid layers"),
        (Setup("sigmoid", 8), "sigmoids alone"),
    ):
        yield Test(
            f"less vanishing than in 8 layers of {name}",
            "backward gain a layer, ReLU and sigmoid in turn minus the other, decades",
            backward_gain("start"),
            alternating,
            against,
            above=0.1,
            wrong="What a ReLU between sigmoids saves, a linear layer in its place saves as well: there are half as "
            "many sigmoids, that is all.",
        )


def _still_saturates() -> Iterator[Test]:
    plain = Setup("relu-sigmoid")
    for what, field in (("inputs", "input_scale"), ("weights", "gain")):
        for factor in (16, 4):
            large = plain._replace(**{field: float(factor)})
            for quantity, column, above, below in (
                ("share of the sigmoid's outputs that are saturated", "saturated", 0.1, None),
                ("the sigmoid's gate, decades", "flow_gate", None, -0.1),
            ):
                yield Test(
                    f"{what} x {factor}, the {'gate' if below else 'outputs'}",
                    f"{quantity}, minus the same at {what} x 1",
                    mean(column, 1, "start"),
                    large,
                    plain,
                    above,
                    below,
                )


def _relu_after_sigmoid() -> Iterator[Test]:
    chain, relus, linear = Setup("sigmoid-relu"), Setup("relu", 2), Setup("linear-relu")
    for phase in ("start", "end"):
        yield Test(
            f"more zeros than a ReLU after ReLU, the {phase}",
            "share of zeros of a ReLU after sigmoid minus after ReLU",
            mean("activation_zero", 1, phase),
            chain,
            relus,
            above=0.1,
            wrong="A ReLU has about as many zeros after a sigmoid as after any other layer: sigmoid outputs are all "
            "positive, so it can clip none of them; its zeros come from the signs of its weights.",
        )
    for name, setup in (("a hidden ReLU", chain), ("Example 2's ReLU", EXAMPLE_2)):
        for phase in ("start", "end")[: 2 if setup == chain else 1]:
            yield Test(
                f"the majority zero in {name}, the {phase}",
                "share of zeros of a ReLU after sigmoid",
                mean("activation_zero", 1, phase),
                setup,
                above=MOST,
                wrong="ReLU does not clip the majority of the sigmoid's outputs to zero.",
            )
    for against, name in ((relus, "ReLU"), (linear, "a linear layer")):
        for phase in ("start", "end"):
            yield Test(
                f"more dead units than after {name}, the {phase}",
                f"share of dead units of a ReLU after sigmoid minus after {name}",
                lambda t, phase=phase: t.dead([1], phase),
                chain,
                against,
                above=0.05,
                wrong="No more ReLU units die after a sigmoid than elsewhere.",
            )
    for phase in ("start", "end"):
        yield Test(
            f"most in the first layers, the {phase}",
            "share of zeros of the first of four ReLUs, each after a sigmoid, minus that of the last",
            lambda t, phase=phase: t.mean("activation_zero", 1, phase) - t.mean("activation_zero", 7, phase),
            Setup("sigmoid-relu", 4),
            above=0.05,
            wrong="The zeros are not most frequent in the first layers.",
        )


def _example_2() -> Iterator[Test]:
    def worse(where: str, **how: Any) -> Test:
        first, second = EXAMPLE_1._replace(**how), EXAMPLE_2._replace(**how)
        quantity = "validation accuracy of Example 2 minus Example 1, points"
        return Test(f"its accuracy with {where}", quantity, accuracy, second, first, below=-1)

    yield worse("Adam 0.001")
    yield worse("Adam 0.01", **FAST)
    yield worse("SGD 0.1", **SGD)
    yield Test(
        "its variance at the start",
        "log10 of the standard deviation of the hidden layer's outputs, Example 2 minus Example 1, decades",
        lambda t: float(np.log10(t.mean("activation_std", 0, "start"))),
        EXAMPLE_2,
        EXAMPLE_1,
        below=-0.1,
        wrong="The outputs of Example 2's sigmoid do not vary less than those of Example 1's ReLU.",
    )
    yield Test(
        "outputs near zero at the start",
        "share of the sigmoid's outputs below 1/8",
        lambda t: t.between(0.0, 0.125, 0, "start"),
        EXAMPLE_2,
        above=0.25,
        wrong="The sigmoid's outputs are not near zero: they start around 1/2, the sigmoid of 0.",
    )


def _branches() -> Iterator[Test]:
    for how, where in (({}, "Adam 0.001"), (FAST, "Adam 0.01")):
        for against, name in (
            (EXAMPLE_1, "Example 1"),
            (EXAMPLE_2, "Example 2"),
            (Setup("relu-sigmoid"), "hidden ReLU, sigmoid"),
            (Setup("sigmoid-relu"), "hidden sigmoid, ReLU"),
            (Setup("relu", width=128), "one ReLU layer of as many units"),
        ):
            yield Test(
                f"{name}, {where}",
                "validation accuracy of Example 3 minus the other, points",
                accuracy,
                EXAMPLE_3._replace(**how),
                against._replace(**how),
                above=1,
                wrong="Parallel branches are no better than a simple sequence that works.",
            )


def _alternatives() -> Iterator[Test]:
    alternatives = {
        "ELU": Setup("elu"),
        "Leaky ReLU": Setup("leaky_relu"),
        "width 256": Setup("relu", width=256),
        "width 16": Setup("relu", width=16),
        "depth 2": Setup("relu", 2),
        "depth 4": Setup("relu", 4),
        "ELU, depth 4": Setup("elu", 4),
        "Leaky ReLU, depth 4": Setup("leaky_relu", 4),
    }
    for reference, name in ((EXAMPLE_1, "Example 1"), (EXAMPLE_2, "Example 2")):
        for what, setup in alternatives.items():
            yield Test(
                f"{what} over {name}",
                "validation accuracy minus that of the combination, points",
                accuracy,
                setup,
                reference,
                above=5,
                wrong=f"These alternatives are not far better than {name}.",
            )


CLAIMS = tuple(
    Claim(letter, text, tuple(tests()))
    for letter, text, tests in (
        ("a", "A saturated sigmoid's derivative nears zero, and earlier layers stop learning", _saturation),
        ("b", "ReLU's derivative of 1 avoids that", _relu_passes),
        ("c", "ReLU units die", _relu_dies),
        ("d", "Sigmoid after ReLU receives mostly positive inputs, which mitigates vanishing", _sigmoid_after_relu),
        ("e", "It saturates still when its inputs are large", _still_saturates),
        (
            "f",
            "ReLU after sigmoid leaves a significant share of units at zero, most in first layers",
            _relu_after_sigmoid,
        ),
        ("g", "Example 2's sigmoid has little variance and much near zero; it is less desirable", _example_2),
        ("h", "Parallel branches often beat simple sequences", _branches),
        ("i", "ELU, Leaky ReLU, depth or width may do far better", _alternatives),
    )
)

QUICK = tuple(claim._replace(tests=claim.tests[:1]) for claim in CLAIMS)
"""One test each, for a run of seconds that shows that everything works; it says little of the claims."""


def setups(claims: tuple[Claim, ...]) -> list[Setup]:
    """All that has to be trained, each once, the deepest first: they take longest."""
    sides = (side for claim in claims for test in claim.tests for side in (test.setup, test.against))
    return sorted({side for side in sides if side}, key=lambda s: (-len(s.hidden), s.name))
