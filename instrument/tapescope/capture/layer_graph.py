"""The layers that feed each layer, found in the traced graph."""

from collections.abc import Mapping, Sequence
from typing import Any

from tapescope.capture.layer_hooks import LayerCall


def find_sources(calls: Sequence[LayerCall]) -> tuple[tuple[int, ...], ...]:
    """Return for each call the indices of the calls that feed it, with no other measured output in between.

    The graph is followed backwards from the call's input. Eager tensors have no graph: there each call is taken to
    follow the one before.
    """
    if any(hasattr(call.a, "numpy") for call in calls):
        return tuple((i - 1,) if i else () for i in range(len(calls)))
    index_of_output = {call.a.ref(): i for i, call in enumerate(calls)}
    return tuple(_sources_of_call(call, i, index_of_output) for i, call in enumerate(calls))


def _sources_of_call(call: LayerCall, index: int, index_of_output: Mapping[Any, int]) -> tuple[int, ...]:
    start = call.a if call.input is None else call.input
    waiting = [start]
    seen = {start.ref()}
    sources = set()
    while waiting:
        tensor = waiting.pop()
        source = index_of_output.get(tensor.ref(), index)
        if source != index:
            sources.add(source)
            continue
        for op_input in tensor.op.inputs:
            if op_input.ref() not in seen:
                seen.add(op_input.ref())
                waiting.append(op_input)
    return tuple(sorted(sources))
