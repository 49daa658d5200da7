"""Screenshots of the tab's views for the documentation: python scripts/screenshots.py LOGDIR OUTDIR.

LOGDIR has runs of tapescope. The run with the most severe findings is opened. Compare shows it beside the run with the
most layers in common, Replicas the run with most replicas, Heads the first with attention heads, if any. Written are
VIEW.png, and VIEW_dark.png of some views.
"""

import pathlib
import sys
import time
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from scripts import page

VIEWS = ("overview", "flow", "layer", "budget", "compare", "replicas", "heads", "findings")
DARK = ("overview", "flow")
LOAD_SECONDS = 60


def load_rows(url: str) -> list[dict]:
    """Return the overview's rows once TensorBoard loads no more.

    Raises:
      RuntimeError: there is no run of tapescope.
    """
    before = ""
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline:
        answer = page.fetch_json(url, "runs")
        if answer["runs"] and answer["version"] == before:
            return answer["runs"]
        before = answer["version"]
        time.sleep(1.5)
    raise RuntimeError("LOGDIR must have runs of tapescope; got none: train one with `make demo`")


def view_states(url: str, rows: list[dict]) -> dict[str, str]:
    """Return the address of each view."""
    details = {r["name"]: page.fetch_json(url, f"run?run={urllib.parse.quote(r['name'])}") for r in rows}
    layers = {name: set(described["layers"]) for name, described in details.items()}
    weight = {"error": 10_000, "warning": 100, "info": 1}
    worst = max(rows, key=lambda row: sum(weight[s] * n for s, n in row["findings"].items()))
    replicated = max(rows, key=lambda row: row["replicas"] or 1)
    others = (row["name"] for row in rows if row is not worst)
    ticked = [worst["name"], *sorted(others, key=lambda run: -len(layers[run] & layers[worst["name"]]))][:2]
    selection = {"run": worst["name"]}
    if worst["worst"]:
        selection["layer"] = worst["worst"]["layer"]
    states = {view: urllib.parse.urlencode({"view": view, **selection}) for view in VIEWS}
    states["replicas"] = urllib.parse.urlencode({"view": "replicas", "run": replicated["name"]})
    with_heads = [name for name, described in details.items() if described["heads"]]
    if with_heads:
        states["heads"] = urllib.parse.urlencode({"view": "heads", "run": with_heads[0]})
    else:
        del states["heads"]
    states["compare"] += "".join(f"&with={urllib.parse.quote(run)}" for run in ticked)
    return states


def main() -> int:
    """Write the screenshots."""
    if len(sys.argv) != 3:
        print("usage: python scripts/screenshots.py LOGDIR OUTDIR", file=sys.stderr)
        return 2
    out = pathlib.Path(sys.argv[2])
    with page.tensorboard(sys.argv[1]) as (url, _), page.browser(1280, 860) as driver:
        for view, state in view_states(url, load_rows(url)).items():
            page.show_view(driver, url, state)
            for dark in (True, False) if view in DARK else (False,):
                page.set_dark_mode(driver, dark)
                page.wait_until_ready(driver)
                path = out / f"{view}{'_dark' if dark else ''}.png"
                page.save_screenshot(driver, path)
                print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
