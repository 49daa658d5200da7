"""The Gradients tab as TensorBoard sees it: its routes, which http_api.md documents."""

import functools
import gzip
import hashlib
import importlib.resources
import json
import logging
import mimetypes
import pkgutil
import threading
from collections.abc import Callable
from typing import Any

import plotly  # noqa: F401  (without it the loader leaves the tab out)
from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.data.memory import limit_kept_memory
from tensorboard_plugin_tapescope.data.replays import read_replays
from tensorboard_plugin_tapescope.data.table_cache import Snapshot, TableCache
from tensorboard_plugin_tapescope.figures import basic, csv_export, updates
from tensorboard_plugin_tapescope.figures.style import run_colours
from tensorboard_plugin_tapescope.series import closer, tables
from tensorboard_plugin_tapescope.views import budget, compare, flow, heads, layer, overview, replicas
from tensorboard_plugin_tapescope.views.panel import Panel
from tensorboard_plugin_tapescope.views.query import Query, RequestError, parse_choice, parse_query, quote, select_steps

VIEWS: dict[str, Callable[[Snapshot, Query], list[Panel]]] = {
    "flow": flow.flow,
    "layer": layer.layer,
    "budget": budget.budget,
    "compare": compare.compare,
    "replicas": replicas.replicas,
    "heads": heads.heads,
}

logger = logging.getLogger(__name__)

CLOSER_NOTE = "A bar above the plot marks steps that were all measured because of a finding."
DAY_SECONDS = 24 * 3600

FIGURE_TYPE = "application/vnd.plotly.v1+json"
"""TensorBoard does not compress this type. Compressing takes longer than drawing, and saves a quarter."""


class GradientsPlugin(base_plugin.TBPlugin):
    """The plugin: it serves the page, plotly.js, and figures of the runs that TensorBoard has loaded."""

    plugin_name = metadata.PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext):
        limit_kept_memory()
        self._cache = TableCache(context.data_provider)
        self._logdir = context.logdir
        self._pages = read_pages()
        # Compress plotly.js before the first page asks for it.
        threading.Thread(target=compressed_plotly, name="tapescope plotly.js", daemon=True).start()

    def is_active(self) -> bool:
        """Return False: TensorBoard shows the tab itself once there are data of `data_plugin_names`."""
        return False

    def data_plugin_names(self) -> tuple[str, ...]:
        """Return the plugin whose data make the tab appear."""
        return (self.plugin_name,)

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return the tab's name and JavaScript module."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="Gradients")

    def get_plugin_apps(self) -> dict[str, Callable]:
        """Return the routes, which http_api.md documents."""
        return {
            "/static/*": _route(self._serve_page),
            "/plotly.js": _route(self._serve_plotly),
            "/runs": self._data_route(answer_runs),
            "/run": self._data_route(functools.partial(answer_run, logdir=self._logdir)),
            "/findings": self._data_route(answer_findings),
            "/view": self._data_route(answer_view),
            "/csv": self._data_route(answer_csv),
        }

    def _serve_page(self, request: wrappers.Request) -> wrappers.Response:
        name = request.path.rsplit("/static/", 1)[-1]
        if name not in self._pages:
            raise RequestError(404, f"There is no page {quote(name)}.")
        content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return http_util.Respond(request, self._pages[name], content_type)

    def _serve_plotly(self, request: wrappers.Request) -> wrappers.Response:
        script = compressed_plotly()
        return http_util.Respond(request, script, "text/javascript", content_encoding="gzip", expires=DAY_SECONDS)

    def _data_route(self, answer: Callable[[wrappers.Request, Snapshot], tuple[str, str]]) -> Callable:
        def respond(request: wrappers.Request) -> wrappers.Response:
            experiment = plugin_util.experiment_id(request.environ)
            snapshot = self._cache.snapshot(plugin_util.context(request.environ), experiment)
            content, content_type = answer(request, snapshot)
            return http_util.Respond(request, content, content_type)

        return _route(respond)


