"""The tab in Chromium: every view of synthetic runs, a live run, links, dark mode, hostile names.

Screenshots are written to tests/artifacts. Without Chromium these tests are skipped; they fail with
TAPESCOPE_REQUIRE_BROWSER=1.
"""

import os
import pathlib
import time
import urllib.parse

import pytest
from scripts import page
from scripts.testbed import synthetic
from scripts.testbed.hostile import HOSTILE
from scripts.testbed.synthetic import Spec
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.series import tables

pytestmark = pytest.mark.browser

ARTIFACTS = pathlib.Path(__file__).parents[1] / "artifacts"
VIEWS = ("overview", "flow", "layer", "budget", "compare", "replicas", "heads", "findings")
FOLLOW_SECONDS = 3.0


@pytest.fixture(scope="module")
def chrome():
    """Start one Chromium for all tests of the module."""
    if page.chromium_path() is None:
        if os.environ.get("TAPESCOPE_REQUIRE_BROWSER") == "1":
            pytest.fail("TAPESCOPE_REQUIRE_BROWSER=1, and there is no chromium with chromedriver on the path")
        pytest.skip("no chromium with chromedriver on the path: the tab is not tried in a browser")
    with page.browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def address(logdir):
    """Start TensorBoard in its own process over the four runs, and return its address."""
    with page.tensorboard(logdir) as (url, _):
        deadline = time.monotonic() + 20
        while len(page.fetch_json(url, "runs")["runs"]) < 4 and time.monotonic() < deadline:
            time.sleep(0.2)
        yield url


def text(driver, selector: str) -> str:
    return driver.find_element(By.CSS_SELECTOR, selector).text


def state_of(view: str) -> str:
    """Return the address of a view of synthetic runs."""
    run = "two replicas" if view == "replicas" else "vanishing"
    return f"view={view}&run={urllib.parse.quote(run)}&layer=hidden_2&with=vanishing&with=healthy"


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_shown_without_errors_in_both_themes(chrome, address, view):
    page.show_view(chrome, address, state_of(view))
    for mode, background in (("dark", "rgb(31, 32, 35)"), ("light", "rgb(255, 255, 255)")):
        page.set_dark_mode(chrome, mode == "dark")
        page.wait_until_ready(chrome)
        page.save_screenshot(chrome, ARTIFACTS / f"{view}_{mode}.png")
        assert page.console_errors(chrome) == []
        assert text(chrome, ".message") == ""
        assert chrome.execute_script("return getComputedStyle(document.body).backgroundColor") == background


@pytest.mark.parametrize("view", ["flow", "layer", "budget", "compare", "replicas"])
def test_a_view_of_figures_draws_them(chrome, address, view):
    page.show_view(chrome, address, state_of(view))
    assert chrome.execute_script("return document.querySelectorAll('.panel .main-svg').length") > 0


def test_the_overview_has_a_headline_and_a_card_for_each_run(chrome, address):
    page.show_view(chrome, address, state_of("overview"))
    assert text(chrome, ".lead h2") == "2 of 4 runs have errors"
    assert len(chrome.find_elements(By.CSS_SELECTOR, ".card")) == 4


REDRAWN = """
const [selectors, done] = arguments;
const before = selectors.map((selector) => document.querySelector(selector));
before[0].textContent += ' old';
new MutationObserver((changes, observer) => {
  if (document.querySelector('main').ariaBusy !== 'false') return;
  observer.disconnect();
  done(selectors.map((selector, i) => document.querySelector(selector) === before[i]));
}).observe(document.querySelector('main'), { attributes: true });
parent.document.body.classList.toggle('dark-mode');
"""


def test_only_what_changed_is_replaced(chrome, address):
    """Or a click and a tooltip would be lost with every record of a run that is followed."""
    page.show_view(chrome, address, state_of("overview"))
    changed = "[data-run=vanishing] h3 a"
    kept = [
        "[data-run=vanishing] dd a",
        "[data-run=healthy] h3 a",
        "[data-key='tab flow']",
        "[data-key='tick healthy']",
    ]
    assert chrome.execute_async_script(REDRAWN, [changed, *kept]) == [False, True, True, True, True]


