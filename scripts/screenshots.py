"""Pictures of the tab's views for the README: python scripts/screenshots.py LOGDIR OUTDIR

LOGDIR holds runs that tapescope wrote. The run with most findings is opened; Compare takes it and the one most alike,
Replicas one that has several. Writes VIEW.png, and VIEW_dark.png of the overview and the flow.
"""

import pathlib
import sys
import time
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from scripts import page

VIEWS = ("overview", "flow", "layer", "budget", "compare", "replicas", "findings")
DARK = ("overview", "flow")
LOAD_SECONDS = 60


def rows(url: str) -> list[dict]:
    """The overview's rows once TensorBoard has stopped loading more. RuntimeError where there are none."""
    before, deadline = "", time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline:
        answer = page.fetch(url, "runs")
        if answer["runs"] and answer["version"] == before:
            return answer["runs"]
        before = answer["version"]
        time.sleep(1.5)
    raise RuntimeError("no run of this directory has tapescope's records")


def states(url: str, found: list[dict]) -> dict[str, str]:
    """What to open of each view."""
    layers = {r["name"]: set(page.fetch(url, f"run?run={urllib.parse.quote(r['name'])}")["layers"]) for r in found}
    weight = {"error": 10_000, "warning": 100, "info": 1}
    worst = max(found, key=lambda row: sum(weight[s] * n for s, n in row["findings"].items()))
    several = max(found, key=lambda row: row["replicas"] or 1)
    others = (row["name"] for row in found if row is not worst)
    ticked = [worst["name"], *sorted(others, key=lambda run: -len(layers[run] & layers[worst["name"]]))][:2]
    opened = {"run": worst["name"]}
    if worst["worst"]:
        opened["layer"] = worst["worst"]["layer"]
    made = {view: urllib.parse.urlencode({"view": view, **opened}) for view in VIEWS}
    made["replicas"] = urllib.parse.urlencode({"view": "replicas", "run": several["name"]})
    made["compare"] += "".join(f"&with={urllib.parse.quote(run)}" for run in ticked)
    return made


def main() -> int:
    """Takes the pictures."""
    if len(sys.argv) != 3:
        print("usage: python scripts/screenshots.py LOGDIR OUTDIR", file=sys.stderr)
        return 2
    out = pathlib.Path(sys.argv[2])
    with page.tensorboard(sys.argv[1]) as (url, _), page.browser(1280, 860) as driver:
        for view, state in states(url, rows(url)).items():
            page.show(driver, url, state)
            for dark in (True, False) if view in DARK else (False,):
                page.dark(driver, dark)
                page.ready(driver)
                path = out / f"{view}{'_dark' if dark else ''}.png"
                page.save(driver, path)
                print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
