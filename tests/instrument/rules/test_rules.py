"""Each rule on made-up records: what it must say, and what it must not; and live findings against those of a replay."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope
from tapescope.rules import engine, finding, history, record_view
from tapescope.rules.record_view import Record
from tapescope.storage.resume import Resume
from tensorboard_plugin_tapescope import metadata

LAYERS = ("hidden_1", "hidden_2", "hidden_3", "output")
VARIABLES = tuple(f"{layer}/{kind}" for layer in LAYERS for kind in ("kernel", "bias"))
SUBJECT = record_view.subject(
    VARIABLES,
    LAYERS,
    {
        "units": [20, 20, 20, 5],
        "activations": ["relu", "tanh", "elu", "softmax"],
        "variables": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "sources": [[], [0], [1], [2]],
    },
)
NAN = np.nan
COUNTS = {"units_dead", "gradient_nonfinite", "activation_nonfinite", "window_examples"}
COUNTS |= {"first_nonfinite_forward", "first_nonfinite_backward"}


def healthy(t: int, replicas: int = 0) -> dict[str, np.ndarray]:
    """Columns of the t-th record of a run that goes well: noisy, and its loss falls."""
    rng = np.random.default_rng(t)
    noise = np.exp(0.3 * rng.normal(size=8))
    columns = {
        "gradient_norm": 0.1 * noise,
        "applied_norm": 0.1 * noise,
        "weight_norm": np.array([8, 0 if t == 0 else 0.001] * 4, float),
        "gradient_max": 0.01 * noise,
        "gradient_zero": np.zeros(8),
        "gradient_nonfinite": np.zeros(8),
        "update_ratio": np.array([1e-3, np.inf if t == 0 else 0.2] * 4),
        "activation_mean": np.zeros(4),
        "activation_std": np.full(4, 0.6),
        "activation_zero": np.array([0.5, 0, 0, 0]),
        "activation_nonfinite": np.zeros(4),
        "saturated": np.array([0.5, 0.1, 0.2, NAN]),
        "delta_norm": np.array([0.03, 0.04, 0.05, NAN]),
        "flow_gate": np.array([-0.15, -0.1, -0.05, NAN]) + 0.02 * rng.normal(size=4),
        "flow_weight": np.array([NAN, 0.1, 0.1, 0.1]) + 0.02 * rng.normal(size=4),
        "flow_between": np.array([NAN, 0, 0, 0]),
        "units_dead": np.full(4, NAN) if t < 4 else np.array([2.0, 0, 0, 0]),
        "window_examples": np.float64(NAN if t < 4 else 512),
        "loss": np.float64(2.3 * 0.97**t),
        "first_nonfinite_forward": np.float64(-1),
        "first_nonfinite_backward": np.float64(-1),
    }
    if replicas:
        columns["replica_norm"] = 0.1 * np.exp(0.5 * rng.normal(size=[replicas, 8]))
        columns["replica_cosine"] = np.clip(0.5 + 0.1 * rng.normal(size=[replicas, 8]), -1, 1)
    return columns


def found(count=60, change=None, of=SUBJECT, replicas=0, severity="warning"):
    """Findings at least as grave, after `count` records four steps apart; `change(t, columns)` alters each in place."""
    watch = engine.Watch(of)
    for t in range(count):
        columns = healthy(t, replicas)
        if change:
            change(t, columns)
        watch.add(Record(4 * t, columns))
    grave = finding.SEVERITIES[: finding.SEVERITIES.index(severity) + 1]
    return [f for f in watch.findings if f.severity in grave]


def put(column, index, value, since=0):
    """A change: a value in a column, from the record number `since` on."""

    def change(t, columns):
        if t >= since:
            if index is None:
                columns[column] = np.float64(value)
            else:
                columns[column][index] = value

    return change


def both(*changes):
    def change(t, columns):
        for one in changes:
            one(t, columns)

    return change


def one(findings, rule):
    """The only finding, which is of that rule."""
    assert [f.rule for f in findings] == [rule]
    return findings[0]


def test_silence_where_all_is_well():
    assert found(severity="info") == []
    assert found(replicas=4, severity="info") == []


def test_vanishing_names_the_layer_that_takes_it():
    f = one(found(20, put("flow_gate", 1, -3.5, since=8)), "vanishing")
    assert (f.layer, f.step, f.severity) == ("hidden_2", 32, "warning")
    assert "the tanh layer `hidden_2` makes the gradient 2,200 times shorter, most by its activation; `hid" in f.message
    assert ", yet its weights change by 0.001 of their length a step, where 0.001 is usual" in f.message
    assert f.evidence["decades_gate"] == -3.5
    # Its weights do not move any more.
    slow = both(put("flow_gate", 1, -2.5), put("update_ratio", slice(0, 2), 1e-6))
    f = found(8, slow)[0]
    assert f.severity == "error"
    assert ", and its weights change by 1e-06 of their length a step, where 0.001 is usual" in f.message


def test_vanishing_is_only_noted_where_it_does_no_harm():
    weak = put("flow_gate", 1, -2.5)
    assert one(found(60, weak, severity="info")[:1], "vanishing").severity == "info"
    assert one(found(60, both(weak, put("loss", None, 2.3))), "vanishing").severity == "warning"
    # Once most of the loss is gone, hard examples are what is left of the gradient.
    assert found(60, put("flow_gate", 1, -3.5, since=40)) == []
    assert one(found(60, put("flow_gate", 1, -np.inf, since=40)), "vanishing").layer == "hidden_2"


def test_vanishing_by_weights_and_what_makes_up_for_it():
    weak = put("flow_weight", 2, -3.4, since=1)
    assert one(found(20, weak), "vanishing").layer == "hidden_3"
    assert found(20, both(weak, put("flow_between", 2, 3.4))) == []  # a skip connection around it
    # Pooling divides the gradient among positions, and takes nothing from the weights before it.
    assert found(20, put("flow_between", 2, -4.0)) == []


def test_a_softmax_that_is_sure_and_a_loss_near_0_are_no_vanishing():
    tiny = {"gradient_norm": 1e-9, "applied_norm": 1e-9, "delta_norm": 1e-9, "update_ratio": 1e-7}

    def converged(t, columns):
        if t > 20:
            for name, factor in tiny.items():
                columns[name] = np.abs(columns[name]) * factor
            columns["loss"] = np.float64(1e-9)
            columns["flow_gate"][3] = -7.0

    assert found(60, converged, severity="info") == []


def test_exploding_over_depth_and_over_time():
    steep = put("flow_weight", slice(1, 4), 0.9, since=1)
    assert one(found(20, steep), "exploding").layer in LAYERS[1:]
    assert found(20, both(steep, put("flow_between", slice(1, 4), -0.9))) == []  # normalised
    assert found(60, put("flow_weight", slice(1, 4), 0.9, since=40)) == []  # the loss has fallen

    def growing(t, columns):
        columns["gradient_norm"] *= 10.0 ** (t / 5)
        columns["gradient_norm"][4] *= 10.0 ** (t / 20)
        columns["loss"] = np.float64(2.3 + t)

    f = one([f for f in found(40, growing) if f.rule == "exploding"], "exploding")
    assert (f.layer, f.severity) == ("hidden_3", "error")


def test_a_spike_is_noted_and_two_are_a_finding():
    def spiky(*at):
        def change(t, columns):
            if t in at:
                columns["gradient_norm"] *= 100
                columns["gradient_norm"][2] *= 10
                columns["applied_norm"] = columns["gradient_norm"]

        return change

    assert one(found(40, spiky(20), severity="info"), "gradient_spike").severity == "info"
    f = one(found(40, spiky(20, 30)), "gradient_spike")
    assert (f.layer, f.step) == ("hidden_2", 80)
    assert "and again at step 120" in f.message
    assert found(40, spiky(*range(20, 40))) == []  # a new level is no spike


def test_non_finite_is_reported_at_once_with_the_first_layer_both_ways():
    def ill(t, columns):
        if t >= 7:
            columns["first_nonfinite_forward"] = np.float64(1)
            columns["first_nonfinite_backward"] = np.float64(3)
            columns["gradient_nonfinite"][:] = 3
            columns["loss"] = np.float64(NAN)

    f = one(found(8, ill), "non_finite")
    assert (f.layer, f.step, f.severity) == ("hidden_2", 28, "error")
    assert "on the way back the first is `output`, between steps 25 and 28" in f.message
    assert one(found(60, ill), "non_finite") == f


def test_non_finite_on_the_way_back_only():
    def ill(t, columns):
        if t == 5:
            columns["first_nonfinite_backward"] = np.float64(2)
            columns["gradient_nonfinite"][:6] = 1

    f = one(found(6, ill), "non_finite")
    assert (f.layer, f.severity) == ("hidden_3", "error")


@pytest.mark.parametrize("ruined", [False, True])
def test_a_skipped_step_of_a_loss_scale_is_only_noted_unless_the_weights_are_ruined(ruined):
    def overflow(t, columns):
        if t == 5:
            columns["first_nonfinite_backward"] = np.float64(3)
            columns["gradient_nonfinite"][:] = 1
            columns["update_ratio"][:] = 0
        if t > 5 and ruined:
            columns["first_nonfinite_forward"] = np.float64(0)
            columns["loss"] = np.float64(NAN)

    (f,) = found(8, overflow, severity="info")
    assert (f.rule, f.layer, f.step) == ("non_finite", "output", 20)
    assert f.severity == ("error" if ruined else "info")


def test_a_loss_that_is_not_recorded_is_not_lost():
    def sometimes(t, columns):
        if t % 2:
            columns["loss"] = np.float64(NAN)

    assert found(40, sometimes, severity="info") == []
    assert found(40, put("loss", None, NAN), severity="info") == []
    assert one(found(40, put("loss", None, np.inf, since=20)), "non_finite").layer is None


def test_dead_units():
    f = one(found(20, put("units_dead", 0, 12.0, since=8)), "dead_units")
    assert (f.layer, f.step) == ("hidden_1", 32)
    assert f.message.startswith("12 of the 20 units of `hidden_1` gave nothing on any of 512 examples")
    assert f.evidence == {"dead": 12.0, "share": 0.6, "window_examples": 512.0}
    assert found(20, put("units_dead", 0, 9.0)) == []
    assert one(found(20, put("units_dead", 0, 9.0, since=8), severity="info"), "dying_units").severity == "info"
    # Half of them from the start, where the loss falls: noted.
    assert found(60, put("units_dead", 0, 12.0, since=4)) == []
    assert one(found(60, both(put("units_dead", 0, 12.0), put("loss", None, 2.3))), "dead_units").severity == "warning"
    # Below a minimum of evidence there is no verdict.
    assert found(20, both(put("units_dead", 0, 20.0), put("window_examples", None, 100))) == []
    # An output that never fires is a class that is never predicted: one of five is too many.
    assert one(found(20, put("units_dead", 3, 1.0)), "dead_units").layer == "output"


def test_the_first_dead_layer_is_named_and_not_those_after_it():
    dead = both(
        put("units_dead", slice(1, 3), 20.0), put("activation_zero", slice(1, 3), 1.0), put("flow_gate", 2, -np.inf)
    )
    findings = found(20, dead)
    assert {(f.rule, f.layer) for f in findings} == {("vanishing", "hidden_2"), ("dead_units", "hidden_2")}


def test_saturation():
    assert one(found(20, put("saturated", 1, 0.7)), "saturation").layer == "hidden_2"
    assert found(20, put("saturated", 1, 0.7, since=1)) == []  # not so at the start, and it does no harm
    assert one(found(20, put("saturated", 1, 0.95, since=1)), "saturation").layer == "hidden_2"
    assert found(20, put("saturated", 2, 0.7)) == []  # ELU rests on half of its inputs by design
    assert one(found(20, put("saturated", 2, 0.95)), "saturation").layer == "hidden_3"
    assert found(20, put("saturated", 0, 1.0)) == []  # ReLU: every zero


def test_outputs_may_saturate_where_the_loss_falls():
    of = SUBJECT._replace(activations=("relu", "tanh", "elu", "sigmoid"))
    sure = both(put("saturated", 3, 0.99), put("flow_gate", 3, -2.0))
    assert found(40, sure, of) == []
    assert "saturation" in {f.rule for f in found(40, both(sure, put("loss", None, 2.3)), of)}


def test_poor_initialization_by_weights():
    assert one(found(1, put("flow_weight", 2, 1.3)), "poor_initialization").layer == "hidden_3"
    f = one(found(1, put("flow_weight", 1, -np.inf)), "poor_initialization")
    assert f.layer == "hidden_2"
    assert "make the gradient that passes them 0" in f.message
    assert found(1, put("flow_weight", 3, -np.inf)) == []  # outputs may start at 0
    assert found(1, put("flow_weight", 1, 0.9)) == []
    assert found(1, both(put("flow_weight", 2, 1.3), put("flow_between", 3, -1.3))) == []  # normalised after it
    assert found(30, put("flow_weight", 2, 1.3, since=1)) == []  # learned, not initial


def test_poor_initialization_over_the_depth():
    f = one(found(1, put("flow_weight", slice(1, 4), -0.8)), "poor_initialization")
    assert (f.layer, f.evidence["decades_weights"]) == ("hidden_2", pytest.approx(-2.4))
    wide = SUBJECT._replace(usual_gain=np.array([0, -0.8, -0.8, -0.8]))
    assert found(1, put("flow_weight", slice(1, 4), -0.8), wide) == []


def test_poor_initialization_by_the_data():
    assert one(found(1, put("activation_std", 0, 150.0)), "poor_initialization").layer == "hidden_1"
    assert one(found(1, put("activation_std", 0, 1e-3)), "poor_initialization").layer == "hidden_1"
    assert found(1, both(put("activation_std", 0, 1e-3), put("flow_between", 1, 3.0))) == []
    assert found(1, put("activation_std", 1, 1e-3)) == []


def test_no_gradient():
    cut = both(put("gradient_norm", slice(0, 2), NAN), put("gradient_nonfinite", slice(0, 2), NAN))
    f = one(found(10, cut), "no_gradient")
    assert (f.layer, f.severity) == ("hidden_1", "error")
    f = one(found(10, put("gradient_norm", slice(0, 2), 0)), "no_gradient")
    assert (f.layer, f.severity) == ("hidden_1", "warning")
    assert found(10, put("gradient_norm", slice(0, 8), 0)) == []  # a loss of 0


def test_update_too_large():
    assert one(found(20, put("update_ratio", 4, 0.3)), "update_too_large").layer == "hidden_3"
    assert one(found(20, put("update_ratio", slice(0, 8, 2), 0.3)), "update_too_large").layer is None
    assert found(20, put("update_ratio", 4, 0.3, since=16)) == []  # not yet usual
    # A single leap is told from weights that start near 0 by the loss.
    leap = put("update_ratio", 4, 2.0)

    def once(t, columns):
        if t == 0:
            leap(t, columns)

    small = put("weight_norm", slice(0, 8, 2), 0.1)
    assert one(found(20, once), "update_too_large").severity == "warning"
    assert found(20, both(once, small)) == []
    f = one(found(20, both(once, small, put("loss", None, 30, since=1))), "update_too_large")
    assert (f.layer, f.severity) == ("hidden_3", "error")


def test_growth_between_records_counts_as_pace():
    def leaping(t, columns):
        columns["weight_norm"] *= 1 if t == 0 else 60
        columns["loss"] = np.float64(2.3 if t == 0 else 40)

    f = one(found(3, leaping), "update_too_large")
    assert (f.layer, f.step, f.severity) == (None, 4, "error")
    assert f.evidence["update_ratio"] == pytest.approx(59 / 4, rel=0.01)


def test_update_too_small():
    still = both(put("update_ratio", slice(0, 8), 1e-6), put("loss", None, 2.3))
    assert one(found(30, still), "update_too_small").layer is None
    assert found(30, put("update_ratio", slice(0, 8), 1e-6)) == []  # the loss falls all the same: fine-tuning
    assert one(found(30, put("update_ratio", slice(2, 4), 0)), "update_too_small").layer == "hidden_2"

    def warming_up(t, columns):
        columns["update_ratio"][:] = 1e-8 * t
        columns["loss"] = np.float64(2.3)

    assert found(29, warming_up) == []


def test_always_clipped():
    assert one(found(30, put("applied_norm", slice(0, 8), 1e-4)), "always_clipped").layer is None

    def half(t, columns):
        columns["applied_norm"] = 0.5 * columns["gradient_norm"]

    assert one(found(30, half, severity="info"), "always_clipped").severity == "info"

    def now_and_then(t, columns):
        if t % 3 == 0:
            columns["applied_norm"] = 0.01 * columns["gradient_norm"]

    assert found(30, now_and_then, severity="info") == []


def test_replica_outlier():
    def longer(t, columns):
        columns["replica_norm"][2] *= 5

    f = one(found(20, longer, replicas=4), "replica_outlier")
    assert (f.layer, f.evidence["replica"]) == (None, 2)
    assert 3 < f.evidence["norm_ratio"] < 7

    def a_little(t, columns):
        columns["replica_norm"][0] *= 2

    assert found(20, a_little, replicas=4) == []
    assert one(found(60, a_little, replicas=4), "replica_outlier").evidence["replica"] == 0

    def empty(t, columns):
        columns["replica_norm"][1] = 0
        columns["replica_cosine"][1] = NAN

    f = one(found(20, empty, replicas=2), "replica_outlier")
    assert (f.evidence["replica"], f.evidence["norm_ratio"]) == (1, 0)


def noise(t):
    """Of a loss; the trend of what does not fall."""
    return 0.05 * np.random.default_rng(1000 + t).normal()


def test_loss_not_falling_only_where_nothing_else_says_why():
    def flat(t, columns):
        columns["loss"] = np.float64(2.3 + noise(t))
        columns["update_ratio"][::2] = 5e-3

    assert one(found(60, flat), "loss_not_falling").layer is None
    assert found(20, flat) == []  # it may stand still at first
    assert found(60, both(flat, put("update_ratio", slice(0, 8, 2), 1e-3))) == []  # the weights have not gone far
    ill = found(60, both(flat, put("flow_gate", 1, -2.5)))
    assert [f.rule for f in ill] == ["vanishing"]


def test_slow_is_not_stuck():
    def slow(t, columns):
        columns["loss"] = np.float64(2.3 - 0.003 * t + noise(t))
        columns["update_ratio"][::2] = 5e-3

    assert found(60, slow) == []


def test_the_trend_is_the_rank_sum_of_the_newer_half():
    of = history.History(SUBJECT)
    for t, loss in enumerate([5, 4, 6, 5, 4, 2, 3, 1, 3, 2.0]):
        of.add(Record(t, {**healthy(t), "loss": np.float64(loss)}))
    assert of.trend == pytest.approx(12.5 / np.sqrt(25 * 11 / 12))  # all 25 pairs; 12.5 of them by chance


def test_falling_in_spite_of_a_finding_is_noted():
    findings = found(60, put("flow_gate", 1, -3.5), severity="info")
    assert [(f.rule, f.severity) for f in findings] == [("vanishing", "warning"), ("falls_regardless", "info")]


def test_extremes_raise_no_warning():
    """NumPy's warnings are errors here: infinite, missing and zero columns must all pass."""
    for value in (0.0, NAN, np.inf, -np.inf):
        for column in set(healthy(0)) - (COUNTS if np.isinf(value) else set()):
            for index in (slice(None), 0):
                if np.ndim(healthy(0)[column]):
                    found(12, put(column, index, value))
            if not np.ndim(healthy(0)[column]):
                found(12, put(column, None, value))
    watch = engine.Watch(record_view.subject(["w"], [], {}))
    for t in range(40):
        watch.add(Record(t, {"gradient_norm": np.ones(1), "weight_norm": np.ones(1), "update_ratio": np.full(1, 1e-3)}))
    assert watch.findings == ()


