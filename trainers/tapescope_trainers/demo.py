"""The demo: three networks trained on handwritten digits in sequence, with TensorBoard live from the start.

python -m tapescope_trainers.demo runs/demo
"""

import os
import subprocess
import sys
import time

from tapescope_trainers import serve
from tapescope_trainers.flags import EXAMPLE_PRESETS
from tapescope_trainers.training import signals

FLAGS = ("--optimizer=sgd", "--learning_rate=1", "--seed=3", "--steps=12000", "--resume=never")
"""With these, output units of `sigmoid_relu` die and stay dead. With most others its loss soon becomes NaN: if all ten
outputs of an example are 0, the cross-entropy divides 0 by 0."""
ABOUT = {
    "relu_sigmoid": "hidden ReLU, sigmoid output",
    "sigmoid_relu": "hidden sigmoid, ReLU output; expect it to fail, and the tab to show where",
    "parallel_branches": "a ReLU and a sigmoid branch, softmax output",
}


def main() -> int:
    """Train the networks and return the exit code: 0, or that of the training that failed."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("usage: python -m tapescope_trainers.demo LOGDIR [FLAGS of tapescope-train]", file=sys.stderr)
        return 2
    logdir = sys.argv[1]
    more = sys.argv[2:]
    with signals.catch() as received, serve.tensorboard(logdir) as address:
        print(f"TensorBoard: {address}  Open it and choose Gradients; it updates during the training.", flush=True)
        for number, preset in enumerate(EXAMPLE_PRESETS, 1):
            print(f"\nNetwork {number} of {len(EXAMPLE_PRESETS)}, {preset}: {ABOUT[preset]}", flush=True)
            code = _train([f"--preset={preset}", f"--logdir={os.path.join(logdir, preset)}", *FLAGS, *more], received)
            if code or received:
                return code
        print(f"\nTo see the runs again: tensorboard --logdir {logdir}", flush=True)
        serve.wait_for_signal(address, received)
    return 0


def _train(arguments: list[str], received: list[str]) -> int:
    """Run `tapescope-train`, pass the first signal on to it, and return its exit code."""
    command = [sys.executable, "-m", "tapescope_trainers.train", *arguments]
    # In a session of its own, or Ctrl-C in a terminal would reach it twice.
    child = subprocess.Popen(command, start_new_session=True)
    terminated = False
    while child.poll() is None:
        if received and not terminated:
            child.terminate()
            terminated = True
        time.sleep(0.1)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
