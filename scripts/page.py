"""TensorBoard and headless Chromium on its Gradients tab, for tests, benchmarks and screenshots."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-device-scale-factor=1"),
)


def chromium_path() -> str | None:
    """Return the path of Chromium, None if it or its driver is not installed."""
    path = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    return path if shutil.which("chromedriver") else None


def free_port() -> int:
    """Return a port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def tensorboard(
    logdir: str | os.PathLike[str], *flags: str, python: str = sys.executable
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yield the address of TensorBoard over `logdir` once it answers, and its process, which is ended afterwards.

    TensorFlow is hidden from it, as on a machine without it: it starts sooner and needs 300 MiB less.
    """
    port = free_port()
    without = "import sys; sys.modules['tensorflow'] = None; from tensorboard import main; main.run_main()"
    command = [python, "-c", without, "--logdir", str(logdir), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--reload_interval", "1", *flags]
    prefix = next((f.split("=", 1)[1].strip("/") + "/" for f in flags if f.startswith("--path_prefix=")), "")
    address = f"http://127.0.0.1:{port}/{prefix}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for _ in range(240):
                if process.poll() is not None or _answers(f"{address}data/environment"):
                    break
                time.sleep(0.25)
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"TensorBoard did not start: {log.read().decode(errors='replace')[-2000:]}")
            yield address, process
        finally:
            process.terminate()
            process.wait(20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[webdriver.Chrome]:
    """Yield Chromium with a temporary profile.

    Raises:
      RuntimeError: Chromium is not installed.
    """
    binary = chromium_path()
    if binary is None:
        raise RuntimeError("Chromium with chromedriver is needed: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = binary
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            yield driver
        finally:
            driver.quit()


def wait_for(driver: webdriver.Chrome, script: str, *arguments: object, seconds: float = 30) -> object:
    """Return what the script returns as soon as it is true.

    Raises:
      TimeoutError: it is not true within `seconds`.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if value := driver.execute_script(script, *arguments):
                return value
        time.sleep(0.05)
    raise TimeoutError(f"the script must be true within {seconds} s: {script}")


def open_tab(driver: webdriver.Chrome, address: str, state: str = "") -> None:
    """Load the tab at a state (`view=flow&run=a`) and switch to its frame."""
    driver.switch_to.default_content()
    driver.get("about:blank")  # an address that differs only by its hash would not be loaded again
    driver.get_log("browser")  # drop the messages of the page before, whose server may be gone
    driver.get(f"{address}#tapescope{'&' if state else ''}{state}")
    switch_to_tab(driver)


def switch_to_tab(driver: webdriver.Chrome) -> None:
    """Switch from TensorBoard's page to the tab's frame, once it is there.

    Raises:
      TimeoutError: there is no such frame.
    """
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [f for f in driver.find_elements(By.TAG_NAME, "iframe") if "name=tapescope" in _source(driver, f)]
        if found:
            driver.switch_to.frame(found[0])
            return
        time.sleep(0.05)
    raise TimeoutError("TensorBoard's page has no frame of the tab")


def _source(driver: webdriver.Chrome, frame: object) -> str:
    return driver.execute_script(
        "return arguments[0].src + ' ' + (arguments[0].contentWindow?.location.href ?? '')", frame
    )


def show_view(driver: webdriver.Chrome, address: str, state: str) -> None:
    """Show the tab at a state and wait until it is ready; if it is open, only its address is changed."""
    script = """
    const [address, state, done] = arguments;
    if (!document.querySelector('.tabs button') || !parent.location.href.startsWith(`${address}#`)) return done(false);
    if (parent.location.hash === state) return done(true);
    parent.addEventListener('hashchange', () => done(true), { once: true });
    parent.location.hash = state;
    """
    if not driver.execute_async_script(script, address, f"#tapescope&{state}"):
        open_tab(driver, address, state)
    wait_until_ready(driver)


READY = """
if (document.querySelector('main')?.ariaBusy !== 'false') return false;
const panels = [...document.querySelectorAll('.panel')];
const words = document.querySelector('.words > *');
const finished = (panel) => panel.classList.contains('blank') || panel.querySelector('.chart[aria-label]');
const drawn = panels.length && panels.every(finished);
return Boolean(document.styleSheets.length && (words || drawn) && document.querySelector('.tabs button'));
"""


def wait_until_ready(driver: webdriver.Chrome, seconds: float = 60) -> None:
    """Wait until the view has text or all of its figures."""
    wait_for(driver, READY, seconds=seconds)


def set_dark_mode(driver: webdriver.Chrome, on: bool) -> None:
    """Switch TensorBoard's dark mode, as its own button does."""
    driver.execute_script("window.parent.document.body.classList.toggle('dark-mode', arguments[0])", on)


def console_errors(driver: webdriver.Chrome, ignored: Sequence[str] = ()) -> list[str]:
    """Return the console's errors and violations of the content security policy, without those of `ignored` texts."""
    entries = [e for e in driver.get_log("browser") if e["level"] == "SEVERE" or "Content Security" in e["message"]]
    return [e["message"] for e in entries if not any(text in e["message"] for text in ignored)]


def fetch_json(address: str, path: str) -> dict:
    """Return the JSON of a route of the plugin."""
    with urllib.request.urlopen(f"{address}data/plugin/tapescope/{path}", timeout=60) as answer:
        return json.load(answer)


def save_screenshot(driver: webdriver.Chrome, path: pathlib.Path) -> None:
    """Write a screenshot of the window."""
    path.parent.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(path))
