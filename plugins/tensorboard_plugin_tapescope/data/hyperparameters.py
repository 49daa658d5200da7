"""Hyperparameters of runs, from where TensorBoard's HParams tab has them."""

import logging
from typing import Any

from tensorboard import errors
from tensorboard.data import provider
from tensorboard.plugins.hparams import metadata as hparams

from tensorboard_plugin_tapescope.series.hyperparameters import Settings

logger = logging.getLogger(__name__)


def read_hyperparameters(data_provider: Any, ctx: Any, experiment: str, runs: tuple[str, ...]) -> dict[str, Settings]:
    """Return the hyperparameters of each run; empty for a run without any, or whose record of them is damaged.

    They are those that `Recorder.hparams` or TensorBoard's `hp.hparams` wrote to the run's directory, or else to the
    nearest directory above it.
    """
    try:
        listed = data_provider.list_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=hparams.PLUGIN_NAME,
            run_tag_filter=provider.RunTagFilter(tags=[hparams.SESSION_START_INFO_TAG]),
        )
    except errors.PublicError:  # TensorBoard answers these itself
        raise
    except Exception:  # the boundary of a listing
        logger.exception("tapescope: hyperparameters cannot be listed")
        return {run: {} for run in runs}
    tag = hparams.SESSION_START_INFO_TAG
    contents = {run: tags[tag].plugin_content for run, tags in listed.items() if tag in tags}
    return {run: _nearest(run, contents) for run in runs}


def _nearest(run: str, contents: dict[str, bytes]) -> Settings:
    parts = run.split("/")
    above = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    content = next((contents[name] for name in [*above, "."] if name in contents), None)
    if content is None:
        return {}
    try:
        session = hparams.parse_session_start_info_plugin_data(content)
    except Exception:  # the boundary of a description: a file can hold anything
        logger.warning("tapescope: the hyperparameters of the run %r cannot be read", run, exc_info=True)
        return {}
    return {name: _plain(value) for name, value in sorted(session.hparams.items())}


def _plain(value: Any) -> bool | float | str:
    kind = value.WhichOneof("kind")
    return getattr(value, kind) if kind in ("bool_value", "number_value", "string_value") else str(value).strip()