def test_a_half_typed_number_stays_while_a_run_is_followed(chrome, address):
    page.show_view(chrome, address, "view=layer&run=vanishing&layer=hidden_2")
    chrome.find_element(By.CSS_SELECTOR, "[data-key=first]").send_keys("12")
    redrawn = REDRAWN.replace("before[0].textContent += ' old'", "")
    assert chrome.execute_async_script(redrawn, ["[data-key=first]", "[data-key=smoothing]"]) == [True, True]
    typed = "return document.querySelector('[data-key=first]').value"
    assert chrome.execute_script(typed) == "12"


def test_a_tick_is_taken_away_again(chrome, address):
    page.show_view(chrome, address, "view=overview")
    for ticked in (True, False, True):
        chrome.find_element(By.CSS_SELECTOR, "[data-key='tick vanishing']").click()
        page.wait_for(chrome, f"return parent.location.hash.endsWith('with=vanishing') === {str(ticked).lower()}")
        box = "return document.querySelector(\"[data-key='tick vanishing']\").checked"
        assert chrome.execute_script(box) is ticked


def test_the_overview_as_a_table_is_sorted_by_a_click(chrome, address):
    page.show_view(chrome, address, state_of("overview") + "&layout=table")
    chrome.find_element(By.CSS_SELECTOR, "[data-key='sort name']").click()
    page.wait_for(chrome, "return document.querySelector('th[aria-sort=ascending]') !== null")
    runs = [row.get_attribute("data-run") for row in chrome.find_elements(By.CSS_SELECTOR, ".run-table tbody tr")]
    assert len(runs) == 4
    assert runs == sorted(runs)


def test_findings_of_all_runs_name_their_run(chrome, address):
    page.show_view(chrome, address, "view=findings&scope=all&severity=error")
    kinds = [e.text for e in chrome.find_elements(By.CSS_SELECTOR, ".kind")]
    assert len(kinds) >= 2
    assert all(" · error · " in kind for kind in kinds)


def test_a_question_mark_lists_the_shortcuts(chrome, address):
    page.show_view(chrome, address, state_of("overview"))
    chrome.find_element(By.TAG_NAME, "body").send_keys("?")
    page.wait_for(chrome, "return document.querySelector('dialog').open")
    assert "Search runs" in text(chrome, "dialog")
    chrome.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    page.wait_for(chrome, "return !document.querySelector('dialog').open")


def test_a_digit_opens_a_view(chrome, address):
    page.show_view(chrome, address, state_of("overview"))
    chrome.find_element(By.TAG_NAME, "body").send_keys("8")
    page.wait_for(chrome, "return document.querySelectorAll('.finding').length === 3")


def test_findings_are_listed_by_severity(chrome, address):
    page.show_view(chrome, address, state_of("findings"))
    kinds = [e.text.split(" ")[0] for e in chrome.find_elements(By.CSS_SELECTOR, ".kind")]
    assert kinds == ["error", "warning", "note"]


def test_the_heading_opens_the_findings(chrome, address):
    page.show_view(chrome, address, state_of("flow"))
    chip = chrome.find_element(By.CSS_SELECTOR, "[data-key=severe]")
    assert chip.text == "3 findings"
    chip.click()
    page.wait_for(chrome, "return document.querySelectorAll('.finding').length === 3")


PLOT_AREAS = """
const charts = [...document.querySelectorAll('.panel .chart')].filter((c) => c.data?.[0].type === 'heatmap');
return charts.map((chart) => {
  const plot = chart.querySelector('.nsewdrag').getBoundingClientRect();
  return [plot.left - chart.closest('.panel').getBoundingClientRect().left, plot.width].map(Math.round);
});
"""


def test_heatmaps_of_compare_are_aligned_and_equally_wide(chrome, address):
    page.show_view(chrome, address, state_of("compare"))
    areas = chrome.execute_script(PLOT_AREAS)
    assert len(areas) == 3
    assert len({tuple(area) for area in areas}) == 1, areas


TICK_SIZES = """
const labels = [...document.querySelectorAll('.chart .xtick text, .chart .ytick text, .chart .cbaxis text')];
return [...new Set(labels.map((label) => getComputedStyle(label).fontSize))];
"""


