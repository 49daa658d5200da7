"""The rules applied to a finished run: the same findings as while it trained."""

from collections.abc import Iterator

from tapescope.rules import engine
from tapescope.rules.finding import Finding
from tapescope.rules.record_view import Record, run_layout
from tapescope.storage.run import Run, check_runs, columns_by_name


def check(run: Run) -> tuple[Finding, ...]:
    """Return what the rules find in a run, in the order in which they found it."""
    check_runs(run)
    layout = run_layout(run.variables, run.layers, run.details)
    return engine.judge(layout, run.steps, columns_by_name(run)).findings


def records(run: Run) -> Iterator[Record]:
    """Yield the records of a run, as the recorder passed them to the rules."""
    return engine.split_records(run.steps, columns_by_name(run))
