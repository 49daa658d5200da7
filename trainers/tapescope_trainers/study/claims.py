"""The nine claims of the document, (a) to (i), and for each the tests that decide on it.

The claims determine what has to be trained: the study's set-ups are those of its tests. A threshold says from where on
an effect matters. Thresholds stand here and not with the results.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tapescope_trainers.study.grid import Setup
from tapescope_trainers.study.measures import accuracy, activation_mean, backward_gain, layer_mean, relative_update
from tapescope_trainers.study.verdicts import Claim, Test

SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1}
FAST: dict[str, Any] = {"learning_rate": 0.01}
MOST = 2 / 3
"""Share from which on something is called most: a clear majority, because chance gives a half."""
EXAMPLE_1 = Setup("relu_sigmoid")
EXAMPLE_2 = Setup("sigmoid_relu")
EXAMPLE_3 = Setup("parallel_branches")
PHASES = ("start", "end")


def _saturation() -> Iterator[Test]:
    """Yield the tests of (a): what saturation costs the gradient, and whether earlier layers stop learning."""

    def stops_learning(depth: int, optimizer_name: str, **optimizer: Any) -> Test:
        return Test(
            condition=f"depth {depth} with {optimizer_name}",
            quantity="relative update of the first layer over the last hidden one's, sigmoid minus ReLU, decades",
            measure=relative_update,
            setup=Setup("sigmoid", depth, **optimizer),
            baseline=Setup("relu", depth, **optimizer),
            below=-1,
            correction="That earlier layers stop learning is not general: two layers are too few for it, and Adam, "
            "which divides each gradient by its own size, goes on updating layers that a vanished gradient reaches.",
            part="earlier layers stop learning",
        )

    yield stops_learning(4, "SGD", **SGD)
    for depth in (2, 8):
        yield stops_learning(depth, "SGD", **SGD)
    for depth in (2, 4, 8):
        yield stops_learning(depth, "Adam")
    gate = activation_mean("flow_gate", "sigmoid", "start")
    yield Test(
        condition="saturated units (weights x 16)",
        quantity="a sigmoid's gate, decades, saturated minus not",
        measure=gate,
        setup=Setup("sigmoid", 4, gain=16, **SGD),
        baseline=Setup("sigmoid", 4, **SGD),
        below=-0.3,
        part="the derivative",
    )
    for depth in (4, 8):
        yield Test(
            condition=f"depth {depth} with Adam",
            quantity="validation accuracy, sigmoid minus ReLU, points",
            measure=accuracy,
            setup=Setup("sigmoid", depth),
            baseline=Setup("relu", depth),
            below=-1,
            decides=False,
        )
    deep = Setup("sigmoid", 8, **SGD)
    yield Test(
        condition="depth 8 at the start",
        quantity="share of saturated outputs where the gradient vanishes",
        measure=activation_mean("saturated", "sigmoid", "start"),
        setup=deep,
        above=0.01,
        decides=False,
        correction="Saturation is not what makes the gradient vanish in a sigmoid network with usual initial weights: "
        "hardly any output is saturated there. The sigmoid's derivative is at most 1/4, so each layer costs at least "
        "0.6 decades at any input.",
    )
    yield Test(
        condition="depth 8 at the start",
        quantity="a sigmoid's gate, decades",
        measure=gate,
        setup=deep,
        below=-0.6,
        decides=False,
    )


def _relu_passes() -> Iterator[Test]:
    """Yield the tests of (b): what a ReLU costs the gradient, and how much less than a sigmoid."""

    def gain(depth: int, initializer: str, phase: str, *, minus_sigmoid: bool, **more: Any) -> Test:
        # With SGD eight sigmoid layers learn nothing at all.
        optimizer = {} if phase == "end" and depth == 8 else SGD
        suffix = " minus sigmoid" if minus_sigmoid else ""
        sigmoid = Setup("sigmoid", depth, initializer=initializer, **optimizer)
        return Test(
            condition=f"depth {depth}, {initializer}, the {phase}",
            quantity=f"backward gain a layer, ReLU{suffix}, decades",
            measure=backward_gain(phase),
            setup=Setup("relu", depth, initializer=initializer, **optimizer),
            baseline=sigmoid if minus_sigmoid else None,
            **more,
        )

    starts = [(4, "glorot_uniform"), (8, "glorot_uniform"), (8, "he_normal"), (8, "orthogonal")]
    ends = [(4, "glorot_uniform"), (8, "glorot_uniform")]
    for depth, initializer in starts:
        yield gain(depth, initializer, "start", minus_sigmoid=True, above=0.3, part="less than a sigmoid takes")
    for phase, conditions in (("start", starts), ("end", ends)):
        for depth, initializer in conditions:
            yield gain(depth, initializer, phase, minus_sigmoid=False, above=-0.3, part="little lost in ReLU layers")
    for depth, initializer in ends:
        yield gain(
            depth,
            initializer,
            "end",
            minus_sigmoid=True,
            above=0.3,
            decides=False,
            correction="A sigmoid network is not bound to lose the gradient: trained with Adam it has larger weights, "
            "which make up for what its gates take.",
        )
    yield Test(
        condition="depth 8, glorot_uniform, the end",
        quantity="what the weights of a sigmoid layer give back, decades",
        measure=activation_mean("flow_weight", "sigmoid", "end"),
        setup=Setup("sigmoid", 8),
        above=0.3,
        decides=False,
    )
    for depth, initializer in starts[1:]:
        yield gain(
            depth,
            initializer,
            "start",
            minus_sigmoid=False,
            above=-0.1,
            decides=False,
            correction="A derivative of 1 for positive inputs alone does not keep the gradient's size: about half of "
            "the inputs are negative, which costs 0.15 decades a layer unless the initial weights make up for it (He).",
        )


def _relu_dies() -> Iterator[Test]:
    """Yield the tests of (c)."""

    def dies(condition: str, *, depth: int = 4, **setup: Any) -> Test:
        return Test(
            condition=condition,
            quantity="share of hidden ReLU units that are dead at the end, minus those that were at the start",
            measure=lambda t: t.dead_share(t.layers("relu"), "end") - t.dead_share(t.layers("relu"), "start"),
            setup=Setup("relu", depth, **setup),
            above=0.05,
            correction="ReLU units do not die everywhere: with small enough steps the share that is dead stays about "
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
        condition="Adam 0.001",
        quantity="share of hidden ReLU units that are dead at the start",
        measure=lambda t: t.dead_share(t.layers("relu"), "start"),
        setup=Setup("relu", 4),
        above=0.01,
        decides=False,
    )


def _sigmoid_after_relu() -> Iterator[Test]:
    """Yield the tests of (d): the sign of the sigmoid's inputs, its gate, and the gradient through a whole network."""
    chain = Setup("relu-sigmoid")
    for name, setup in (("hidden sigmoid", chain), ("Example 1", EXAMPLE_1)):
        for phase in PHASES:
            yield Test(
                condition=f"{name}, the {phase}",
                quantity="share of the sigmoid's inputs that are positive",
                measure=lambda t, phase=phase: t.share_between(0.5, 2.0, 1, phase),  # sigmoid(z) >= 1/2 if z >= 0
                setup=setup,
                above=MOST,
                part="mostly positive inputs",
                correction="The sigmoid does not receive mostly positive inputs after a ReLU: what goes into it is "
                "Wx + b, and W has both signs. Nor would it help if it did: the sigmoid's derivative is the same at z "
                "and -z.",
            )
    for phase in PHASES:
        yield Test(
            condition=f"the ReLU before it, the {phase}",
            quantity="share of the ReLU's outputs that are positive",
            measure=lambda t, phase=phase: 1 - t.mean("activation_zero", 0, phase),
            setup=chain,
            above=MOST,
            decides=False,
        )
    for baseline, name in ((Setup("linear-sigmoid"), "a linear layer"), (Setup("sigmoid", 2), "a sigmoid")):
        for phase in PHASES:
            yield Test(
                condition=f"than after {name}, the {phase}",
                quantity="gate of the sigmoid after ReLU minus after another layer, decades",
                measure=layer_mean("flow_gate", 1, phase),
                setup=chain,
                baseline=baseline,
                above=0.1,
                part="a cheaper gate",
                correction="A ReLU before it makes a sigmoid's gate no cheaper.",
            )
    for baseline, name, is_control in (
        (Setup("linear-sigmoid", 4), "linear layers in the ReLUs' place", True),
        (Setup("sigmoid", 8), "sigmoids alone", False),
    ):
        yield Test(
            condition=f"8 layers, than with {name}",
            quantity="backward gain a layer, ReLU and sigmoid in turn minus the other, decades",
            measure=backward_gain("start"),
            setup=Setup("relu-sigmoid", 4),
            baseline=baseline,
            above=0.1,
            part="less vanishing by ReLU" if is_control else "",
            correction="What a ReLU between sigmoids saves, a linear layer in its place saves as well: there are half "
            "as many sigmoids, that is all.",
            decides=is_control,
        )