@pytest.mark.parametrize("view", ["flow", "layer", "compare", "budget"])
def test_tick_labels_have_one_size(chrome, address, view):
    page.show_view(chrome, address, state_of(view))
    assert chrome.execute_script(TICK_SIZES) == ["11px"]


PREVIEW_DIFFERENCE = """
const done = arguments[0];
(async () => {
  const { drawPreview } = await import(`${location.href.split("/data/")[0]}/data/plugin/tapescope/static/preview.js`);
  const chart = document.querySelector('.chart');
  const pixels = (canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const drawn = new Image();
  drawn.src = await Plotly.toImage(chart, { format: 'png', width: chart.clientWidth, height: chart.layout.height });
  await drawn.decode();
  const canvas = document.createElement('canvas');
  Object.assign(canvas, { width: drawn.width, height: drawn.height });
  canvas.getContext('2d').drawImage(drawn, 0, 0);
  const holder = document.createElement('div');
  holder.style.width = `${chart.clientWidth}px`;
  document.body.append(holder);
  drawPreview(holder, { data: [chart.data[0]], layout: chart.layout });
  const [a, b] = [pixels(canvas), pixels(holder.firstChild)];
  const { l, r, t, b: bottom } = chart.layout.margin;
  const [rows, columns] = [chart._fullData[0].z.length, chart._fullData[0].z[0].length];
  let largest = 0;
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    const x = Math.floor(l + (a.width - l - r) * (j + 0.5) / columns);
    const y = Math.floor(t + (a.height - t - bottom) * (i + 0.5) / rows);
    const colour = ({ data, width }) => data.subarray(4 * (y * width + x), 4 * (y * width + x) + 3);
    colour(a).forEach((value, c) => (largest = Math.max(largest, Math.abs(value - colour(b)[c]))));
  }
  holder.remove();
  done([rows * columns, largest]);
})().catch((error) => done([0, String(error)]));
"""


def test_the_first_heatmap_is_there_before_plotly_and_has_its_colours(chrome, address):
    chrome.execute_cdp_cmd("Fetch.enable", {"patterns": [{"urlPattern": "*plotly.js*"}]})  # which waits from now on
    page.open_tab(chrome, address, "view=flow&run=vanishing")
    page.wait_for(chrome, "return document.querySelectorAll('.preview').length === 1")
    assert chrome.execute_script("return window.Plotly") is None
    chrome.execute_cdp_cmd("Fetch.disable", {})
    page.wait_until_ready(chrome)
    assert chrome.execute_script("return document.querySelectorAll('.preview').length") == 0
    cells, largest = chrome.execute_async_script(PREVIEW_DIFFERENCE)
    assert cells == 16 * 40
    assert largest <= 3


def test_a_view_stays_after_a_reload_and_back_returns_to_it(chrome, address):
    page.show_view(chrome, address, "view=flow&run=vanishing&column=delta_norm&order=worst")
    chrome.find_element(By.CSS_SELECTOR, "[data-key='tab layer']").click()
    page.wait_for(chrome, "return document.querySelector('.panel[data-panel=output] .main-svg')")
    chrome.switch_to.default_content()
    assert "view=layer" in chrome.current_url
    chrome.back()
    page.open_tab(chrome, address, chrome.current_url.split("#tapescope&")[1])
    page.wait_until_ready(chrome)
    chosen = [e.get_attribute("value") for e in chrome.find_elements(By.CSS_SELECTOR, ".controls select")]
    assert chosen == ["delta_norm", "worst"]
    assert text(chrome, ".heading h2") == "vanishing"


def test_the_column_can_be_chosen(chrome, address):
    page.show_view(chrome, address, "view=flow&run=vanishing")
    options = chrome.find_elements(By.CSS_SELECTOR, "[data-key='select Column'] option")
    recorded = metadata.VARIABLE_COLUMNS + metadata.SLOW_COLUMNS + metadata.LAYER_COLUMNS
    of_the_run = {c.name for c in recorded} | set(tables.DERIVED)
    assert {o.get_attribute("value") for o in options} == of_the_run
    next(o for o in options if o.get_attribute("value") == "dead_share").click()
    page.wait_for(chrome, "return document.querySelector('.panel h3').textContent === 'Dead share'")


