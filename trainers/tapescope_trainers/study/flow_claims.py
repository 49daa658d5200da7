"""The claims about the gradient on its way back, (a), (b), (d) and (e), as tests."""

from collections.abc import Iterator
from typing import Any

from tapescope_trainers.study.grid import Setup
from tapescope_trainers.study.measures import accuracy, backward_gain, learning, mean, over
from tapescope_trainers.study.verdicts import Test

SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1}
MOST = 2 / 3
"""Share from which on something is called most: a clear majority, for a half is what chance gives."""


def saturation() -> Iterator[Test]:
    """(a): what saturation takes, and whether earlier layers stop learning."""

    def stops(depth: int, where: str, **how: Any) -> Test:
        quantity = "relative update of the first layer over the last hidden one's, sigmoid minus ReLU, decades"
        sigmoid, relu = (Setup(kind, depth, **how) for kind in ("sigmoid", "relu"))
        return Test(
            f"depth {depth} with {where}",
            quantity,
            learning,
            sigmoid,
            relu,
            below=-1,
            wrong=adam_helps,
            part="earlier layers stop learning",
        )

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
        part="the derivative",
    )
    for depth in (4, 8):
        yield Test(
            f"depth {depth} with Adam",
            "validation accuracy, sigmoid minus ReLU, points",
            accuracy,
            Setup("sigmoid", depth),
            Setup("relu", depth),
            below=-1,
            decides=False,
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


def relu_passes() -> Iterator[Test]:
    """(b): ReLU's own loss, and the difference to a sigmoid."""

    def test(depth: int, initializer: str, phase: str, against: bool, **more: Any) -> Test:
        optimizer = {} if phase == "end" and depth == 8 else SGD  # with SGD eight sigmoid layers learn nothing at all
        relu, sigmoid = (Setup(kind, depth, initializer=initializer, **optimizer) for kind in ("relu", "sigmoid"))
        quantity = f"backward gain a layer, ReLU{' minus sigmoid' * against}, decades"
        where = f"depth {depth}, {initializer}, the {phase}"
        return Test(where, quantity, backward_gain(phase), relu, sigmoid if against else None, **more)

    starts = [(4, "glorot_uniform"), *((8, name) for name in ("glorot_uniform", "he_normal", "orthogonal"))]
    ends = [(4, "glorot_uniform"), (8, "glorot_uniform")]
    for depth, initializer in starts:
        yield test(depth, initializer, "start", True, above=0.3, part="less than a sigmoid takes")
    for phase, conditions in (("start", starts), ("end", ends)):
        for depth, initializer in conditions:
            yield test(depth, initializer, phase, False, above=-0.3, part="little lost in ReLU layers")
    for depth, initializer in ends:
        yield test(
            depth,
            initializer,
            "end",
            True,
            above=0.3,
            decides=False,
            wrong="A sigmoid network is not bound to lose the gradient: trained with Adam it has larger weights, which "
            "make up for what its gates take.",
        )
    yield Test(
        "depth 8, glorot_uniform, the end",
        "what the weights of a sigmoid layer give back, decades",
        over("flow_weight", "sigmoid", "end"),
        Setup("sigmoid", 8),
        above=0.3,
        decides=False,
    )
    for depth, initializer in starts[1:]:
        yield test(
            depth,
            initializer,
            "start",
            False,
            above=-0.1,
            decides=False,
            wrong="A derivative of 1 for positive inputs alone does not keep the gradient's size: about half of the "
            "inputs are negative, which costs 0.15 decades a layer unless the initial weights make up for it (He).",
        )


def sigmoid_after_relu() -> Iterator[Test]:
    """(d): the sign of what goes into the sigmoid, its gate, and the gradient through a whole network."""
    chain = Setup("relu-sigmoid")
    for name, setup in (("hidden sigmoid", chain), ("Example 1", Setup("relu_sigmoid"))):
        for phase in ("start", "end"):
            yield Test(
                f"{name}, the {phase}",
                "share of the sigmoid's inputs that are positive",
                lambda t, phase=phase: t.between(0.5, 2.0, 1, phase),  # sigmoid(z) >= 1/2 where z >= 0
                setup,
                above=MOST,
                part="mostly positive inputs",
                wrong="The sigmoid does not receive mostly positive inputs after a ReLU: what goes into it is Wx + b, "
                "and W has both signs. Nor would it help if it did: the sigmoid's derivative is the same at z and -z.",
            )
    for phase in ("start", "end"):
        yield Test(
            f"the ReLU before it, the {phase}",
            "share of the ReLU's outputs that are positive",
            lambda t, phase=phase: 1 - t.mean("activation_zero", 0, phase),
            chain,
            above=MOST,
            decides=False,
        )
    for against, name in ((Setup("linear-sigmoid"), "a linear layer"), (Setup("sigmoid", 2), "a sigmoid")):
        for phase in ("start", "end"):
            yield Test(
                f"than after {name}, the {phase}",
                "gate of the sigmoid after ReLU minus after another layer, decades",
                mean("flow_gate", 1, phase),
                chain,
                against,
                above=0.1,
                part="a cheaper gate",
                wrong="A ReLU before it makes a sigmoid's gate no cheaper.",
            )
    for against, name in (
        (Setup("linear-sigmoid", 4), "linear layers in the ReLUs' place"),
        (Setup("sigmoid", 8), "sigmoids alone"),
    ):
        control = name != "sigmoids alone"
        yield Test(
            f"8 layers, than with {name}",
            "backward gain a layer, ReLU and sigmoid in turn minus the other, decades",
            backward_gain("start"),
            Setup("relu-sigmoid", 4),
            against,
            above=0.1,
            part="less vanishing by ReLU" if control else "",
            wrong="What a ReLU between sigmoids saves, a linear layer in its place saves as well: there are half as "
            "many sigmoids, that is all.",
            decides=control,
        )


def still_saturates() -> Iterator[Test]:
    """(e): where inputs or weights are large; at four times the inputs they are not yet, which is told beside it."""
    plain = Setup("relu-sigmoid")
    for what, field in (("inputs", "input_scale"), ("weights", "gain")):
        for factor in (16, 4):
            large = plain._replace(**{field: float(factor)})
            for part, quantity, column, above, below in (
                ("saturated outputs", "share of the sigmoid's outputs saturated", "saturated", 0.1, None),
                ("the gate", "the sigmoid's gate, decades", "flow_gate", None, -0.1),
            ):
                yield Test(
                    f"{what} x {factor}",
                    f"{quantity}, minus the same at x 1",
                    mean(column, 1, "start"),
                    large,
                    plain,
                    above,
                    below,
                    part=part,
                    decides=factor == 16 or what == "weights",
                )
