"""The study as a page of Markdown: a row for each claim, what the document gets wrong, every test, every set-up."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tapescope_trainers.study import verdicts
from tapescope_trainers.study.grid import Setup
from tapescope_trainers.study.shortcut import Shortcut
from tapescope_trainers.study.trial import BATCH, FIRST_STEPS, LAST_STEPS, WINDOW_STEPS, Trial
from tapescope_trainers.study.verdicts import FAILS, Claim, Outcome, Part

Trials = Mapping[Setup, Sequence[Trial]]


def markdown(
    claims: Sequence[Claim], trials: Trials, shortcut: Shortcut | None, steps: int, quick: bool = False
) -> str:
    """The whole page."""
    found = {claim: [verdicts.outcome(test, trials) for test in claim.tests] for claim in claims}
    parts = [
        "# What combining sigmoid and ReLU does",
        "<!-- Written by tapescope-study; `make study` makes it again. -->",
        "**The quick form: it shows that everything works, and decides nothing.**" if quick else "",
        _how(trials, steps, sum(len(outcomes) for outcomes in found.values())),
        "## The claims",
        _claims(found),
        "## Where the document is wrong",
        _wrong(found, shortcut),
        "## Every test",
        _tests(found),
        "## Every set-up",
        _setups(trials),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how(trials: Trials, steps: int, tests: int) -> str:
    seeds, runs = len(next(iter(trials.values()))), sum(map(len, trials.values()))
    level = f"{100 * verdicts.LEVEL:.0f} %"
    return f"""\
A text on combining sigmoid and ReLU activations makes nine claims. Here are its three networks and the alternatives
that it names, measured: {len(trials)} set-ups with {seeds} seeds, {runs} runs of {steps} steps of {BATCH} examples, on
the 1,797 digits (8 x 8 pixels, where the text has MNIST's 28 x 28) that come with scikit-learn, a fifth of them held
back. The seed sets the initial weights, the split and the order of the examples. Hidden layers have 64 units, Glorot's
initial weights and Adam at 0.001 unless it says otherwise. The loss goes through the output's activation, as the text
describes it.

Effects are means over the seeds, of paired differences where two set-ups are compared, with {level} confidence
intervals (Student's t). A test *holds* where the whole interval is on the claim's side of the threshold, *fails* where
it is wholly on the other side, and is *undecided* else. What a claim says on one point is supported where all tests of
it hold, refuted where all fail, and else it depends; the claim is **supported** or **refuted** where all its points
are, else it **depends**. The level is that of each interval, not of all {tests} together: some will be wrong. The
thresholds were set before the first full run; after it tests were added, it was settled which ones decide and which are
asides, and (c) came to count deaths since the start.

*Start* is the first {FIRST_STEPS} steps, *end* the last {LAST_STEPS}. A *gate* is what an activation leaves of the
gradient's norm on its way back, in decades (log10); a *backward gain* is the same of activations and weights. A unit is
*dead* that gave 0 on every one of {WINDOW_STEPS * BATCH:,} examples. *Points* are percentage points."""


def _claims(found: Mapping[Claim, Sequence[Outcome]]) -> str:
    rows = []
    for claim, outcomes in found.items():
        parts = verdicts.parts(outcomes)
        rows.append(
            [
                f"({claim.letter}) {claim.text}",
                _lines(parts, lambda part: f"{part.outcomes[0].test.quantity} ({part.outcomes[0].test.where})"),
                _lines(parts, lambda part: f"{_effect(part.outcomes[0])}, claimed {part.outcomes[0].test.threshold}"),
                f"**{verdicts.verdict(outcomes)}**" + _on_what(parts),
            ]
        )
    return _rows(["claim", "quantity that decides (first condition)", "effect [interval] there", "verdict"], rows)


def _lines(parts: Sequence[Part], text: Callable[[Part], str]) -> str:
    """A line for each part, with its name where there are several."""
    several = len(parts) > 1
    return "<br>".join((f"*{part.name}*: " if several else "") + text(part) for part in parts)


def _on_what(parts: Sequence[Part]) -> str:
    if len(parts) > 1 and len({part.word for part in parts}) == 1 and not any(part.on_what for part in parts):
        return ""
    text = _lines(parts, lambda p: (p.word if len(parts) > 1 else "") + (f" ({p.on_what})" if p.on_what else ""))
    return f"<br>{text.strip()}" if text else ""


def _wrong(found: Mapping[Claim, Sequence[Outcome]], shortcut: Shortcut | None) -> str:
    said: dict[tuple[str, str], list[Outcome]] = {}
    for claim, outcomes in found.items():
        for o in outcomes:
            if o.says == FAILS and o.test.wrong:
                said.setdefault((claim.letter, o.test.wrong), []).append(o)
    lines = [
        f"- ({letter}) {text} *Measured:* " + "; ".join(f"{o.test.where}: {_effect(o)}" for o in outcomes) + "."
        for (letter, text), outcomes in said.items()
    ]
    if shortcut and shortcut.from_softmax < 1e-3 < shortcut.from_sigmoid:
        lines.append(
            "- Its code does not train the network that it describes. With `compile(loss='categorical_crossentropy')` "
            "Keras takes the logits behind Example 1's sigmoid and trains a softmax on them: a step of `fit` is that "
            f"loss's gradient to {shortcut.from_softmax:.0e}, and {100 * shortcut.from_sigmoid:.0f} % away from the "
            "gradient through the sigmoid. What the text says of Example 1's sigmoid and its gradient is not at work "
            "there."
        )
    return "\n".join(lines) or "Nowhere, by these tests."


def _tests(found: Mapping[Claim, Sequence[Outcome]]) -> str:
    rows = [
        [
            f"{claim.letter} {o.test.part}".strip(),
            o.test.quantity,
            o.test.where,
            _effect(o),
            o.test.threshold,
            o.says + ("" if o.test.decides else " (aside)"),
        ]
        for claim, outcomes in found.items()
        for o in outcomes
    ]
    return _rows(["", "quantity", "condition", "effect [interval]", "claimed", ""], rows)


def _setups(trials: Trials) -> str:
    rows = []
    for setup, of in sorted(trials.items(), key=lambda item: -np.mean([t.accuracy for t in item[1]])):
        accuracy = verdicts.interval([t.accuracy for t in of])
        loss = [t.loss for t in of]
        bad = sum(not np.isfinite(x) for x in loss)
        rows.append(
            [
                f"`{setup.name}`",
                f"{accuracy.mean:.1f} [{accuracy.low:.1f}, {accuracy.high:.1f}]",
                f"{bad} of {len(loss)} not finite" if bad else f"{np.mean(loss):.3f}",
            ]
        )
    return _rows(["set-up", "validation accuracy, %", "validation loss"], rows)


def _effect(o: Outcome) -> str:
    return f"{_number(o.effect.mean)} [{_number(o.effect.low)}, {_number(o.effect.high)}]"


def _number(x: float) -> str:
    return f"{x:.2f}".replace("-0.00", "0.00")


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