def test_runs_can_be_searched(chrome, address):
    page.show_view(chrome, address, "view=flow&run=vanishing")
    search = chrome.find_element(By.CSS_SELECTOR, "aside input[type=search]")
    search.send_keys("^(healthy|van")
    assert text(chrome, ".hint") == "No run matches."
    search.send_keys(")")
    page.wait_for(chrome, "return document.querySelectorAll('.runs li').length === 2")
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(Keys.BACKSPACE)
    page.wait_for(chrome, "return document.querySelectorAll('.runs li').length === 4")


def test_a_figure_and_its_numbers_can_be_saved(chrome, address):
    page.show_view(chrome, address, "view=flow&run=vanishing")
    script = "const done = arguments[0]; Plotly.toImage(document.querySelector('.chart'), {format: 'png'}).then(done)"
    assert chrome.execute_async_script(script).startswith("data:image/png;base64,")
    chrome.find_element(By.CSS_SELECTOR, ".tools button").click()
    link = "const done = arguments[0]; fetch(document.querySelector('.tools a').href).then((r) => r.text()).then(done)"
    assert chrome.execute_async_script(link).startswith("step,row,value\r\n0,hidden_1/kernel,")
    assert page.console_errors(chrome) == []


def test_a_click_on_a_row_opens_its_layer(chrome, address):
    page.show_view(chrome, address, "view=flow&run=vanishing&column=delta_norm")
    chrome.execute_script("document.querySelector('.chart').emit('plotly_click', {points: [{pointNumber: [2, 5]}]})")
    page.wait_for(chrome, "return document.querySelector('[data-key=\"select Layer\"]')?.value === 'hidden_3'")


def test_the_tab_can_be_used_from_the_keyboard(chrome, address):
    page.show_view(chrome, address, "view=flow&run=vanishing")
    tab = chrome.find_element(By.CSS_SELECTOR, "[role=tab][aria-selected=true]")
    tab.send_keys(Keys.ARROW_RIGHT)
    page.wait_for(chrome, "return document.activeElement.textContent === 'Layer'")
    page.wait_until_ready(chrome)
    unnamed = """return [...document.querySelectorAll('input, select, button, a')].filter((e) =>
        !e.textContent.trim() && !e.ariaLabel && !e.closest('label')).map((e) => e.outerHTML)"""
    assert chrome.execute_script(unnamed) == []


def test_hostile_names_are_shown_as_text(chrome, address):
    run = urllib.parse.quote("we <b>ird/'quoted\"")
    for state in ("view=overview", f"view=findings&run={run}", f"view=flow&run={run}&column=delta_norm"):
        page.show_view(chrome, address, state)
        assert (
            chrome.execute_script("return document.querySelectorAll('script:not([src]):not([type]), img').length") == 0
        )
        assert page.console_errors(chrome) == []
    ticks = chrome.execute_script("return [...document.querySelectorAll('.ytick text')].map((t) => t.textContent)")
    assert HOSTILE[0] in ticks
    assert "two lines and a tab" in ticks
    for name in HOSTILE[:-1]:
        page.show_view(chrome, address, f"view=layer&run={run}&layer={urllib.parse.quote(name)}")
        assert text(chrome, ".message") == ""
        selected = "return document.querySelector('[data-key=\"select Layer\"]').value"
        assert chrome.execute_script(selected) == name
    page.save_screenshot(chrome, ARTIFACTS / "hostile.png")


def test_the_slider_smooths_the_lines_of_a_layer(chrome, address):
    page.show_view(chrome, address, "view=layer&run=vanishing&layer=hidden_2&smoothing=0")
    traces = "return document.querySelector('.panel[data-panel=gradient_norm] .chart').data.length"
    assert chrome.execute_script(traces) == 2
    slider = chrome.find_element(By.CSS_SELECTOR, "[data-key=smoothing]")
    slider.send_keys(Keys.END)
    page.wait_for(chrome, f"{traces} === 4")
    assert text(chrome, ".control output") == "0.99"
    assert chrome.execute_script("return parent.location.hash").endswith("&smoothing=0.99")
    assert chrome.execute_script("return document.activeElement.dataset.key") == "smoothing"