def _still_saturates() -> Iterator[Test]:
    """Yield the tests of (e): large inputs or weights. Four times the inputs are not yet large, and do not decide."""
    plain = Setup("relu-sigmoid")
    for name, field in (("inputs", "input_scale"), ("weights", "gain")):
        for factor in (16, 4):
            large = plain._replace(**{field: float(factor)})
            decides = factor == 16 or name == "weights"
            yield Test(
                condition=f"{name} x {factor}",
                quantity="share of the sigmoid's outputs saturated, minus the same at x 1",
                measure=layer_mean("saturated", 1, "start"),
                setup=large,
                baseline=plain,
                above=0.1,
                part="saturated outputs",
                decides=decides,
            )
            yield Test(
                condition=f"{name} x {factor}",
                quantity="the sigmoid's gate, decades, minus the same at x 1",
                measure=layer_mean("flow_gate", 1, "start"),
                setup=large,
                baseline=plain,
                below=-0.1,
                part="the gate",
                decides=decides,
            )


def _relu_after_sigmoid() -> Iterator[Test]:
    """Yield the tests of (f)."""
    chain = Setup("sigmoid-relu")
    others = ((Setup("relu", 2), "ReLU"), (Setup("linear-relu"), "a linear layer"))
    for baseline, name in others:
        for phase in PHASES:
            yield Test(
                condition=f"than after {name}, the {phase}",
                quantity="share of dead units of a ReLU after sigmoid minus after another layer",
                measure=lambda t, phase=phase: t.dead_share([1], phase),
                setup=chain,
                baseline=baseline,
                above=0.05,
                part="more dead units than elsewhere",
                correction="No more ReLU units die after a sigmoid than elsewhere.",
            )
    for baseline, name in others:
        for phase in PHASES:
            yield Test(
                condition=f"than after {name}, the {phase}",
                quantity="share of zeros of a ReLU after sigmoid minus after another layer",
                measure=layer_mean("activation_zero", 1, phase),
                setup=chain,
                baseline=baseline,
                above=0.1,
                part="more zeros than elsewhere",
                correction="A ReLU has no more zeros after a sigmoid than after any other layer: sigmoid outputs are "
                "all positive, so it can clip none of them, and its zeros come from the signs of its weights. But the "
                "sigmoid's outputs differ little between examples, so the zeros are in the same units for all of them.",
            )
    for name, setup, phase in (
        ("a hidden ReLU, the start", chain, "start"),
        ("a hidden ReLU, the end", chain, "end"),
        ("Example 2's ReLU, the start", EXAMPLE_2, "start"),
    ):
        yield Test(
            condition=name,
            quantity="share of zeros of a ReLU after sigmoid",
            measure=layer_mean("activation_zero", 1, phase),
            setup=setup,
            above=MOST,
            part="the majority",
            correction="ReLU after sigmoid does not set a clear majority to zero: about half, as anywhere.",
        )
    for phase in PHASES:
        yield Test(
            condition=f"the {phase}",
            quantity="share of zeros of the first of four ReLUs, each after a sigmoid, minus that of the last",
            measure=lambda t, phase=phase: t.mean("activation_zero", 1, phase) - t.mean("activation_zero", 7, phase),
            setup=Setup("sigmoid-relu", 4),
            above=0.05,
            part="most in the first layers",
            correction="The zeros are not most frequent in the first layers.",
        )


