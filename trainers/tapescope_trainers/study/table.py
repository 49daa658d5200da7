"""The study as a page of Markdown: the claims, what the document gets wrong, every test, every set-up."""

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
    """Return the whole page.

    Args:
        claims: The claims.
        trials: For each set-up a trial of every seed.
        shortcut: What Keras trains for Example 1; None leaves it out.
        steps: Training steps of a run.
        quick: Whether this is the run of --quick.
    """
    outcomes = {claim: [verdicts.run_test(test, trials) for test in claim.tests] for claim in claims}
    test_count = sum(len(results) for results in outcomes.values())
    sections = [
        "# What combining sigmoid and ReLU does",
        "<!-- Written by tapescope-study; `make study` makes it again. -->",
        "**The quick form: it shows that everything works, and decides nothing.**" if quick else "",
        _method(trials, steps, test_count),
        "## The claims",
        _claims(outcomes),
        "## Where the document is wrong",
        _corrections(outcomes, shortcut),
        "## Every test",
        _tests(outcomes),
        "## Every set-up",
        _setups(trials),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _method(trials: Trials, steps: int, test_count: int) -> str:
    seeds = len(next(iter(trials.values())))
    runs = sum(map(len, trials.values()))
    level = f"{100 * verdicts.LEVEL:.0f} %"
    return f"""\
A text on combining sigmoid and ReLU activations makes nine claims. Here are its three networks and the alternatives
that it names, measured: {len(trials)} set-ups with {seeds} seeds, {runs} runs of {steps} steps of {BATCH} examples, on
the 1,797 digits (8 x 8 pixels, where the text has MNIST's 28 x 28) that come with scikit-learn, a fifth of them held
back. The seed sets the initial weights, the split and the order of the examples. Hidden layers have 64 units, Glorot's
initial weights and Adam at 0.001 unless it says otherwise. The loss goes through the output's activation, as the text
describes it.

Effects are means over the seeds, of paired differences where two set-ups are compared, with {level} confidence
intervals (Student's t). A test *holds* if the whole interval is on the claim's side of the threshold, *fails* if it is
wholly on the other side, and is *undecided* otherwise. What a claim says on one point is supported if all tests of it
hold, refuted if all fail, and otherwise depends. The claim is **supported** or **refuted** if all its points are, and
otherwise **depends**. The level is that of each interval, not of all {test_count} at once: some will be wrong. The
thresholds were set before the first full run. After it tests were added, it was settled which tests count, and (c) came
to count deaths since the start.

*Start* is the first {FIRST_STEPS} steps, *end* the last {LAST_STEPS}. A *gate* is what an activation leaves of the
gradient's norm on its way back, in decades (log10); a *backward gain* is the same of activations and weights. A unit is
*dead* that gave 0 on every one of {WINDOW_STEPS * BATCH:,} examples. *Points* are percentage points."""


def _claims(outcomes: Mapping[Claim, Sequence[Outcome]]) -> str:
    rows = []
    for claim, results in outcomes.items():
        parts = verdicts.parts(results)
        rows.append(
            [
                f"({claim.letter}) {claim.text}",
                _lines(parts, lambda part: f"{part.outcomes[0].test.quantity} ({part.outcomes[0].test.condition})"),
                _lines(parts, lambda part: f"{_effect(part.outcomes[0])}, claimed {part.outcomes[0].test.threshold}"),
                f"**{verdicts.verdict(results)}**" + _reasons(parts),
            ]
        )
    return _table(["claim", "quantity that decides (first condition)", "effect [interval] there", "verdict"], rows)


def _lines(parts: Sequence[Part], text: Callable[[Part], str]) -> str:
    """Return a line for each part, with its name if there are several."""
    several = len(parts) > 1
    return "<br>".join((f"*{part.name}*: " if several else "") + text(part) for part in parts)


def _reasons(parts: Sequence[Part]) -> str:
    """Return the verdicts of the parts and on what they depend, if the verdict on the claim does not say it all."""
    several = len(parts) > 1
    agree = len({part.verdict for part in parts}) == 1
    if several and agree and not any(part.conditions for part in parts):
        return ""

    def reason(part: Part) -> str:
        conditions = f" ({part.conditions})" if part.conditions else ""
        return (part.verdict if several else "") + conditions

    text = _lines(parts, reason)
    return f"<br>{text.strip()}" if text else ""


def _corrections(outcomes: Mapping[Claim, Sequence[Outcome]], shortcut: Shortcut | None) -> str:
    failed: dict[tuple[str, str], list[Outcome]] = {}
    for claim, results in outcomes.items():
        for outcome in results:
            if outcome.result == FAILS and outcome.test.correction:
                failed.setdefault((claim.letter, outcome.test.correction), []).append(outcome)
    lines = [
        f"- ({letter}) {text} *Measured:* " + "; ".join(f"{o.test.condition}: {_effect(o)}" for o in results) + "."
        for (letter, text), results in failed.items()
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


def _tests(outcomes: Mapping[Claim, Sequence[Outcome]]) -> str:
    rows = [
        [
            f"{claim.letter} {outcome.test.part}".strip(),
            outcome.test.quantity,
            outcome.test.condition,
            _effect(outcome),
            outcome.test.threshold,
            outcome.result + ("" if outcome.test.decides else " (not counted)"),
        ]
        for claim, results in outcomes.items()
        for outcome in results
    ]
    return _table(["", "quantity", "condition", "effect [interval]", "claimed", ""], rows)


def _setups(trials: Trials) -> str:
    best_first = sorted(trials.items(), key=lambda item: -np.mean([trial.accuracy for trial in item[1]]))
    rows = []
    for setup, of_seeds in best_first:
        accuracy = verdicts.interval([trial.accuracy for trial in of_seeds])
        losses = [trial.loss for trial in of_seeds]
        nonfinite = sum(not np.isfinite(loss) for loss in losses)
        rows.append(
            [
                f"`{setup.name}`",
                f"{accuracy.mean:.1f} [{accuracy.low:.1f}, {accuracy.high:.1f}]",
                f"{nonfinite} of {len(losses)} not finite" if nonfinite else f"{np.mean(losses):.3f}",
            ]
        )
    return _table(["set-up", "validation accuracy, %", "validation loss"], rows)


def _effect(outcome: Outcome) -> str:
    effect = outcome.effect
    return f"{_number(effect.mean)} [{_number(effect.low)}, {_number(effect.high)}]"


def _number(x: float) -> str:
    return f"{x:.2f}".replace("-0.00", "0.00")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