def test_variables_without_a_layer_are_named_themselves():
    watch = engine.Watch(record_view.subject(["w", "v"], [], {}))
    for t in range(12):
        columns = {"gradient_norm": np.array([1, NAN]), "gradient_nonfinite": np.array([0, NAN])}
        watch.add(Record(t, columns))
    assert [(f.rule, f.layer) for f in watch.findings] == [("no_gradient", "v")]


def test_runs_without_sources_are_chains():
    of = record_view.subject(["k", "l"], ["a", "b"], {"variables": [[0], [1]]})
    assert (of.path, of.follow, of.sinks.tolist(), of.heads.tolist()) == ((1, 0), (-1, 0), [False, True], [True, False])


def test_a_branch_is_not_on_the_path_of_the_budget():
    of = record_view.subject(VARIABLES, LAYERS, {"variables": [[0, 1], [], [], []], "sources": [[], [0], [0], [1, 2]]})
    assert of.path == (3, 2, 0)
    assert of.groups == (*LAYERS, *VARIABLES[2:])


def test_what_reads_an_embedding_does_not_read_the_data():
    details = {"variables": [[1, 2], [4]], "sources": [[], [0]]}
    assert record_view.subject(["embedding", "k1", "b1", "gamma", "k2"], ["a", "b"], details).heads.tolist() == [
        False,
        False,
    ]
    details = {"variables": [[0, 1], [3, 4]], "sources": [[], []]}
    assert record_view.subject(["k1", "b1", "gamma", "k2", "b2"], ["a", "b"], details).heads.tolist() == [True, False]