def _example_2() -> Iterator[Test]:
    """Yield the tests of (g)."""
    for optimizer, name in (({}, "Adam 0.001"), (FAST, "Adam 0.01"), (SGD, "SGD 0.1")):
        yield Test(
            condition=name,
            quantity="validation accuracy of Example 2 minus Example 1, points",
            measure=accuracy,
            setup=EXAMPLE_2._replace(**optimizer),
            baseline=EXAMPLE_1._replace(**optimizer),
            below=-1,
            part="less desirable",
        )
    yield Test(
        condition="the start",
        quantity="standard deviation of the hidden layer's outputs, log10 of Example 2's over Example 1's",
        measure=lambda t: float(np.log10(t.mean("activation_std", 0, "start"))),
        setup=EXAMPLE_2,
        baseline=EXAMPLE_1,
        below=-0.1,
        part="little variance",
        correction="The outputs of Example 2's sigmoid do not vary less than those of Example 1's ReLU.",
    )
    yield Test(
        condition="the start",
        quantity="share of the sigmoid's outputs below 1/8",
        measure=lambda t: t.share_between(0.0, 0.125, 0, "start"),
        setup=EXAMPLE_2,
        above=0.25,
        part="much near zero",
        correction="The sigmoid's outputs are not near zero: they start around 1/2, the sigmoid of 0.",
    )
    for optimizer, name in (({}, "Adam 0.001"), (FAST, "Adam 0.01")):
        yield Test(
            condition=name,
            quantity="validation accuracy of Example 2 with a softmax for its ReLU minus Example 1, points",
            measure=accuracy,
            setup=Setup("sigmoid", **optimizer),
            baseline=EXAMPLE_1._replace(**optimizer),
            below=-1,
            decides=False,
            correction="What ruins Example 2 is not its sigmoid but the ReLU in the place of probabilities: where all "
            "ten outputs of an example are 0, the cross-entropy, Keras' own too, divides 0 by 0, and the loss is NaN.",
        )