def _route(respond: Callable[[wrappers.Request], wrappers.Response]) -> Callable:
    """Return the application of a route. Whatever fails in it is answered with a sentence."""

    @wrappers.Request.application
    def app(request: wrappers.Request) -> wrappers.Response:
        try:
            if request.method not in ("GET", "HEAD"):
                raise RequestError(405, f"{request.method} is not allowed here; use GET.")
            return respond(request)
        except RequestError as error:
            return _error_response(request, error)
        except errors.PublicError:  # TensorBoard answers these itself
            raise
        except Exception as error:  # the boundary of a request
            logger.exception("tapescope: %s cannot be answered", request.path)
            reason = f"{type(error).__name__}: {quote(str(error))}"
            return _error_response(request, RequestError(500, f"This cannot be answered ({reason})."))

    return app


def answer_runs(request: wrappers.Request, snapshot: Snapshot) -> tuple[str, str]:
    """Return the summaries of all runs, or only `unchanged` if `known` is their version."""
    version, content = snapshot.summary(lambda: _summaries(snapshot))
    if request.args.get("known") == version:
        content = _json({"version": version, "unchanged": True})
    return content, "application/json"


def _summaries(snapshot: Snapshot) -> tuple[str, str]:
    """Return the version of the summaries, which changes with them, and the response."""
    colours = run_colours(snapshot.runs, snapshot.runs)
    summaries = overview.summarize_runs(snapshot)
    rows = [{**summary, "colour": colour} for summary, colour in zip(summaries, colours, strict=True)]
    version = hashlib.sha1(_json({"runs": rows}).encode(), usedforsecurity=False).hexdigest()[:16]
    columns = {column.name: column._asdict() for column in tables.COLUMNS.values()}
    return version, _json({"version": version, "runs": rows, "columns": columns})


def answer_run(request: wrappers.Request, snapshot: Snapshot, logdir: str | None = None) -> tuple[str, str]:
    """Return what can be selected for one run, its findings and its replayed steps."""
    query = parse_query(request.args, snapshot)
    name = query.runs[0]
    try:
        described = {**overview.describe_run(snapshot, name), "replays": read_replays(logdir, name)}
        return _json(described), "application/json"
    except Exception as error:  # the boundary of a run
        raise _damage(name, error) from error


def answer_findings(request: wrappers.Request, snapshot: Snapshot) -> tuple[str, str]:
    """Return the findings of all runs, the most severe first."""
    return _json({"findings": overview.all_findings(snapshot)}), "application/json"


def answer_view(request: wrappers.Request, snapshot: Snapshot) -> tuple[str, str]:
    """Return the panels of a view."""
    draw = VIEWS[parse_choice(request.args, "view", VIEWS, "flow", 404)]
    query = parse_query(request.args, snapshot)
    drawn = _draw(draw, snapshot, query)
    whole_until = min(snapshot.incomplete_after, default=None)
    if len(set(query.runs)) == 1:
        drawn = _mark_stretches(drawn, select_steps(snapshot, query), query)
    panels = [_finish(panel, query) for panel in drawn]
    content: dict[str, Any] = {"panels": [panel._asdict() for panel in panels]}
    if whole_until is not None:
        content["whole_until"] = whole_until
    return _json(content), FIGURE_TYPE