def test_memory_does_not_grow():
    watch = engine.Watch(SUBJECT)
    for t in range(200):
        watch.add(Record(t, healthy(t, replicas=2)))
    seen = watch._seen
    assert len(seen.window) == history.WINDOW
    assert max(len(seen.early_losses), len(seen.early_norms), len(seen.replicas)) <= history.LONG


def train(logdir, start=0, steps=60, **options):
    """A sigmoid network that vanishes; the recorder that saw it."""
    keras.utils.set_random_seed(1)
    hidden = [keras.layers.Dense(12, "sigmoid", name=f"hidden_{n}") for n in range(1, 6)]
    model = keras.Sequential([keras.Input((6,)), *hidden, keras.layers.Dense(3, "softmax", name="output")])
    optimizer = keras.optimizers.SGD(0.05)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, window_examples=300, histograms=False)
    loss_of = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def step(x, y, measure):
        with probe.tape(measure) as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tape.reading()

    rng = np.random.default_rng(0)
    with tapescope.Recorder(logdir, probe, **options) as recorder:
        for n in range(start, start + steps):
            x, y = rng.normal(size=[40, 6]).astype(np.float32), rng.integers(0, 3, 40)
            loss, reading = step(x, y, n % 2 == 0)
            if reading is not None:
                recorder.write(n, reading, {"loss": loss})
    return recorder


