"""The speed of runs, the noise scale of a run, and whether a larger batch pays."""

import json
import math

import numpy as np
import pytest

from tapescope import cli
from tapescope.analysis.scaling import Speed, noise_scale, scaling
from tensorboard_plugin_tapescope.metadata import Family
from tests.instrument.analysis.runs import record_run


def test_one_run_is_its_own_base(recorded):
    (speed,) = scaling([recorded])
    assert speed.efficiency == 1


def test_the_batch_and_the_rate_are_those_of_the_records(recorded):
    (speed,) = scaling([recorded])
    assert speed.batch == 32
    seconds = recorded.wall_times[-1] - recorded.wall_times[0]
    assert speed.examples_per_second == pytest.approx(8 * 32 / seconds)


def test_percentiles_of_the_step_time_rise(recorded):
    (speed,) = scaling([recorded])
    assert speed.step_ms[0] <= speed.step_ms[1] <= speed.step_ms[2]


def test_efficiency_is_relative_to_the_fastest_run(recorded, copy):
    variables = copy._series["variables"]
    copy._series["variables"] = variables._replace(wall_times=2 * variables.wall_times)
    assert [speed.efficiency for speed in scaling([copy, recorded])] == pytest.approx([0.5, 1])


def test_a_run_with_one_record_is_refused(copy):
    variables = copy._series["variables"]
    copy._series["variables"] = variables._replace(steps=variables.steps[:1])
    with pytest.raises(ValueError, match="has fewer than two records; at least two are needed to compute the step"):
        scaling([copy])


@pytest.mark.parametrize(("noise", "verdict"), [(math.nan, "not known"), (1000, "yes"), (64, "partly"), (4, "no:")])
def test_a_larger_batch_pays_below_the_noise_scale(noise, verdict):
    speed = Speed(
        run="run",
        replicas=2,
        batch=64.0,
        examples_per_second=100.0,
        efficiency=1.0,
        step_ms=(1.0, 1.0, 1.0),
        noise_scale=noise,
    )
    assert speed.worth.startswith(verdict)


@pytest.mark.parametrize(("replicas", "reason"), [(1, "needs two replicas"), (2, "records are too few or too noisy")])
def test_the_reason_why_the_noise_scale_is_not_known(replicas, reason):
    speed = Speed("a", replicas, 16.0, 100.0, 1.0, step_ms=(1.0, 1.0, 1.0), noise_scale=math.nan)
    assert speed.worth.startswith("not known: ")
    assert reason in speed.worth


def test_one_replica_has_no_noise_scale(recorded):
    assert np.isnan(noise_scale(recorded)).all()


@pytest.fixture
def two_replicas(copy):
    """Return a run with made-up replicas: gradients of norm 1 and 0.6 each, and a second variable without noise."""
    variables = copy._series["variables"]
    count = len(copy.variables)
    norms = np.zeros([2, count])
    norms[:, 0] = 0.6
    norms[:, 1] = 0.5
    total = np.where(np.arange(count) < 2, 1.0, 0.0)[None]
    copy._series["replicas"] = variables._replace(
        family=Family("replicas", ("replica_norm",), copy.variables, {"replicas": 2}),
        tensors=[norms] * len(copy.steps),
    )
    copy._series["variables"] = variables._replace(
        family=variables.family._replace(columns=("gradient_norm",)), tensors=[total] * len(copy.steps)
    )
    return copy


def test_the_noise_scale_of_all_variables_is_from_their_sums(two_replicas):
    """Small batches have squared norm 1.44 + 1, the large one 1 + 1: trace 0.44 * 32, squared gradient 1.56."""
    assert noise_scale(two_replicas).scale == pytest.approx(0.44 * 32 / 1.56)


def test_the_noise_scale_of_one_variable_is_its_own(two_replicas):
    assert noise_scale(two_replicas, two_replicas.variables[0]).scale == pytest.approx(0.44 * 32 / 0.56)


def test_a_variable_that_the_run_does_not_have_is_refused(recorded):
    with pytest.raises(ValueError, match=r"`variable` must be one of chain/layer0/kernel, .*; got 'x'"):
        noise_scale(recorded, "x")


def test_the_command_line_prints_a_table(recorded, capsys):
    assert cli.main(["scaling", recorded.logdir]) == 0
    assert "efficiency" in capsys.readouterr().out


def test_the_command_line_prints_json(recorded, capsys):
    assert cli.main(["scaling", recorded.logdir, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch"] == 32


def test_the_command_line_names_runs_of_other_networks(recorded, tmp_path, capsys):
    other = record_run(tmp_path, widths=(6, 5, 2))
    for runs in ([recorded, recorded], [recorded, other]):
        cli.main(["scaling", *(str(run.logdir) for run in runs)])
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Not comparable with")]
    assert named == [f"Not comparable with {recorded.logdir}, because their layers differ: {other.logdir}."]
