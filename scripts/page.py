"""A TensorBoard and a headless Chromium that looks at its Gradients tab; for tests, benchmarks and screenshots."""

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


def chromium() -> str | None:
    """Where a Chromium is, with its driver beside it on the path; None where there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    return found if found and shutil.which("chromedriver") else None


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def tensorboard(logdir: str | os.PathLike[str], *flags: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yields the address of a TensorBoard over `logdir` once it answers, and its process, which is ended after.

    TensorFlow is hidden from it, as on a machine that has none: it starts sooner, and is smaller by 300 MiB.
    """
    port = free_port()
    without = "import sys; sys.modules['tensorflow'] = None; from tensorboard import main; main.run_main()"
    command = [sys.executable, "-c", without, "--logdir", str(logdir), "--host", "127.0.0.1"]
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
    """Yields a Chromium with a profile of its own; RuntimeError where there is none."""
    binary = chromium()
    if binary is None:
        raise RuntimeError("no Chromium with chromedriver: apt-get install chromium chromium-driver")
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


def waited(driver: webdriver.Chrome, script: str, *arguments: object, seconds: float = 30) -> object:
    """What the script returns as soon as that is true. TimeoutError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if value := driver.execute_script(script, *arguments):
                return value
        time.sleep(0.05)
    raise TimeoutError(f"not within {seconds} s: {script}")


def enter(driver: webdriver.Chrome, address: str, state: str = "") -> None:
    """Opens the tab at a state (`view=flow&run=a`) and steps into its frame."""
    driver.switch_to.default_content()
    driver.get("about:blank")  # an address that differs by its hash alone would not load anew
    driver.get_log("browser")  # what an earlier page said, whose server may be gone
    driver.get(f"{address}#tapescope{'&' if state else ''}{state}")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [f for f in driver.find_elements(By.TAG_NAME, "iframe") if "name=tapescope" in _source(driver, f)]
        if found:
            driver.switch_to.frame(found[0])
            return
        time.sleep(0.05)
    raise TimeoutError(f"the tab has no frame at {address}")


def _source(driver: webdriver.Chrome, frame: object) -> str:
    return driver.execute_script(
        "return arguments[0].src + ' ' + (arguments[0].contentWindow?.location.href ?? '')", frame
    )


def show(driver: webdriver.Chrome, address: str, state: str) -> None:
    """The tab at a state and ready; where it is open already, by a change of the address alone."""
    script = """
    const [address, state, done] = arguments;
    if (!document.querySelector('.tabs button') || !parent.location.href.startsWith(`${address}#`)) return done(false);
    if (parent.location.hash === state) return done(true);
    parent.addEventListener('hashchange', () => done(true), { once: true });
    parent.location.hash = state;
    """
    if not driver.execute_async_script(script, address, f"#tapescope&{state}"):
        enter(driver, address, state)
    ready(driver)


READY = """
if (document.querySelector('main')?.ariaBusy !== 'false') return false;
const panels = [...document.querySelectorAll('.panel')];
const words = document.querySelector('.words > *');
const finished = (panel) => panel.classList.contains('blank') || panel.querySelector('.chart[aria-label]');
const drawn = panels.length && panels.every(finished);
return Boolean(document.styleSheets.length && (words || drawn) && document.querySelector('.tabs button'));
"""


def ready(driver: webdriver.Chrome, seconds: float = 60) -> None:
    """Waits until the view shows something."""
    waited(driver, READY, seconds=seconds)


def dark(driver: webdriver.Chrome, on: bool) -> None:
    """TensorBoard's dark mode, as its own switch sets it."""
    driver.execute_script("window.parent.document.body.classList.toggle('dark-mode', arguments[0])", on)


def complaints(driver: webdriver.Chrome, ignored: Sequence[str] = ()) -> list[str]:
    """What the console holds of errors, and every breach of the content security policy."""
    grave = [e for e in driver.get_log("browser") if e["level"] == "SEVERE" or "Content Security" in e["message"]]
    return [e["message"] for e in grave if not any(text in e["message"] for text in ignored)]


def fetch(address: str, path: str) -> dict:
    """JSON from a route of the plugin."""
    with urllib.request.urlopen(f"{address}data/plugin/tapescope/{path}", timeout=60) as answer:
        return json.load(answer)


def save(driver: webdriver.Chrome, path: pathlib.Path) -> None:
    """A screenshot of the window."""
    path.parent.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(path))