def test_what_is_found_live_is_found_in_the_file(tmp_path):
    recorder = train(tmp_path)
    run = tapescope.Run(tmp_path)
    assert "vanishing" in {f.rule for f in recorder.findings}
    assert engine.check(run) == recorder.findings
    assert tuple(finding.from_json(f) for f in run.findings) == recorder.findings
    # A run that goes on knows what it saw before.
    recorder = train(tmp_path, start=60, steps=20, resume=Resume(60, {}))
    assert engine.check(tapescope.Run(tmp_path)) == recorder.findings
    assert tuple(finding.from_json(f) for f in tapescope.Run(tmp_path).findings) == recorder.findings


def test_a_rule_that_fails_costs_no_record(tmp_path, monkeypatch):
    def broken(self, record):
        raise ZeroDivisionError

    monkeypatch.setattr(engine.Watch, "add", broken)
    recorder = train(tmp_path, steps=8)
    assert (recorder.lost, recorder.findings) == (0, ())
    assert len(tapescope.Run(tmp_path).steps) == 4


def test_findings_are_plain_json_as_the_contract_says():
    for f in found(40, put("flow_gate", 1, -np.inf)):
        fields = json.loads(finding.to_json(f))
        assert set(fields) == {"rule", "version", "severity", "layer", "step", "message", "evidence", "advice"}
        assert all(np.isfinite(v) for v in fields["evidence"].values())
        assert finding.from_json(fields) == f


def test_columns_of_a_family():
    family = metadata.Family("replicas", ("replica_norm", "replica_cosine"), ("a", "b", "c"), {"replicas": 2})
    of = engine.columns(family, np.arange(12.0).reshape(4, 3))
    assert of["replica_cosine"].tolist() == [[6, 7, 8], [9, 10, 11]]
