"""The calibration on four set-ups: the rules tell the healthy from the faulty and name the fault.

The calibration of all set-ups is `python -m bench.calibration`, which takes about 20 minutes.
"""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
HEALTHY = ("relu_sgd",)
FAULTY = ("5_sigmoid_layers", "weights_of_hidden_2_times_30", "negative_weights_in_hidden_3")

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def page():
    """Return the page of these set-ups. The program fails if live and replayed findings differ."""
    only = rf"^first_mlp_({'|'.join(HEALTHY + FAULTY)})_\d+$"
    command = [sys.executable, "-m", "bench.calibration", f"--only={only}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scores(page):
    """Our row in the table of the set-ups that thresholds were chosen on, by column."""
    table = page.split("## Used to choose thresholds")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    (row,) = (line for line in lines if line[0] == "**Tapescope**")
    return dict(zip(lines[0], row, strict=True))


def test_all_set_ups_are_trained(page):
    assert re.findall(r"## Used to choose thresholds: (.*)", page) == ["3 faulty, 1 healthy set-ups"]


def test_every_fault_is_found(scores):
    assert scores["recall"].startswith("100%")


def test_the_cause_is_right(scores):
    assert scores["cause right"] == "100%"


def test_the_layer_is_right(scores):
    assert scores["layer right"] == "100%"


def test_no_healthy_set_up_gets_a_warning(scores):
    assert scores["false alarms"].startswith("0%")
