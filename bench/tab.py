"""How fast the Gradients tab is: 8 runs x 200 layers x 2,000 steps in TensorBoard and a headless Chromium.

    python bench/tab.py [--runs 8] [--layers 200] [--steps 2000]

Writes the runs (every column of variables, layers and step; no histograms), starts TensorBoard over them, and prints
each figure beside its goal. The clock of the browser counts what a person waits for: from the address to a drawn
heatmap, from a choice to the next figure, and of a live update from the poll that brings it to the drawn figure.
Exits with 1 where a goal is missed.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from scripts import page
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec
from selenium.webdriver.common.by import By

MIB = 1 << 20


class Goal(NamedTuple):
    """A figure, and what it should stay below."""

    name: str
    value: float
    goal: float
    unit: str

    def line(self) -> str:
        """A row of the table that is printed."""
        verdict = "ok" if self.value <= self.goal else "MISSED"
        return f"{self.name:<46}{self.value:>9.2f} {self.unit:<4}{self.goal:>9.2f} {self.unit:<4}{verdict}"


def memory(pid: int) -> dict[str, float]:
    """MiB of private memory of a process and of those it started, by name."""
    found = {}
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if pid in (int(fields["Pid"]), int(fields["PPid"])):
                rollup = (status.parent / "smaps_rollup").read_text().splitlines()
        except (OSError, KeyError):
            continue
        else:
            if pid in (int(fields["Pid"]), int(fields["PPid"])):
                private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private"))
                found[fields["Name"].strip()] = private * 1024 / MIB
    return found


def loaded(url: str, runs: int, last: int) -> None:
    """Waits until TensorBoard holds the last step of every run."""
    while True:
        rows = page.fetch(url, "runs")["runs"]
        if len(rows) == runs and all(row["step"] == last for row in rows):
            return
        time.sleep(0.02)


def switched(driver, changes: str, column: str) -> float:
    """Milliseconds from a change of the address to the figure of that title, by the browser's own clock."""
    script = """
    const [changes, title, done] = arguments;
    const began = performance.now();
    const look = () => {
      const chart = document.querySelector('.chart');
      if (chart?.dataset.shows === title) done(performance.now() - began);
      else requestAnimationFrame(look);
    };
    parent.history.pushState(null, '', '#tapescope&' + changes);
    parent.dispatchEvent(new PopStateEvent('popstate'));
    look();
    """
    return driver.execute_async_script(script, changes, column)


def live(driver, write: Callable[[], None]) -> tuple[float, int]:
    """Milliseconds from the poll that tells of what `write` wrote to the figure that shows it, and its bytes."""
    drawn = driver.execute_script("return performance.getEntriesByName('drawn').length")
    write()
    script = """
    const [drawn, done] = arguments;
    const look = () => {
      if (performance.getEntriesByName('drawn').length === drawn) return requestAnimationFrame(look);
      const polls = performance.getEntriesByType('resource').filter((e) => e.name.includes('/runs?'));
      const views = performance.getEntriesByType('resource').filter((e) => e.name.includes('/view?'));
      const view = views[views.length - 1];
      const poll = polls.filter((p) => p.responseEnd <= view.startTime).pop();
      return done([performance.now() - poll.responseEnd, view.encodedBodySize]);
    };
    look();
    """
    return tuple(driver.execute_async_script(script, drawn))


def measure(logdir: pathlib.Path, runs: int, layers: int, steps: int) -> list[Goal]:
    """All figures."""
    spec = Spec(depth=layers, units=32, decay=0.99, bias=False, histograms=False)
    for run in range(runs):
        synthetic.write(logdir / f"run_{run}", spec._replace(seed=run), range(steps), state="training")
    size = sum(f.stat().st_size for f in logdir.rglob("*") if f.is_file()) / MIB
    print(f"{runs} runs x {layers} layers x {steps} steps: {size:.0f} MiB in event files\n")
    goals = []
    with page.tensorboard(logdir) as (url, process), page.browser() as driver:
        began = time.monotonic()
        loaded(url, runs, steps - 1)
        goals.append(Goal("TensorBoard has loaded them, once it answers", time.monotonic() - began, 2.0, "s"))
        before = memory(process.pid)
        driver.set_script_timeout(30)
        began = time.monotonic()
        page.enter(driver, url, "view=flow&run=run_0")
        page.waited(driver, "return document.querySelector('.chart')?.dataset.shows")
        whole = time.monotonic() - began
        tab = driver.execute_script("return performance.getEntriesByName('drawn')[0].startTime") / 1000
        goals.append(Goal("first heatmap, from opening the tab", tab, 1.5, "s"))
        print(f"first heatmap from opening TensorBoard's address, its own page included: {whole:.2f} s")
        columns = ["delta_norm", "dead_share", "update_ratio", "weight_norm", "saturated", "activation_std"]
        switched(driver, "view=flow&run=run_0&column=saturated", "saturated run_0")
        times = [switched(driver, f"view=flow&run=run_0&column={c}", f"{c} run_0") for c in columns]
        goals.append(Goal("another column, median", statistics.median(times), 300, "ms"))
        goals.append(Goal("another column, slowest", max(times), 300, "ms"))
        times = [switched(driver, f"view=flow&run=run_{r}", f"gradient_norm run_{r}") for r in range(1, runs)]
        goals.append(Goal("another run, never read before, median", statistics.median(times), 300, "ms"))
        goals.append(Goal("another run, never read before, slowest", max(times), 300, "ms"))
        writer = synthetic.Writer(logdir / f"run_{runs - 1}", spec, steps)
        writer.status(steps - 1, "training")

        def write(step: int) -> None:
            writer.write(step)

        times, sent = [], 0
        for step in range(steps, steps + 8):
            took, sent = live(driver, functools.partial(write, step))
            times.append(took)
            time.sleep(1.2)
        writer.file.close()
        print(f"a live update sends {sent / 1024:.0f} KiB")
        goals.append(Goal("a live update, median", statistics.median(times), 200, "ms"))
        goals.append(Goal("a live update, slowest", max(times), 200, "ms"))
        for view in ("overview", "layer", "budget", "compare", "replicas"):
            driver.find_element(By.CSS_SELECTOR, f"[data-key='tab {view}']").click()
            page.ready(driver)
        used = memory(process.pid)
        for name, size in used.items():
            print(f"memory of {name}: {before[name]:.0f} MiB before the tab was opened, {size:.0f} after all its views")
        goals.append(Goal("memory of the server, all processes", sum(used.values()), 300, "MiB"))
    return goals


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("runs", 8), ("layers", 200), ("steps", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        goals = measure(pathlib.Path(scratch), given.runs, given.layers, given.steps)
    print("\n".join(["figure" + " " * 40 + "measured          goal", *(goal.line() for goal in goals)]))
    return int(any(goal.value > goal.goal for goal in goals))


if __name__ == "__main__":
    sys.exit(main())
