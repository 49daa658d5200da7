"""Corrupted runs and malformed requests, and the plugin over a fake data provider instead of TensorBoard.

TensorBoard's loaders pass on any plugin content, tensor, step and time. A provider may also fail on a tensor that it
cannot decode.
"""

import json
import random
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.datastructures import MultiDict
from werkzeug.test import Client, TestResponse

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.plugin import VIEWS, GradientsPlugin
from tensorboard_plugin_tapescope.series import tables

HOSTILE = (
    "<script>alert(1)</script>",
    "\"double' quotes",
    "../../etc/passwd",
    "a/b\\c",
    "two\nlines\tand a tab",
    "слой_層_طبقة",
    "%2e%2e%2f&x=1#y",
    "=1+1",
    "",
)
"""Names that the page must show as text."""
NAMES = (*HOSTILE, "\ud800", "\x00", "</script><script>alert(3)</script>", "__proto__", "a" * 5000, "@SUM(A1)", "\n=1")
NUMBERS = (float("nan"), float("inf"), -3e38, 0.0, 3e38, -1.0)


class Datum(NamedTuple):
    """A record as the data provider returns it."""

    step: int
    wall_time: float
    numpy: np.ndarray


class Series(NamedTuple):
    """The plugin content and the records of a tag; `data` is None if reading them fails."""

    content: bytes
    data: list[Datum] | None


class Provider:
    """A data provider over runs and their tags."""

    def __init__(self, runs: Mapping[str, Mapping[str, Series]]):
        self.runs = runs

    def list_tensors(self, ctx: Any = None, **_: Any) -> dict[str, dict[str, Any]]:
        return {
            run: {
                tag: SimpleNamespace(
                    plugin_content=series.content,
                    max_step=max((d.step for d in series.data or ()), default=0),
                    max_wall_time=max((d.wall_time for d in series.data or ()), default=0.0),
                )
                for tag, series in tags.items()
            }
            for run, tags in self.runs.items()
        }

    def read_tensors(self, ctx: Any = None, *, downsample: int, run_tag_filter: Any, **_: Any) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for run, tags in self.runs.items():
            for tag, series in tags.items():
                if run in run_tag_filter.runs and tag in run_tag_filter.tags:
                    if series.data is None:
                        raise ValueError("cannot reshape array of size 1 into shape (7,)")
                    read.setdefault(run, {})[tag] = series.data[-downsample:]
        return read


class Tab:
    """The plugin's routes over a provider."""

    def __init__(self, runs: Mapping[str, Mapping[str, Series]], provider: Callable[..., Provider] = Provider):
        self.provider = provider(runs)
        self.plugin = GradientsPlugin(TBContext(data_provider=self.provider))
        apps = self.plugin.get_plugin_apps()

        def application(environ: Any, start: Any) -> Any:
            path = environ["PATH_INFO"]
            return apps[path if path in apps else "/static/*"](environ, start)

        self.client = Client(application)

    def get(self, route: str, **parameters: Any) -> TestResponse:
        """Request a route; a list is sent as a parameter that occurs several times."""
        return self.client.get(f"/{route}", query_string=MultiDict(parameters))

    def checked(self, route: str, **parameters: Any) -> TestResponse:
        """Request a route; fail unless it returns a valid answer, or an error with a message."""
        answer = self.get(route, **parameters)
        assert answer.status_code in (200, 400, 404), (route, parameters, answer.get_data(as_text=True)[:300])
        if answer.status_code != 200:
            assert 0 < len(answer.json["error"]) < 1000
        elif "json" in answer.content_type:
            json.loads(answer.data, parse_constant=refused)  # NaN is not JSON
        return answer


def refused(constant: str) -> None:
    """Reject a NaN in JSON, as the page's parser does; this is for `json.loads`."""
    raise AssertionError(f"{constant} is not JSON")


SMALL = Spec(depth=3, units=4)


def good(spec: Spec = SMALL, steps: int = 6) -> dict[str, Series]:
    """Return a complete and valid run."""
    rng = np.random.default_rng(spec.seed)
    found: dict[str, list[Datum]] = {}
    for step in range(steps):
        for name, array in synthetic.record(spec, step, steps, rng).items():
            found.setdefault(name, []).append(Datum(step, 1e9 + step, array))
    status = json.dumps({"state": "training", "reason": "", "replicas": spec.replicas, "steps": 9})
    found["status"] = [Datum(0, 1e9, np.array(status.encode(), object))]
    found["findings"] = [Datum(5, 1e9, np.array([json.dumps(synthetic.finding()).encode()], object))]
    return {
        family.tag: Series(family.metadata().plugin_data.content, found[name])
        for name, family in synthetic.families(spec).items()
    }


def spoiled(rng: random.Random, run: dict[str, Series]) -> dict[str, Series]:
    """Return the run with one to four corruptions."""
    run = dict(run)
    for _ in range(rng.randint(1, 4)):
        tag = rng.choice(list(run) or ["tapescope/layers"])
        series = run.get(tag, Series(b"{}", []))
        run[tag] = rng.choice([_content, _content, _data, _data, _data, _unread])(rng, series)
    if rng.random() < 0.2:
        run.pop(rng.choice(list(run)))
    return run


