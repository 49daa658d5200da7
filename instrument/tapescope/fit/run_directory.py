"""The directory of a fit whose Monitor was given none, and how to look at what is recorded in it."""

import os
import re
import sys
import time

PARENT = "runs"
"""Directory of such runs, in the working directory."""


def make_directory(name: str) -> str:
    """Make a new directory for a run of a model, and return its absolute path.

    Its name has the time to the second. Several programs that begin at the same time get different ones.

    Args:
      name: of the model.

    Raises:
      OSError: it cannot be made.
    """
    os.makedirs(PARENT, exist_ok=True)
    safe_name = re.sub(r"[^\w.-]+", "_", name)[:60]
    base = f"{safe_name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    number = 1
    while True:
        path = os.path.abspath(os.path.join(PARENT, base if number == 1 else f"{base}_{number}"))
        try:
            os.mkdir(path)
        except FileExistsError:
            number += 1
        else:
            return path


def in_notebook() -> bool:
    """Return whether the program runs in a kernel: of Jupyter, VS Code, Colab or Kaggle."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def how_to_look(path: str) -> str:
    """Return the lines that say where a run is recorded and how to look at it.

    Args:
      path: absolute path of a directory that `make_directory` has made.
    """
    parent, name = os.path.split(path)
    parent = os.path.relpath(parent)
    run = os.path.join(parent, name)
    if in_notebook():
        tab = f"%load_ext tensorboard\n  %tensorboard --logdir {parent}"
    else:
        tab = f"tensorboard --logdir {parent}"
    return (
        f"tapescope: this fit is recorded in {run}. To look at it, also while it trains:\n"
        f"  {tab}\n"
        f'  tapescope.Run("{run}").plot("flow_budget")'
    )
