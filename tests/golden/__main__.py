"""Writes the golden file of the present schema version, unless there is one: what was released never changes."""

import pathlib
import sys

from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec

from tensorboard_plugin_tapescope import metadata


def main() -> None:
    """The run of this version."""
    directory = pathlib.Path(__file__).parent / f"schema_{metadata.SCHEMA}"
    if directory.exists():
        sys.exit(f"{directory} is there already, and what was released must stay as it is")
    spec = Spec(depth=2, units=3, replicas=2, findings=(synthetic.finding(),))
    synthetic.write(directory, spec, range(0, 30, 10))
    (file,) = directory.iterdir()
    file.rename(directory / "events.out.tfevents.golden.v2")


main()
