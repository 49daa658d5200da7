"""What PyTorch's tools of the same kind cost, each by its own ratio to its own plain step, on the MLP of `bench.cost`.

    python3 -m venv peers && peers/bin/pip install torch tensorboard wandb
    peers/bin/python bench/peers.py [--repeats=30]

Needs neither TensorFlow nor Tapescope. A tool that is not installed is named and left out.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time

import torch  # type: ignore[import-not-found]

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")


def network():
    torch.manual_seed(0)
    widths, parts = [784, 512, 512, 512, 512], []
    for n, m in itertools.pairwise(widths):
        parts += [torch.nn.Linear(n, m), torch.nn.ReLU()]
    model = torch.nn.Sequential(*parts, torch.nn.Linear(512, 10))
    return model, torch.optim.Adam(model.parameters(), 1e-4), torch.rand(128, 784), torch.randint(0, 10, (128,))


def program(after=lambda: None, model=None):
    net, optimizer, x, y = model or network()

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        after()

    return step


def plain():
    return program()


def summary_writer():
    """A histogram and a norm of every gradient and every ReLU's output, as in `bench.cost`'s tf.summary."""
    from torch.utils.tensorboard import SummaryWriter  # type: ignore[import-not-found]

    model = network()
    writer, seen = SummaryWriter(tempfile.mkdtemp()), {}
    for name, part in model[0].named_modules():
        if isinstance(part, torch.nn.ReLU):
            part.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.detach()}))

    def after():
        tensors = {**seen, **{name: p.grad for name, p in model[0].named_parameters()}}
        for name, tensor in tensors.items():
            writer.add_histogram(f"histogram/{name}", tensor)
            writer.add_scalar(f"norm/{name}", tensor.norm())

    return program(after, model)


def wandb_watch():
    """`wandb.watch(log="all", log_freq=1)`, offline: gradients and parameters."""
    import wandb  # type: ignore[import-not-found]

    model = network()
    run = wandb.init(dir=tempfile.mkdtemp(), mode="offline")
    run.watch(model[0], log="all", log_freq=1)
    return program(lambda: run.log({"x": 0}), model)


PEERS = {"SummaryWriter, every step": summary_writer, "wandb.watch, every step": wandb_watch}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    given = parser.parse_args()
    print(f"PyTorch {torch.__version__}, MLP 784-512x4-10, batch 128\n\n| tool | ms | ratio |\n|---|---|---|")
    for name, make in PEERS.items():
        try:
            runs = {"plain": plain(), name: make()}
        except ImportError as error:
            print(f"| {name} | not installed: {error.name} | |")
            continue
        times = {key: [] for key in runs}
        for n in range(given.repeats + 3):
            for key, run in runs.items():
                start = time.perf_counter()
                run()
                if n >= 3:
                    times[key].append(time.perf_counter() - start)
        middle = {key: statistics.median(t) for key, t in times.items()}
        print(f"| {name} | {1000 * middle[name]:.2f} | {middle[name] / middle['plain']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
