"""The demo: three networks trained on handwritten digits in sequence, with TensorBoard live from the start.

python -m tapescope_trainers.demo runs/demo
"""

import os
import sys
from collections.abc import Sequence

from tapescope_trainers import flags, serve, train
from tapescope_trainers.flags import Options
from tapescope_trainers.training import signals

FLAGS = ("--optimizer=sgd", "--learning_rate=1", "--seed=3", "--steps=12000", "--resume=never")
"""With these, output units of `sigmoid_relu` die and stay dead. With most others its loss soon becomes NaN: if all ten
outputs of an example are 0, the cross-entropy divides 0 by 0."""
ABOUT = {
    "relu_sigmoid": "hidden ReLU, sigmoid output",
    "sigmoid_relu": "hidden sigmoid, ReLU output; expect it to fail, and the tab to show where",
    "parallel_branches": "a ReLU and a sigmoid branch, softmax output",
}

ONE_DEVICE = ("default", "one_device")


def main() -> None:
    """Train the networks; the exit codes are those of `tapescope-train`."""
    if flags.HELP & set(sys.argv[1:2]):
        print(__doc__)
        return
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("usage: python -m tapescope_trainers.demo LOGDIR [FLAGS of tapescope-train]", file=sys.stderr)
        sys.exit(train.EXIT_BAD_INPUT)
    train.start(run, parse)


def parse(argv: list[str]) -> list[Options]:
    """Return the command lines of all networks."""
    program, logdir, *more = argv
    networks = [
        train.parse_flags([program, f"--preset={preset}", f"--logdir={os.path.join(logdir, preset)}", *FLAGS, *more])
        for preset in ABOUT
    ]
    strategy = networks[0].strategy
    if strategy not in ONE_DEVICE:  # two of the others in one process get the same keys for their collectives
        print(f"--strategy={strategy} is not for the demo: use tapescope-train --strategy={strategy}", file=sys.stderr)
        sys.exit(train.EXIT_BAD_INPUT)
    return networks


def run(networks: Sequence[Options]) -> None:
    """Train the networks one after the other in this process: TensorFlow takes longer to start than one of them."""
    logdir = os.path.dirname(networks[0].logdir)
    with signals.catch() as received, serve.tensorboard(logdir) as address:
        print(f"TensorBoard: {address}  Open it and choose Gradients; it updates during the training.", flush=True)
        for number, (options, (name, about)) in enumerate(zip(networks, ABOUT.items(), strict=True), 1):
            print(f"\nNetwork {number} of {len(networks)}, {name}: {about}", flush=True)
            train.run(options, received)
            if received:
                return
        print(f"\nTo see the runs again: tensorboard --logdir {logdir}", flush=True)
        serve.wait_for_signal(address, received)


if __name__ == "__main__":
    main()