def _unread(rng: random.Random, series: Series) -> Series:
    return series._replace(data=None)


def _content(rng: random.Random, series: Series) -> Series:
    """Return the tag with another description."""
    try:
        fields = json.loads(series.content)
        names, details = fields["names"], dict(fields["details"])
    except (ValueError, KeyError, TypeError):
        return series
    width = len(names)
    wrong = [
        ("names", [rng.choice(NAMES) for _ in names]),
        ("names", [f"n{i}" for i in range(rng.choice([0, 1, width + 1, 10_000]))]),
        ("names", ["same"] * width),
        ("columns", rng.sample(fields["columns"], rng.randint(0, len(fields["columns"])))),
        ("columns", [*fields["columns"], *fields["columns"]]),
        ("columns", [rng.choice(NAMES), *fields["columns"]]),
        ("columns", ["loss"]),
        ("family", rng.choice(["units", "step", "nonsense", ""])),
        ("schema", rng.choice([0, 2, -1, "1", None, 10**30])),
        *(
            ("details", {**details, key: value})
            for key in ("units", "variables", "sources", "replicas", "activations", "skipped", "faults")
            for value in (None, [], 2**31 - 1, [2**31 - 1] * width, [[10**9, -1]] * width, -5, [None] * width, "x", {})
        ),
        ("details", rng.choice([{}, [], None])),
    ]
    key, value = rng.choice(wrong)
    content = json.dumps({**fields, key: value}).encode()
    return series._replace(content=rng.choice([content] * 9 + [content[: rng.randint(0, len(content))]]))


def _data(rng: random.Random, series: Series) -> Series:
    """Return the tag with other records."""
    data = list(series.data or ())
    if not data:
        return series
    at = rng.randrange(len(data))
    array = data[at].numpy
    if array.dtype == object:
        text = rng.choice([b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 3000, json.dumps(list(NAMES)).encode()])
        fields = {"state": rng.choice(NAMES), "steps": rng.choice([1e999, "x", -1, 10**400]), "replicas": [1]}
        text = rng.choice([text, json.dumps(fields).encode()])
        fields = {**synthetic.finding(), rng.choice(list(synthetic.finding())): rng.choice([None, [], 10**400, *NAMES])}
        text = rng.choice([text, json.dumps(fields).encode()])
        other = rng.choice([np.array(text, object), np.array([text] * 3, object), np.zeros(3, np.float32)])
    else:
        other = rng.choice(
            [
                array[..., :-1],
                array[:1],
                array.reshape(-1),
                np.zeros((0,), np.float32),
                np.full(array.shape, rng.choice(NUMBERS)).astype(np.float32),
                np.full(array.shape, 255, np.uint8),
                np.full(array.shape, -(2**31), np.int32),
                array + np.complex64(1j),
                array > 0,
                np.full(array.shape, b"text", object),
                np.zeros((*array.shape, 3), np.float16),
            ]
        )
    step = rng.choice([data[at].step, data[at].step, -1, 0, 2**62, -(2**63)])
    time = rng.choice([data[at].wall_time, data[at].wall_time, float("nan"), float("inf"), -1e30, 1e300])
    data[at] = Datum(step, time, other)
    if rng.random() < 0.3:
        data = [Datum(d.step, time, other) for d in data]  # all of them
    rng.shuffle(data) if rng.random() < 0.1 else None
    return series._replace(data=data[: rng.choice([len(data), len(data), 1])])


def request(rng: random.Random, runs: list[str]) -> tuple[str, dict[str, Any]]:
    """Return a route and its parameters, most of them valid."""
    words = "-1 1e9 NaN 999999999999999999999 hidden_1 hidden_1/kernel gradient_norm units_dead 1"
    some = (*HOSTILE, *words.split())
    columns = (*tables.COLUMNS, *metadata.COLUMNS)
    right = {
        "run": lambda: rng.sample(runs, rng.randint(1, min(3, len(runs)))),
        "view": lambda: rng.choice(list(VIEWS)),
        "column": lambda: rng.choice(columns),
        "layer": lambda: rng.choice(["hidden_1", "output", "same", *HOSTILE]),
        "variable": lambda: rng.choice(["hidden_1/kernel", "output/bias"]),
        "order": lambda: rng.choice(["forward", "worst"]),
        "first": lambda: rng.choice("0123"),
        "last": lambda: rng.choice("3456"),
        "step": lambda: rng.choice("0123456"),
        "dark": lambda: rng.choice("01"),
        "panel": lambda: rng.choice(["flow", "budget", "output", "units", "shares", "gradient_histogram_0"]),
        "known": lambda: "x",
    }
    asked: dict[str, Any] = {"run": right["run"](), "view": right["view"]()}
    for name in rng.sample(list(right), rng.randint(0, 7)):
        asked[name] = right[name]() if rng.random() < 0.85 else rng.choice(some)
    return rng.choice(["view"] * 6 + ["csv", "run", "runs"]), asked