def _draw(draw: Callable[[Snapshot, Query], list[Panel]], snapshot: Snapshot, query: Query) -> list[Panel]:
    """Return the panels of a view without the runs that cannot be drawn, and a panel for each of those.

    Raises:
      RequestError: the parameters fit no run, or the only run cannot be drawn.
    """
    run = snapshot.runs[query.runs[0]]
    if draw is not compare.compare and run.tags.keys() <= {"status", "findings"}:  # Compare says it of each run
        empty = "No step of this run is recorded: it has only begun, its schedule chose none, or measuring failed."
        if run.problems:
            empty = f"No step of this run can be read: {'; '.join(run.problems[:3])}."
        return [Panel("empty", "No records", empty=empty, wide=True)]

    def draw_runs(*runs: str) -> list[Panel]:
        of_runs = query._replace(runs=runs)
        return draw(select_steps(snapshot, of_runs), of_runs)

    try:
        return draw_runs(*query.runs)
    except RequestError:
        raise
    except Exception as error:  # the boundary of a run: find the one that cannot be drawn
        if len(query.runs) == 1:
            raise _damage(query.runs[0], error) from error
    usable: list[str] = []
    panels: list[Panel] = []
    for run in query.runs:
        try:
            draw_runs(run, run)  # twice, because Compare draws nothing of one run
            usable.append(run)
        except Exception as error:  # the boundary of a run
            panels.append(Panel(f"damaged {run}", run, empty=str(_damage(run, error)), wide=True))
    return [*(draw_runs(*usable) if usable else []), *panels]


def _damage(run: str, error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    logger.warning("tapescope: the run %r cannot be drawn", run, exc_info=error)
    return RequestError(400, f"The run {quote(run)} cannot be drawn ({type(error).__name__}: {quote(str(error))}).")


def _mark_stretches(panels: list[Panel], snapshot: Snapshot, query: Query) -> list[Panel]:
    """Return the panels of one run with the stretches marked in which a finding made every step be measured."""
    found = closer.stretches(snapshot.table(query.runs[0], "step"))
    if not found:
        return panels
    marked = []
    for panel in panels:
        figure = panel.figure and basic.mark_stretches(panel.figure, found, query.dark)
        note = panel.note if figure is panel.figure else f"{panel.note} {CLOSER_NOTE}".strip()
        marked.append(panel._replace(figure=figure, note=note))
    return marked


def _finish(panel: Panel, query: Query) -> Panel:
    """Return a panel with the step marked that the query names, and only what is newer than it asks for."""
    figure = panel.figure
    if figure is not None and query.step is not None:
        figure = basic.mark_step(figure, query.step, query.dark)
    if figure is not None and query.since is not None:
        figure = updates.newer_part(figure, query.since)
    return panel._replace(figure=figure)


def answer_csv(request: wrappers.Request, snapshot: Snapshot) -> tuple[str, str]:
    """Return the numbers of one panel at all recorded steps."""
    draw = VIEWS[parse_choice(request.args, "view", VIEWS, "flow", 404)]
    query = parse_query(request.args, snapshot)._replace(max_steps=csv_export.EVERY_STEP, smoothing=0.0)
    panels = {panel.key: panel for panel in _draw(draw, snapshot.complete(), query)}
    panel = panels[parse_choice(request.args, "panel", panels, next(iter(panels)), 404)]
    if panel.figure is None:
        raise RequestError(404, f"{panel.title} has no numbers: {panel.empty}")
    return csv_export.csv(panel.figure), "text/csv"


def read_pages() -> dict[str, bytes]:
    """Return the files of the page by name. Only these are served, so no path leads elsewhere."""
    static = importlib.resources.files("tensorboard_plugin_tapescope").joinpath("static")
    return {file.name: file.read_bytes() for file in static.iterdir() if file.is_file()}


@functools.cache
def compressed_plotly() -> bytes:
    """Return the plotly.js of the installed plotly, gzipped, behind a hint for Chromium.

    With the hint (v8.dev/blog/explicit-compile-hints) Chromium compiles its functions in the background while it
    loads, which saves a third of the time until the first figure.
    """
    script = pkgutil.get_data("plotly", "package_data/plotly.min.js")
    if script is None:
        raise RequestError(404, "The installed plotly has no plotly.min.js: pip install --force-reinstall plotly")
    return gzip.compress(b"//# allFunctionsCalledOnLoad\n" + script, 5, mtime=0)


def _json(content: dict) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def _error_response(request: wrappers.Request, error: RequestError) -> wrappers.Response:
    return http_util.Respond(request, {"error": str(error)}, "application/json", code=error.code)
