"""Write the golden file of the present schema version. What was released never changes, so none is overwritten."""

import pathlib
import sys

from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec

from tensorboard_plugin_tapescope import metadata


def main() -> None:
    """Write the run of this version."""
    directory = pathlib.Path(__file__).parent / f"schema_{metadata.SCHEMA}"
    if directory.exists():
        sys.exit(f"{directory} exists already; a released file must not change. Raise metadata.SCHEMA first")
    spec = Spec(depth=2, units=3, replicas=2, findings=(synthetic.finding(),), added_layers=1)
    synthetic.write(directory, spec, range(0, 30, 10))
    (file,) = directory.iterdir()
    file.rename(directory / "events.out.tfevents.golden.v2")


main()