def test_a_missing_run_is_named(chrome, address):
    page.open_tab(chrome, address, "view=flow&run=gone")
    page.wait_for(chrome, "return document.querySelector('.message').textContent.includes('gone')")


def test_a_live_run_is_followed_and_zoom_and_scroll_stay(chrome, tmp_path):
    writer = synthetic.Writer(tmp_path / "live", Spec(depth=12, histograms=False), total=400)
    writer.status(0, "training")
    for step in range(160):
        writer.write(step)
    with page.tensorboard(tmp_path) as (url, _):
        page.open_tab(chrome, url, "view=flow&run=live&column=delta_norm")
        page.wait_until_ready(chrome)
        page.wait_for(chrome, "return document.querySelector('.chip.training')?.textContent.includes('step 159')")
        shown = "return document.querySelector('.chart')._fullData?.[0].x.slice(-1)[0] === arguments[0]"
        page.wait_for(chrome, shown, 159)
        chrome.execute_script("Plotly.relayout(document.querySelector('.chart'), {'yaxis.range': [8.5, 2.5]})")
        whole = sent(chrome)
        chrome.execute_script("document.querySelector('main').style.height = '200px'")
        chrome.execute_script("document.querySelector('main').scrollTop = 50")
        delays = []
        for step in range(160, 166):
            writer.write(step)
            written = time.monotonic()
            page.wait_for(chrome, shown, step, seconds=10)
            delays.append(time.monotonic() - written)
        assert max(delays) < FOLLOW_SECONDS, delays
        assert sent(chrome) < whole / 3  # only what is new
        rows = chrome.execute_script("return [...document.querySelector('.chart')._fullData[0].z].map((r) => r.length)")
        assert rows == [166] * 12
        for step in range(166, 176):
            writer.write(step)  # all between two polls: the last is drawn at once, the others with the next whole read
        page.wait_for(chrome, shown, 175)
        drawn = "return document.querySelector('.chart')._fullData[0].x.length"
        page.wait_for(chrome, f"{drawn} === arguments[0]", 176)
        assert chrome.execute_script("return document.querySelector('.chart').layout.yaxis.range") == [8.5, 2.5]
        assert chrome.execute_script("return document.querySelector('main').scrollTop") == 50
        page.save_screenshot(chrome, ARTIFACTS / "live.png")
        assert page.console_errors(chrome) == []
    writer.file.close()


def sent(driver) -> int:
    """Return the bytes of the last response with figures."""
    entries = "performance.getEntriesByType('resource').filter((e) => e.name.includes('/view?'))"
    return driver.execute_script(f"return {entries}.pop().encodedBodySize")


def test_a_range_of_steps_is_zoomed_into_and_left(chrome, address):
    page.show_view(chrome, address, "view=layer&run=vanishing&layer=hidden_2")
    chrome.execute_script(
        "Plotly.relayout(document.querySelector('.chart'), {'xaxis.range[0]': 95.5, 'xaxis.range[1]': 204.5})"
    )
    shown = "return [...document.querySelectorAll('.chart')].filter((c) => c.data).map((c) => c._fullData[0].x[0])"
    page.wait_for(chrome, f"return (() => {{ {shown} }})().every((x) => x >= 96 && x <= 204)")
    page.wait_until_ready(chrome)
    assert chrome.execute_script("return parent.location.hash").endswith("&first=96&last=204")
    boxes = [chrome.find_element(By.CSS_SELECTOR, f"[data-key={key}]") for key in ("first", "last")]
    assert [box.get_attribute("value") for box in boxes] == ["96", "204"]
    chrome.execute_script("document.querySelector('.chart').emit('plotly_doubleclick')")
    page.wait_for(chrome, f"return (() => {{ {shown} }})()[0] === 0")
    assert "first" not in chrome.execute_script("return parent.location.hash")


