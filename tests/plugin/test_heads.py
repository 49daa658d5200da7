"""The view Heads: of a small language model that is trained here, by its route and in Chromium."""

import os
import pathlib
import time
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts import page
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec
from selenium.webdriver.common.by import By

import tapescope
from tapescope_trainers.training import models
from tensorboard_plugin_tapescope.figures.encoding import decode
from tensorboard_plugin_tapescope.series import heads
from tests.plugin.conftest import application

ARTIFACTS = pathlib.Path(__file__).parents[1] / "artifacts"
layers = keras.layers
TOKENS = 12
STEPS = 40


def language_model() -> keras.Model:
    """Build embedding, positions, two blocks of causal attention, and logits over 16 tokens."""
    ids = keras.Input((TOKENS,), dtype="int32")
    x = models.Positions(name="positions")(layers.Embedding(16, 16, name="embed")(ids))
    for n, count in enumerate((4, 2)):
        y = layers.LayerNormalization(name=f"norm_{n}")(x)
        y = layers.MultiHeadAttention(count, 8, name=f"attention_{n}")(y, y, use_causal_mask=True)
        x = layers.Add()([x, y])
    return keras.Model(ids, layers.Dense(16, name="logits")(layers.LayerNormalization(name="norm")(x)))


@pytest.fixture(scope="module")
def logdir(tmp_path_factory) -> pathlib.Path:
    """Train the language model on sequences that repeat, and write a run of dense layers beside it."""
    root = tmp_path_factory.mktemp("runs")
    keras.utils.set_random_seed(1)
    model = language_model()
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, strict=True)
    starts = np.random.default_rng(1).integers(0, 16, [STEPS, 32, 4])
    sequences = np.tile(starts, 4)[:, :, : TOKENS + 1].astype(np.int32)

    @tf.function
    def step(ids, targets):
        with probe.tape(True) as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, model(ids, training=True))
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tape.reading()

    with tapescope.Recorder(root / "language", probe) as recorder:
        for number, ids in enumerate(sequences):
            loss, reading = step(ids[:, :-1], ids[:, 1:])
            recorder.write(number, reading, scalars={"loss": loss})
    synthetic.write(root / "dense", Spec(), range(0, STEPS, 5))
    return root


class Tab(NamedTuple):
    """The tab over both runs, and the recorded run."""

    get: Any
    run: tapescope.Run


@pytest.fixture(scope="module")
def tab(logdir) -> Tab:
    app = application(logdir, fast=False, runs=2)
    return Tab(app.get, tapescope.Run(logdir / "language"))


def panels_of(answer) -> dict[str, Any]:
    return {panel["key"]: panel for panel in answer.json["panels"]}


def cells(panel) -> np.ndarray:
    return decode(panel["figure"]["data"][0]["z"])


@pytest.mark.slow
def test_a_trained_model_has_heads_and_a_residual_stream(tab):
    assert tab.run.heads == (*(f"attention_0/head_{n}" for n in range(4)), "attention_1/head_0", "attention_1/head_1")
    assert tab.run.residual == ("embed", "norm_0", "norm_1", "norm")
    assert tab.run["attention_entropy"].shape == (STEPS, 6)
    assert tab.run["loss"][-1] < 0.8 * tab.run["loss"][0]
    assert tab.run.problems == ()


@pytest.mark.slow
def test_heads_by_layers_at_the_last_step_and_at_a_marked_one(tab):
    recorded = tab.run["attention_logit_max"]
    for step, row in ((None, -1), (7, 7)):
        marked = {} if step is None else {"step": step}
        answer = tab.get("view", view="heads", run="language", column="attention_logit_max", **marked)
        panel = panels_of(answer)["heads"]
        assert panel["rows"] == ["attention_0", "attention_1"]
        expected = np.full([2, 4], np.nan)
        expected[0] = recorded[row, :4]
        expected[1, :2] = recorded[row, 4:]
        np.testing.assert_array_equal(cells(panel), expected.astype(np.float32))


