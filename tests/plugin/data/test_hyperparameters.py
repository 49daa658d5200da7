"""Hyperparameters of runs, as TensorBoard's data provider lists them."""

from typing import NamedTuple

import pytest
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams import plugin_data_pb2

from tensorboard_plugin_tapescope.data.hyperparameters import read_hyperparameters


class Series(NamedTuple):
    """A time series of a tag."""

    plugin_content: bytes


class Provider:
    """A data provider with the hyperparameters of some runs."""

    def __init__(self, contents: dict[str, bytes]):
        self.contents = contents

    def list_tensors(self, ctx, *, experiment_id, plugin_name, run_tag_filter):
        assert plugin_name == "hparams"
        (tag,) = run_tag_filter.tags
        return {run: {tag: Series(content)} for run, content in self.contents.items()}


def content(**values) -> bytes:
    """Return what HParams writes as the description of a session."""
    data = plugin_data_pb2.HParamsPluginData()
    for name, value in values.items():
        kind = {bool: "bool_value", float: "number_value", str: "string_value"}[type(value)]
        setattr(data.session_start_info.hparams[name], kind, value)
    return hparams.create_summary_metadata(data).plugin_data.content


def read(contents: dict[str, bytes], *runs: str):
    return read_hyperparameters(Provider(contents), None, "e", runs)


def test_values_of_every_kind_are_read():
    assert read({"a": content(rate=0.5, name="x", flag=True)}, "a") == {"a": {"flag": True, "name": "x", "rate": 0.5}}


def test_a_run_without_any_has_none():
    assert read({"a": content(rate=0.5)}, "a", "b")["b"] == {}


@pytest.mark.parametrize("above", ["group/a/tapescope", "group/a", "group", "."])
def test_those_of_the_nearest_directory_count(above):
    contents = {above: content(rate=0.5), "other": content(rate=1.0)}
    assert read(contents, "group/a/tapescope") == {"group/a/tapescope": {"rate": 0.5}}


@pytest.mark.parametrize("damaged", [b"", b"\xff\xff", content()[:-1] + b"\x80"])
def test_damaged_ones_cost_only_themselves(damaged):
    assert read({"a": damaged, "b": content(rate=0.5)}, "a", "b") == {"a": {}, "b": {"rate": 0.5}}


def test_a_value_without_a_kind_is_text():
    data = plugin_data_pb2.HParamsPluginData()
    data.session_start_info.hparams["list"].list_value.values.add(number_value=1.0)
    written = hparams.create_summary_metadata(data).plugin_data.content
    assert "1" in read({"a": written}, "a")["a"]["list"]
