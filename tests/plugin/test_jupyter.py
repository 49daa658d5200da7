"""The tab and `Run.plot` in a real Jupyter Notebook under Chromium. It is skipped where Jupyter is not installed.

    pip install notebook && pytest -m nightly tests/plugin/test_jupyter.py

Screenshots are written to tests/artifacts.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
from scripts import page
from selenium.webdriver.common.by import By

ARTIFACTS = pathlib.Path(__file__).parents[1] / "artifacts"
TOKEN = "tapescope"
INSTALLED = importlib.util.find_spec("notebook") and importlib.util.find_spec("ipykernel")

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="Jupyter is not installed: pip install notebook"),
    pytest.mark.skipif(page.chromium_path() is None, reason="no chromium with chromedriver on the path"),
]


def notebook_of(*sources: str) -> dict:
    """Return a notebook with a cell for each source."""
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [{**cell, "id": f"cell-{i}", "source": source} for i, source in enumerate(sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


@contextlib.contextmanager
def jupyter(directory: pathlib.Path):
    """Yield the address of a Jupyter server over a directory, which has its own settings and is ended afterwards."""
    port = page.free_port()
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ.get("PATH", "")])
    variables = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own = {name: str(directory / ".settings" / name) for name in variables}
    # JupyterLab finds plotly's extension in sys.prefix; plotly may be in another environment that this one sees.
    plotly = pathlib.Path(importlib.util.find_spec("plotly").origin).parents[4] / "share" / "jupyter"
    environment = {**os.environ, **own, "PATH": path, "JUPYTER_PATH": str(plotly), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "notebook", "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={directory}", "--expose-app-in-browser"]
    address = f"http://127.0.0.1:{port}"
    with (directory / "jupyter.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5):
                    break
                time.sleep(0.25)
            else:
                log.seek(0)
                raise RuntimeError(f"Jupyter did not start: {log.read()[-2000:]}")
            yield address
        finally:
            process.terminate()  # with its kernels, and TensorBoard with them
            process.wait(30)


@pytest.fixture(scope="module")
def chrome(logdir, tmp_path_factory):
    """Run a notebook in Jupyter, and return Chromium on it."""
    directory = tmp_path_factory.mktemp("jupyter")
    shutil.copytree(logdir, directory / "runs")
    sources = (
        "%load_ext tensorboard",
        f"%tensorboard --logdir runs --port {page.free_port()}",
        "import tapescope\ntapescope.Run('runs/vanishing').plot('gradient_norm')",
    )
    (directory / "runs.ipynb").write_text(json.dumps(notebook_of(*sources)))
    with jupyter(directory) as address, page.browser(1280, 1400) as driver:
        driver.get(f"{address}/notebooks/runs.ipynb?token={TOKEN}")
        page.wait_for(driver, "return document.querySelectorAll('.jp-CodeCell').length >= 3", seconds=120)
        page.wait_for(driver, "return document.querySelector('.jp-NotebookKernelStatus, .jp-Toolbar') !== null")
        page.wait_for(driver, KERNEL_IS_IDLE, seconds=120)
        driver.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for(driver, "return document.querySelector('iframe[id^=tensorboard]')?.src", seconds=120)
        yield driver


KERNEL_IS_IDLE = """
const panel = window.jupyterapp?.shell.currentWidget;
return panel?.sessionContext?.session?.kernel?.status === 'idle';
"""


def test_a_figure_of_run_plot_is_drawn_in_the_notebook(chrome):
    chrome.switch_to.default_content()
    page.wait_for(chrome, "return document.querySelector('.jp-OutputArea .js-plotly-plot .main-svg')", seconds=120)
    figure = chrome.find_element(By.CSS_SELECTOR, ".jp-OutputArea .js-plotly-plot")
    chrome.execute_script("arguments[0].scrollIntoView()", figure)
    page.save_screenshot(chrome, ARTIFACTS / "jupyter_plot.png")
    assert chrome.execute_script("return arguments[0].data[0].type", figure) == "heatmap"


def test_the_tab_is_shown_in_the_notebook(chrome):
    chrome.switch_to.default_content()
    frame = chrome.find_element(By.CSS_SELECTOR, "iframe[id^=tensorboard]")
    chrome.execute_script("arguments[0].scrollIntoView()", frame)
    chrome.switch_to.frame(frame)
    page.wait_for(chrome, "return document.body.textContent.includes('Gradients')", seconds=60)
    chrome.execute_script("location.hash = '#tapescope&view=flow&run=vanishing'")
    page.switch_to_tab(chrome)
    page.wait_until_ready(chrome)
    page.save_screenshot(chrome, ARTIFACTS / "jupyter_tab.png")
    assert chrome.execute_script("return document.querySelectorAll('.panel .main-svg').length") > 0
    assert chrome.find_element(By.CSS_SELECTOR, ".heading h2").text == "vanishing"
