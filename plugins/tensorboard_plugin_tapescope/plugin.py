"""The Gradients tab as TensorBoard sees it: routes, each a few lines over pure functions. See http_api.md."""

import functools
import gzip
import hashlib
import importlib.resources
import json
import mimetypes
import pkgutil
import threading
from collections.abc import Callable

import plotly  # noqa: F401  (where it is missing, there is no tab)
from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.data.table_cache import Records, Snapshot
from tensorboard_plugin_tapescope.figures import basic, csv_export, updates
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.views import compare, flow, layer, overview, query
from tensorboard_plugin_tapescope.views.query import Panel, Query, Refused

VIEWS: dict[str, Callable[[Snapshot, Query], list[Panel]]] = {
    "flow": flow.flow,
    "layer": layer.layer,
    "budget": flow.budget,
    "compare": compare.compare,
    "replicas": compare.replicas,
}

DAY_SECONDS = 24 * 3600
FIGURE = "application/vnd.plotly.v1+json"
"""Not among the types that TensorBoard compresses: that takes longer than the drawing, and saves a quarter."""


class GradientsPlugin(base_plugin.TBPlugin):
    """Serves the page, its libraries, and figures of what TensorBoard has loaded."""

    plugin_name = metadata.PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext):
        self._records = Records(context.data_provider)
        self._pages = pages()
        threading.Thread(target=library, name="tapescope library", daemon=True).start()  # before a page waits for it

    def is_active(self) -> bool:
        """False: TensorBoard shows the tab by itself as soon as there is data of the plugin's name."""
        return False

    def data_plugin_names(self) -> tuple[str, ...]:
        """The plugin whose data make the tab appear."""
        return (self.plugin_name,)

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The tab's name and its module."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="Gradients")

    def get_plugin_apps(self) -> dict[str, Callable]:
        """The routes; http_api.md documents them."""
        return {
            "/static/*": wrappers.Request.application(self._page),
            "/plotly.js": wrappers.Request.application(self._plotly),
            "/runs": self._answer(runs),
            "/run": self._answer(run),
            "/view": self._answer(view),
            "/csv": self._answer(csv),
        }

    def _page(self, request: wrappers.Request) -> wrappers.Response:
        name = request.path.rsplit("/static/", 1)[-1]
        if name not in self._pages:
            return _refusal(request, Refused(404, f"There is no page {query.quoted(name)}."))
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return http_util.Respond(request, self._pages[name], kind)

    def _plotly(self, request: wrappers.Request) -> wrappers.Response:
        return http_util.Respond(request, library(), "text/javascript", content_encoding="gzip", expires=DAY_SECONDS)

    def _answer(self, route: Callable[[wrappers.Request, Snapshot], tuple[str, str]]) -> Callable:
        @wrappers.Request.application
        def app(request: wrappers.Request) -> wrappers.Response:
            if request.method not in ("GET", "HEAD"):
                return _refusal(request, Refused(405, f"{request.method} is not allowed here; use GET."))
            experiment = plugin_util.experiment_id(request.environ)
            snapshot = self._records.snapshot(plugin_util.context(request.environ), experiment)
            try:
                content, kind = route(request, snapshot)
            except Refused as refused:
                return _refusal(request, refused)
            return http_util.Respond(request, content, kind)

        return app


def runs(request: wrappers.Request, snapshot: Snapshot) -> tuple[str, str]:
    """Every run's row of the overview; only that nothing changed, where `known` is still the version."""
    version, content = snapshot.once(lambda: listed(snapshot))
    if request.args.get("known") == version:
        content = _json({"version": version, "unchanged": True})
    return content, "application/json"


def listed(snapshot: Snapshot) -> tuple[str, str]:
    """A version, which changes with what is said of the runs, and all of it."""
    colours = compare.colours(snapshot, tuple(snapshot.runs))
    rows = [{**row, "colour": colour} for row, colour in zip(overview.runs(snapshot), colours, strict=True)]
    version = hashlib.sha1(_json({"runs": rows}).encode(), usedforsecurity=False).hexdigest()[:16]
    columns = {c.name: c._asdict() for c in tables.COLUMNS.values()}
    return version, _json({"version": version, "runs": rows, "columns": columns})


def run(request: wrappers.Request, snapshot: Snapshot) -> tuple[str, str]:
    """What the pickers offer for one run, and its findings."""
    asked = query.parse(request.args, snapshot)
    return _json(overview.about(snapshot, asked.runs[0])), "application/json"


def view(request: wrappers.Request, snapshot: Snapshot) -> tuple[str, str]:
    """The panels of a view."""
    draw = VIEWS[query.choice(request.args, "view", VIEWS, "flow", 404)]
    asked = query.parse(request.args, snapshot)
    panels = draw(query.within(snapshot, asked), asked)
    if (step := asked.step) is not None:
        panels = [p._replace(figure=p.figure and basic.mark_step(p.figure, step, asked.dark)) for p in panels]
    if (step := asked.since) is not None:
        panels = [p._replace(figure=p.figure and updates.newer_part(p.figure, step)) for p in panels]
    whole = {"whole_until": min(snapshot.whole_until)} if snapshot.whole_until else {}
    return _json({"panels": [panel._asdict() for panel in panels], **whole}), FIGURE


def csv(request: wrappers.Request, snapshot: Snapshot) -> tuple[str, str]:
    """The numbers behind one panel, all recorded steps."""
    draw = VIEWS[query.choice(request.args, "view", VIEWS, "flow", 404)]
    asked = query.parse(request.args, snapshot)._replace(max_steps=csv_export.EVERY_STEP)
    panels = {p.key: p for p in draw(query.within(snapshot.complete(), asked), asked)}
    panel = panels[query.choice(request.args, "panel", panels, next(iter(panels)), 404)]
    if panel.figure is None:
        raise Refused(404, f"{panel.title} has no numbers: {panel.empty}")
    return csv_export.csv(panel.figure), "text/csv"


def pages() -> dict[str, bytes]:
    """The files of the page by name. Only these are ever served, so no path leads elsewhere."""
    static = importlib.resources.files("tensorboard_plugin_tapescope").joinpath("static")
    return {f.name: f.read_bytes() for f in static.iterdir() if f.is_file()}


@functools.cache
def library() -> bytes:
    """plotly.js as the installed plotly carries it, gzipped, behind a hint for Chromium.

    With the hint (v8.dev/blog/explicit-compile-hints) its functions are compiled in the background while it is
    fetched, not one by one when they are called, which takes a third off the time until the first figure.
    """
    script = pkgutil.get_data("plotly", "package_data/plotly.min.js")
    if script is None:
        raise Refused(404, "The installed plotly has no plotly.min.js: pip install --force-reinstall plotly")
    return gzip.compress(b"//# allFunctionsCalledOnLoad\n" + script, 5, mtime=0)


def _json(content: dict) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def _refusal(request: wrappers.Request, refused: Refused) -> wrappers.Response:
    return http_util.Respond(request, {"error": str(refused)}, "application/json", code=refused.code)
