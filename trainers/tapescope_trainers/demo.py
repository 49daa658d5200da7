"""The demo: three networks on real digits, one after another, with TensorBoard live from the start.

python -m tapescope_trainers.demo runs/demo
"""

import os
import subprocess
import sys
import time

from tapescope_trainers import serve
from tapescope_trainers.flags import GIVEN_PRESETS
from tapescope_trainers.training import signals

FLAGS = ("--optimizer=sgd", "--learning_rate=1", "--seed=3", "--steps=4000", "--measure_every=20", "--resume=never")
"""With these, output units of `sigmoid_relu` die and stay dead. With most others its loss soon becomes NaN: where
all ten outputs of an example are 0, the cross-entropy divides 0 by 0."""


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("usage: python -m tapescope_trainers.demo LOGDIR [FLAGS of tapescope-train]", file=sys.stderr)
        return 2
    logdir, more = sys.argv[1], sys.argv[2:]
    with signals.caught() as names, serve.tensorboard(logdir) as address:
        print(f"TensorBoard: {address}  (it updates while the networks train)", flush=True)
        for preset in GIVEN_PRESETS:
            print(f"{preset}:", flush=True)
            code = _train([f"--preset={preset}", f"--logdir={os.path.join(logdir, preset)}", *FLAGS, *more], names)
            if code or names:
                return code
        serve.stay(address, names)
    return 0


def _train(arguments: list[str], names: list[str]) -> int:
    """Runs `tapescope-train`; a signal that reaches this program is handed on, and the training ends cleanly."""
    command = [sys.executable, "-m", "tapescope_trainers.train", *arguments]
    # A session of its own, or Ctrl-C in a terminal would reach it twice.
    child = subprocess.Popen(command, start_new_session=True)
    told = False
    while child.poll() is None:
        if names and not told:
            child.terminate()
            told = True
        time.sleep(0.1)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
