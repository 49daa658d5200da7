"""The speed of the Gradients tab with 8 runs x 200 layers x 2,000 steps in TensorBoard and a headless Chromium.

    python -m bench.tab [--runs 8] [--layers 200] [--steps 2000]

Write the runs (every column of variables, layers and step; no histograms), start TensorBoard, and print each
measurement next to its goal. The browser's clock measures what a user waits for: from the address to the first heatmap,
from a choice to the next figure, and for a live update from the poll that announces it to the drawn figure. The exit
code is 1 if a goal is missed.
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

from scripts import page
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec

MIB = 1 << 20


class Goal(NamedTuple):
    """A measurement, and the largest value that it should have."""

    name: str
    value: float
    goal: float
    unit: str

    def line(self) -> str:
        """Return a row of the printed table."""
        verdict = "ok" if self.value <= self.goal else "MISSED"
        return f"{self.name:<46}{self.value:>9.2f} {self.unit:<4}{self.goal:>9.2f} {self.unit:<4}{verdict}"


def memory(pid: int) -> dict[str, float]:
    """Return the private memory of a process and its children by name, in MiB."""
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


def wait_until_loaded(url: str, runs: int, last: int) -> None:
    """Wait until TensorBoard has the last step of every run."""
    while True:
        rows = page.fetch_json(url, "runs")["runs"]
        if len(rows) == runs and all(row["step"] == last for row in rows):
            return
        time.sleep(0.02)


def switch(driver, changes: str, title: str) -> float:
    """Change the address; return the milliseconds until the figure of that title is drawn, by the browser's clock."""
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
    return driver.execute_async_script(script, changes, title)


def update(driver, write: Callable[[], None]) -> tuple[float, int]:
    """Write a record; return the milliseconds from the poll that announces it to its figure, and its bytes."""
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
    """Measure everything."""
    spec = Spec(depth=layers, units=32, decay=0.99, bias=False, histograms=False)
    for run in range(runs):
        synthetic.write(logdir / f"run_{run}", spec._replace(seed=run), range(steps), state="training")
    size = sum(f.stat().st_size for f in logdir.rglob("*") if f.is_file()) / MIB
    print(f"{runs} runs x {layers} layers x {steps} steps: {size:.0f} MiB in event files\n")
    goals = []
    with page.tensorboard(logdir) as (url, process), page.browser() as driver:
        began = time.monotonic()
        wait_until_loaded(url, runs, steps - 1)
        goals.append(Goal("loading all runs, once TensorBoard answers", time.monotonic() - began, 2.0, "s"))
        before = memory(process.pid)
        driver.set_script_timeout(30)
        began = time.monotonic()
        page.open_tab(driver, url, "view=flow&run=run_0")
        page.wait_for(driver, "return document.querySelector('.chart')?.dataset.shows")
        total = time.monotonic() - began
        marks = "return ['previewed', 'drawn'].map((name) => performance.getEntriesByName(name)[0]?.startTime)"
        previewed, drawn = driver.execute_script(marks)  # without the first where plotly.js was there in time
        goals.append(Goal("first heatmap, from opening the tab", (previewed or drawn) / 1000, 1.5, "s"))
        goals.append(Goal("the same with hover and zoom, by plotly.js", drawn / 1000, 1.5, "s"))
        print(f"first heatmap from opening TensorBoard's address, including its own page: {total:.2f} s")
        columns = ["delta_norm", "dead_share", "update_ratio", "weight_norm", "saturated", "activation_std"]
        switch(driver, "view=flow&run=run_0&column=saturated", "saturated run_0")
        times = [switch(driver, f"view=flow&run=run_0&column={c}", f"{c} run_0") for c in columns]
        goals.append(Goal("another column, median", statistics.median(times), 300, "ms"))
        goals.append(Goal("another column, slowest", max(times), 300, "ms"))
        times = [switch(driver, f"view=flow&run=run_{r}", f"gradient_norm run_{r}") for r in range(1, runs)]
        goals.append(Goal("another run, not read before, median", statistics.median(times), 300, "ms"))
        goals.append(Goal("another run, not read before, slowest", max(times), 300, "ms"))
        writer = synthetic.Writer(logdir / f"run_{runs - 1}", spec, steps)
        writer.status(steps - 1, "training")

        def write(step: int) -> None:
            writer.write(step)

        times = []
        size_bytes = 0
        for step in range(steps, steps + 8):
            milliseconds, size_bytes = update(driver, functools.partial(write, step))
            times.append(milliseconds)
            time.sleep(1.2)
        writer.file.close()
        print(f"a live update sends {size_bytes / 1024:.0f} KiB")
        goals.append(Goal("a live update, median", statistics.median(times), 200, "ms"))
        goals.append(Goal("a live update, slowest", max(times), 200, "ms"))
        for view in ("overview", "layer", "budget", "compare", "replicas"):
            driver.execute_script(f"document.querySelector(\"[data-key='tab {view}']\").click()")
            page.wait_until_ready(driver)
        used = memory(process.pid)
        for name, size in used.items():
            print(f"memory of {name}: {before[name]:.0f} MiB before the tab was opened, {size:.0f} MiB after all views")
        goals.append(Goal("memory of the server, all processes", sum(used.values()), 300, "MiB"))
    return goals


def main() -> int:
    """Print the table; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("runs", 8), ("layers", 200), ("steps", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        goals = measure(pathlib.Path(scratch), options.runs, options.layers, options.steps)
    print(f"{'':<46}{'measured':>9}{'goal':>14}")
    print("\n".join(goal.line() for goal in goals))
    return int(any(goal.value > goal.goal for goal in goals))


if __name__ == "__main__":
    sys.exit(main())