def _branches() -> Iterator[Test]:
    """Yield the tests of (h)."""
    for optimizer, optimizer_name in (({}, "Adam 0.001"), (FAST, "Adam 0.01")):
        for baseline, name in (
            (EXAMPLE_1, "Example 1"),
            (EXAMPLE_2, "Example 2"),
            (Setup("relu-sigmoid"), "hidden ReLU, sigmoid"),
            (Setup("sigmoid-relu"), "hidden sigmoid, ReLU"),
            (Setup("relu", width=128), "one ReLU layer of as many units"),
        ):
            yield Test(
                condition=f"{name}, {optimizer_name}",
                quantity="validation accuracy of Example 3 minus the other, points",
                measure=accuracy,
                setup=EXAMPLE_3._replace(**optimizer),
                baseline=baseline._replace(**optimizer),
                above=1,
                correction="Parallel branches are no better than a simple sequence that works.",
            )


def _alternatives() -> Iterator[Test]:
    """Yield the tests of (i)."""
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
    for example, name in ((EXAMPLE_1, "Example 1"), (EXAMPLE_2, "Example 2")):
        for condition, setup in alternatives.items():
            yield Test(
                condition=condition,
                quantity=f"validation accuracy minus that of {name}, points",
                measure=accuracy,
                setup=setup,
                baseline=example,
                above=5,
                part=f"than {name}",
                correction=f"These alternatives are not far better than {name}.",
            )


CLAIMS = (
    Claim(
        "a",
        "A saturated sigmoid's derivative nears zero, and earlier layers stop learning",
        tuple(_saturation()),
    ),
    Claim("b", "ReLU's derivative of 1 avoids that", tuple(_relu_passes())),
    Claim("c", "ReLU units die", tuple(_relu_dies())),
    Claim(
        "d",
        "Sigmoid after ReLU receives mostly positive inputs, which mitigates vanishing",
        tuple(_sigmoid_after_relu()),
    ),
    Claim("e", "It saturates still when its inputs are large", tuple(_still_saturates())),
    Claim(
        "f",
        "ReLU after sigmoid leaves a significant share of units at zero, most in first layers",
        tuple(_relu_after_sigmoid()),
    ),
    Claim(
        "g",
        "Example 2's sigmoid has little variance and much near zero; it is less desirable",
        tuple(_example_2()),
    ),
    Claim("h", "Parallel branches often beat simple sequences", tuple(_branches())),
    Claim("i", "ELU, Leaky ReLU, depth or width may do far better", tuple(_alternatives())),
)

QUICK_SETUPS = {
    EXAMPLE_1,
    EXAMPLE_2,
    EXAMPLE_3,
    Setup("elu"),
    Setup("relu", 4, **SGD),
    Setup("sigmoid", 4, **SGD),
    Setup("relu-sigmoid"),
    Setup("relu-sigmoid", input_scale=16),
}
"""The few set-ups of --quick."""


def restricted(claims: tuple[Claim, ...], setups: set[Setup]) -> tuple[Claim, ...]:
    """Return the claims with only those tests that need no other set-ups."""
    return tuple(
        claim._replace(tests=tuple(t for t in claim.tests if {t.setup, t.baseline or t.setup} <= setups))
        for claim in claims
    )


QUICK = restricted(CLAIMS, QUICK_SETUPS)
"""The tests of --quick, a short run that shows that everything works; it says little about the claims."""


def setups(claims: tuple[Claim, ...]) -> list[Setup]:
    """Return all set-ups that have to be trained, each once. The deepest come first, because they take longest."""
    both = (setup for claim in claims for test in claim.tests for setup in (test.setup, test.baseline))
    return sorted({setup for setup in both if setup}, key=lambda setup: (-len(setup.hidden), setup.name))
