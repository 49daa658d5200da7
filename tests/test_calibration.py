"""A handful of the calibration's set-ups: the rules must still tell the sound from the faulty, and name what is wrong.

All of them: `python -m bench.calibration`, about 20 minutes.
"""

import pytest
from bench.calibration import setups, training

from tapescope.rules import engine

SOUND = ("relu, SGD", "tanh on clusters", "relu, narrow, Adam 1e-2")
FAULTY = (
    "5 sigmoid layers",
    "weights of hidden_2 times 30",
    "negative weights in hidden_3",
    "biases of hidden_2 at 12",
    "SGD 20",
)
SETUPS = [s for s in setups.all_setups() if s.key.startswith("first_mlp_") and s.name in SOUND + FAULTY]


def test_the_set_ups_are_still_there():
    assert len(SETUPS) == len(SOUND + FAULTY)


@pytest.mark.parametrize("setup", SETUPS, ids=[s.name for s in SETUPS])
def test_what_is_said_of_a_set_up(setup):
    trial = training.trial(setup._replace(steps=200), keep="")
    findings = engine.check(trial.run)
    assert findings == trial.live
    grave = [(f.rule, f.layer) for f in findings if f.severity != "info"]
    if not setup.fault.rule:
        assert grave == []
        return
    true = [layer for rule, layer in grave if rule in (setup.fault.rule, *setup.fault.also)]
    assert true
    assert not setup.fault.layers or true[0] in setup.fault.layers