@pytest.mark.slow
def test_one_head_over_steps(tab):
    panels = panels_of(tab.get("view", view="heads", run="language", head="attention_1/head_1"))
    (line,) = panels["attention_first"]["figure"]["data"]
    np.testing.assert_array_equal(decode(line["y"]), tab.run["attention_first"][:, 5])
    assert "attention_padding" not in panels
    assert panels["attention_first"]["note"].startswith("attention_1/head_1: share of a head's attention")


@pytest.mark.slow
def test_without_a_choice_the_head_with_the_lowest_entropy_is_shown(tab):
    panels = panels_of(tab.get("view", view="heads", run="language"))
    lowest = tab.run.heads[int(np.argmin(tab.run["attention_entropy"][-1]))]
    assert panels["attention_entropy"]["note"].startswith(f"{lowest}: ")
    np.testing.assert_allclose(10 ** cells(panels["residual"])[:, -1], tab.run["residual_rms"][-1], rtol=1e-5)


@pytest.mark.slow
def test_a_run_without_heads_says_why(tab):
    (panel,) = tab.get("view", view="heads", run="dense").json["panels"]
    assert panel["figure"] is None
    assert panel["empty"].startswith("This run has no attention heads: its model has none of Keras' attention layers")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"head": "attention_9/head_0"}, "The run has no attention head 'attention_9/head_0'."),
        ({"column": "gradient_norm"}, "column 'gradient_norm' is not one of an attention head."),
    ],
)
def test_a_head_or_column_that_is_not_there_is_named(tab, parameters, message):
    answer = tab.get("view", view="heads", run="language", **parameters)
    assert (answer.status_code, answer.json["error"]) == (404, message)


@pytest.mark.slow
def test_the_heads_can_be_saved_as_numbers(tab):
    lines = tab.get("csv", view="heads", run="language", panel="heads").text.splitlines()
    assert lines[0] == "head,row,value"
    assert lines[1].startswith("0,attention_0,0.")


def test_heads_by_layers_from_names_of_any_form():
    names = ("a/head_1", "a/head_0", "b#2/head_0", "plain", "head_3", "c/head_99999", "d/head_ 1")
    grid = heads.by_layer(names)
    assert grid.layers == ("a", "b#2", "plain", "head_3", "c/head_99999", "d/head_ 1")
    assert grid.positions.tolist() == [[1, 0], [2, -1], [3, -1], [4, -1], [5, -1], [6, -1]]
    assert heads.by_layer(()).positions.shape == (0, 0)


@pytest.mark.slow
@pytest.mark.browser
def test_the_view_in_chromium_and_a_click_on_a_cell(logdir):
    if page.chromium_path() is None:
        if os.environ.get("TAPESCOPE_REQUIRE_BROWSER") == "1":
            pytest.fail("TAPESCOPE_REQUIRE_BROWSER=1, and there is no chromium with chromedriver on the path")
        pytest.skip("no chromium with chromedriver on the path: the tab is not tried in a browser")
    with page.tensorboard(logdir) as (url, _), page.browser() as chrome:
        deadline = time.monotonic() + 20
        while len(page.fetch_json(url, "runs")["runs"]) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        for run, dark in (("language", False), ("language", True), ("dense", False)):
            page.show_view(chrome, url, f"view=heads&run={run}")
            page.set_dark_mode(chrome, dark)
            page.wait_until_ready(chrome)
            page.save_screenshot(chrome, ARTIFACTS / f"heads_{run}_{'dark' if dark else 'light'}.png")
            assert page.console_errors(chrome) == []
            assert chrome.find_element(By.CSS_SELECTOR, ".message").text == ""
        assert "no attention heads" in chrome.find_element(By.CSS_SELECTOR, ".empty").text
        page.show_view(chrome, url, "view=heads&run=language&headColumn=attention_first")
        note = "return document.querySelector('[data-panel=attention_first] .note').textContent"
        chrome.execute_script(
            "const chart = document.querySelector('[data-panel=heads] .chart');"
            "chart.emit('plotly_click', { points: [{ x: 3, z: 0.5, pointNumber: [0, 3] }] })"
        )
        page.wait_for(chrome, f"{note}.startsWith('attention_0/head_3: ')")
        assert "head=attention_0%2Fhead_3" in chrome.current_url