def set_size(driver, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture
def resized(chrome):
    """Return Chromium, whose window has its usual size again afterwards."""
    yield chrome
    set_size(chrome, 1280, 900)


def test_figures_follow_the_width_of_the_window(resized, address):
    page.show_view(resized, address, "view=layer&run=vanishing&layer=hidden_2")
    for width in (800, 1900):
        set_size(resized, width, 900)
        same = "(chart) => chart.querySelector('.main-svg').clientWidth === chart.clientWidth"
        fits = f"document.querySelector('.panel .chart').clientWidth < {width} - 200"
        page.wait_for(
            resized, f"return {fits} && [...document.querySelectorAll('.panel:not(.blank) .chart')].every({same})"
        )


def test_long_names_make_no_view_wider_than_the_window(resized, tmp_path):
    layers = ("path/" * 40 + "layer", "b" * 200, "output")
    found = (synthetic.finding(layers[0]), synthetic.finding(layers[1], 30, "warning"))
    synthetic.write(tmp_path / ("a run " + "z" * 180), Spec(layers=layers, findings=found), range(0, 50, 10))
    synthetic.write(tmp_path / "other", Spec(), range(0, 50, 10))
    set_size(resized, 800, 600)
    with page.tensorboard(tmp_path) as (url, _):
        run = urllib.parse.quote("a run " + "z" * 180)
        for view in ("overview", "flow", "layer", "budget", "compare", "findings"):
            page.open_tab(resized, url, f"view={view}&run={run}&with={run}&with=other")
            page.wait_until_ready(resized)
            page.wait_for(
                resized, "const main = document.querySelector('main'); return main.scrollWidth === main.clientWidth"
            )


def test_a_long_layer_is_cut_in_the_table_of_runs(chrome, tmp_path):
    synthetic.write(tmp_path / "long", Spec(layers=("b" * 200, "output")), range(0, 50, 10))
    with page.tensorboard(tmp_path) as (url, _):
        page.open_tab(chrome, url, "view=overview&layout=table")
        cell = "document.querySelector('.run-table td a[title^=\"Open this layer\"]')?.closest('td')"
        assert page.wait_for(chrome, f"return {cell}?.clientWidth") < 300


def test_a_short_name_of_a_run_is_whole_in_the_table(chrome, address):
    page.show_view(chrome, address, "view=overview&layout=table")
    names = "[...document.querySelectorAll('.run-table .name .start')]"
    assert page.wait_for(chrome, f"return {names}.length") == 4
    assert chrome.execute_script(f"return {names}.filter((e) => e.scrollWidth > e.clientWidth).length") == 0


def test_a_figure_that_is_gone_is_not_resized(resized, address):
    page.show_view(resized, address, "view=layer&run=vanishing&layer=hidden_2")
    set_size(resized, 1000, 900)
    page.show_view(resized, address, "view=findings&run=vanishing")
    time.sleep(0.3)
    assert page.console_errors(resized) == []


def test_a_directory_without_runs_states_the_commands(chrome, tmp_path):
    with page.tensorboard(tmp_path) as (url, _):
        chrome.switch_to.default_content()
        chrome.get(f"{url}data/plugin_entry.html?name=tapescope")
        page.wait_for(
            chrome, "return document.querySelector('.blankslate pre')?.textContent.includes('tapescope-train')"
        )
        page.save_screenshot(chrome, ARTIFACTS / "empty.png")


def test_a_run_of_a_newer_schema_is_named_and_others_are_shown(chrome, tmp_path):
    synthetic.write(tmp_path / "good", Spec(), range(0, 100, 10))
    synthetic.write_newer(tmp_path / "newer")
    with page.tensorboard(tmp_path) as (url, _):
        page.open_tab(chrome, url)
        page.wait_for(chrome, "return document.querySelectorAll('.card').length === 2")
        problem = page.wait_for(chrome, "return document.querySelector('.problem')?.textContent")
        assert "pip install -U tapescope" in problem
        page.save_screenshot(chrome, ARTIFACTS / "newer.png")
        page.show_view(chrome, url, "view=findings&run=newer")
        assert text(chrome, ".heading .chip") == "no status recorded, no step recorded"
        assert page.console_errors(chrome) == []


def test_the_tab_works_under_a_path_prefix(chrome, logdir):
    with page.tensorboard(logdir, "--path_prefix=/proxy/6006") as (url, _):
        page.open_tab(chrome, url, "view=flow&run=healthy")
        page.wait_until_ready(chrome)
        assert page.console_errors(chrome, ignored=["font-roboto"]) == []  # TensorBoard's own, from /
