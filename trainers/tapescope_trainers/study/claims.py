"""The nine claims of the document, (a) to (i), and for each the tests that decide on it.

The claims say what has to be trained: the study's set-ups are those of its tests. Thresholds say from where on an
effect matters, and stand here, not with the results.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tapescope_trainers.study import flow_claims
from tapescope_trainers.study.flow_claims import MOST, SGD
from tapescope_trainers.study.grid import Setup
from tapescope_trainers.study.measures import accuracy, mean
from tapescope_trainers.study.verdicts import Claim, Test

FAST: dict[str, Any] = {"learning_rate": 0.01}
EXAMPLE_1, EXAMPLE_2, EXAMPLE_3 = Setup("relu_sigmoid"), Setup("sigmoid_relu"), Setup("parallel_branches")


def _relu_dies() -> Iterator[Test]:
    def dies(where: str, *, depth: int = 4, **how: Any) -> Test:
        return Test(
            where,
            "share of hidden ReLU units that are dead at the end, minus those that were at the start",
            lambda t: t.dead(t.layers("relu"), "end") - t.dead(t.layers("relu"), "start"),
            Setup("relu", depth, **how),
            above=0.05,
            wrong="ReLU units do not die everywhere: with small enough steps the share that is dead stays about "
            "what it was at the start.",
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
    yield Test(
        "Adam 0.001",
        "share of hidden ReLU units that are dead at the start",
        lambda t: t.dead(t.layers("relu"), "start"),
        Setup("relu", 4),
        above=0.01,
        decides=False,
    )


def _relu_after_sigmoid() -> Iterator[Test]:
    chain, others = Setup("sigmoid-relu"), ((Setup("relu", 2), "ReLU"), (Setup("linear-relu"), "a linear layer"))
    for against, name in others:
        for phase in ("start", "end"):
            yield Test(
                f"than after {name}, the {phase}",
                "share of dead units of a ReLU after sigmoid minus after another layer",
                lambda t, phase=phase: t.dead([1], phase),
                chain,
                against,
                above=0.05,
                part="more dead units than elsewhere",
                wrong="No more ReLU units die after a sigmoid than elsewhere.",
            )
    for against, name in others:
        for phase in ("start", "end"):
            yield Test(
                f"than after {name}, the {phase}",
                "share of zeros of a ReLU after sigmoid minus after another layer",
                mean("activation_zero", 1, phase),
                chain,
                against,
                above=0.1,
                part="more zeros than elsewhere",
                wrong="A ReLU has no more zeros after a sigmoid than after any other layer: sigmoid outputs are all "
                "positive, so it can clip none of them, and its zeros come from the signs of its weights. But the "
                "sigmoid's outputs differ little between examples, so the zeros are in the same units for all of them.",
            )
    for name, setup, phase in (
        ("a hidden ReLU, the start", chain, "start"),
        ("a hidden ReLU, the end", chain, "end"),
        ("Example 2's ReLU, the start", EXAMPLE_2, "start"),
    ):
        yield Test(
            name,
            "share of zeros of a ReLU after sigmoid",
            mean("activation_zero", 1, phase),
            setup,
            above=MOST,
            part="the majority",
            wrong="ReLU after sigmoid does not set a clear majority to zero: about half, as anywhere.",
        )
    for phase in ("start", "end"):
        yield Test(
            f"the {phase}",
            "share of zeros of the first of four ReLUs, each after a sigmoid, minus that of the last",
            lambda t, phase=phase: t.mean("activation_zero", 1, phase) - t.mean("activation_zero", 7, phase),
            Setup("sigmoid-relu", 4),
            above=0.05,
            part="most in the first layers",
            wrong="The zeros are not most frequent in the first layers.",
        )


def _example_2() -> Iterator[Test]:
    for how, where in (({}, "Adam 0.001"), (FAST, "Adam 0.01"), (SGD, "SGD 0.1")):
        yield Test(
            where,
            "validation accuracy of Example 2 minus Example 1, points",
            accuracy,
            EXAMPLE_2._replace(**how),
            EXAMPLE_1._replace(**how),
            below=-1,
            part="less desirable",
        )
    yield Test(
        "the start",
        "standard deviation of the hidden layer's outputs, log10 of Example 2's over Example 1's",
        lambda t: float(np.log10(t.mean("activation_std", 0, "start"))),
        EXAMPLE_2,
        EXAMPLE_1,
        below=-0.1,
        part="little variance",
        wrong="The outputs of Example 2's sigmoid do not vary less than those of Example 1's ReLU.",
    )
    yield Test(
        "the start",
        "share of the sigmoid's outputs below 1/8",
        lambda t: t.between(0.0, 0.125, 0, "start"),
        EXAMPLE_2,
        above=0.25,
        part="much near zero",
        wrong="The sigmoid's outputs are not near zero: they start around 1/2, the sigmoid of 0.",
    )
    for how, where in (({}, "Adam 0.001"), (FAST, "Adam 0.01")):
        yield Test(
            where,
            "validation accuracy of Example 2 with a softmax for its ReLU minus Example 1, points",
            accuracy,
            Setup("sigmoid", **how),
            EXAMPLE_1._replace(**how),
            below=-1,
            decides=False,
            wrong="What ruins Example 2 is not its sigmoid but the ReLU in the place of probabilities: where all ten "
            "outputs of an example are 0, the cross-entropy, Keras' own too, divides 0 by 0, and the loss is NaN.",
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
                what,
                f"validation accuracy minus that of {name}, points",
                accuracy,
                setup,
                reference,
                above=5,
                part=f"than {name}",
                wrong=f"These alternatives are not far better than {name}.",
            )


CLAIMS = tuple(
    Claim(letter, text, tuple(tests()))
    for letter, text, tests in (
        ("a", "A saturated sigmoid's derivative nears zero, and earlier layers stop learning", flow_claims.saturation),
        ("b", "ReLU's derivative of 1 avoids that", flow_claims.relu_passes),
        ("c", "ReLU units die", _relu_dies),
        (
            "d",
            "Sigmoid after ReLU receives mostly positive inputs, which mitigates vanishing",
            flow_claims.sigmoid_after_relu,
        ),
        ("e", "It saturates still when its inputs are large", flow_claims.still_saturates),
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

QUICK_SETUPS = {
    *(EXAMPLE_1, EXAMPLE_2, EXAMPLE_3, Setup("elu")),
    *(
        Setup("relu", 4, **SGD),
        Setup("sigmoid", 4, **SGD),
        Setup("relu-sigmoid"),
        Setup("relu-sigmoid", input_scale=16),
    ),
}
QUICK = tuple(
    c._replace(tests=tuple(t for t in c.tests if {t.setup, t.against or t.setup} <= QUICK_SETUPS)) for c in CLAIMS
)
"""What these few can say, for a run of seconds which shows that everything works; it says little of the claims."""


def setups(claims: tuple[Claim, ...]) -> list[Setup]:
    """All that has to be trained, each once, the deepest first: they take longest."""
    sides = (side for claim in claims for test in claim.tests for side in (test.setup, test.against))
    return sorted({side for side in sides if side}, key=lambda s: (-len(s.hidden), s.name))
