"""What PyTorch's tools of the same kind cost, each by its own ratio to its own plain step, on the MLP of `bench.cost`.

    python3 -m venv peers
    peers/bin/pip install torch tensorboard wandb trainscope torch-module-monitor cockpit-for-pytorch 'setuptools<81'
    peers/bin/python bench/peers.py [--repeats=30] [--page=docs/peers.md]

Needs neither TensorFlow nor Tapescope. Each tool is used as its own documentation says, every step; where it must be
called between the backward pass and the optimizer's step, it is. A tool that is not installed is named and left out.
"""

import argparse
import importlib.metadata
import itertools
import os
import pathlib
import platform
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


def program(model, before=lambda step: None, after=lambda step, loss: None, last=lambda step: None):
    """A training step, and what is called before it, between the backward pass and the optimizer, and after it."""
    net, optimizer, x, y = model
    steps = itertools.count()

    def step():
        n = next(steps)
        before(n)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        after(n, loss)
        optimizer.step()
        last(n)

    return step


def summary_writer(model):
    """a histogram and a norm of every gradient and of every ReLU's output"""
    from torch.utils.tensorboard import SummaryWriter  # type: ignore[import-not-found]

    writer, seen = SummaryWriter(tempfile.mkdtemp()), {}
    for name, part in model[0].named_modules():
        if isinstance(part, torch.nn.ReLU):
            part.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.detach()}))

    def after(n, loss):
        tensors = {**seen, **{name: p.grad for name, p in model[0].named_parameters()}}
        for name, tensor in tensors.items():
            writer.add_histogram(f"histogram/{name}", tensor, n)
            writer.add_scalar(f"norm/{name}", tensor.norm(), n)

    return program(model, after=after)


def wandb_watch(model):
    """`wandb.watch(log="all", log_freq=1)`, offline: histograms of gradients and parameters"""
    import wandb  # type: ignore[import-not-found]

    run = wandb.init(dir=tempfile.mkdtemp(), mode="offline")
    run.watch(model[0], log="all", log_freq=1)
    return program(model, last=lambda n: run.log({"step": n}))


def trainscope(model):
    """`TrainScope(...).attach()`, as it comes: norms and extremes of gradients, weights and activations by layer"""
    from trainscope import TrainScope  # type: ignore[import-not-found]
    from trainscope.core.config import TrainScopeConfig  # type: ignore[import-not-found]

    os.chdir(tempfile.mkdtemp())  # it writes to ./trainscope_runs
    scope = TrainScope(model[0], model[1], config=TrainScopeConfig()).attach()
    return program(model, after=lambda n, loss: scope.step(loss.item(), batch_index=n))


def module_monitor(model):
    """mean and norm of activations, norms of parameters and gradients; written nowhere"""
    from torch_module_monitor import ModuleMonitor  # type: ignore[import-not-found]

    monitor = ModuleMonitor(monitor_step_fn=lambda step: True)
    monitor.set_module(model[0])
    monitor.add_activation_metric("mean", lambda x: x.mean())
    monitor.add_activation_metric("norm", lambda x: x.norm())
    monitor.add_parameter_metric("norm", lambda x: x.norm())
    monitor.add_gradient_metric("norm", lambda x: x.norm())

    def after(n, loss):
        monitor.monitor_parameters()
        monitor.monitor_gradients()

    def last(n):
        monitor.end_step()
        monitor.get_step_metrics()

    return program(model, monitor.begin_step, after, last)


def cockpit(model):
    """its cheapest configuration, `economy`: gradient norms and histogram, tests of noise by BackPACK, step size"""
    from backpack import extend  # type: ignore[import-not-found]
    from cockpit import Cockpit  # type: ignore[import-not-found]
    from cockpit.utils.configuration import configuration  # type: ignore[import-not-found]

    net, optimizer, x, y = model
    net, each = extend(net), torch.nn.CrossEntropyLoss(reduction="none")
    mean = extend(torch.nn.CrossEntropyLoss())
    dials, steps = Cockpit(net.parameters(), quantities=configuration("economy")), itertools.count()

    def step():
        n = next(steps)
        optimizer.zero_grad()
        outputs = net(x)
        loss, losses = mean(outputs, y), each(outputs, y)
        about = {"batch_size": len(x), "individual_losses": losses, "loss": loss, "optimizer": optimizer}
        with dials(n, info=about):
            loss.backward(create_graph=dials.create_graph(n))
        optimizer.step()

    return step


PACKAGES = {"SummaryWriter": "torch", "Cockpit": "cockpit-for-pytorch"}
"""Where the package has another name."""
PEERS = {
    "SummaryWriter": summary_writer,
    "wandb": wandb_watch,
    "TrainScope": trainscope,
    "torch-module-monitor": module_monitor,
    "Cockpit": cockpit,
}


def measured(make, repeats):
    """Median ms a step, and the median ratio to a plain step of the same network, interleaved."""
    runs = {"plain": program(network()), "with": make(network())}
    times = {key: [] for key in runs}
    for n in range(repeats + 3):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            if n >= 3:
                times[key].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(times["plain"], times["with"], strict=True)]
    return 1000 * statistics.median(times["with"]), statistics.median(ratios)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--page", type=pathlib.Path, help="write the table to this file too")
    given = parser.parse_args()
    page, rows = given.page and given.page.absolute(), []
    for name, make in PEERS.items():
        try:
            milliseconds, ratio = measured(make, given.repeats)
            version = importlib.metadata.version(PACKAGES.get(name, name))
            rows.append(f"| {name} {version} | {make.__doc__} | {milliseconds:.1f} | {ratio:.2f} |")
        except ImportError as error:
            rows.append(f"| {name} | not installed: {error.name} | | |")
        print(rows[-1], flush=True)
    head = "| tool | what it takes, every step | ms a step | ratio to the plain step |\n| --- | --- | --- | --- |"
    machine = platform.processor() or platform.machine()
    words = f"""# What other tools cost

Made by `bench/peers.py`, which says what to install: PyTorch's tools on the MLP of [What measuring costs](overhead.md)
(784-512x4-10, batch 128, Adam), each by its own ratio to its own plain step, interleaved. They do not take the same, so
this is what a user pays, and not a race.
PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {machine}.

"""
    if page:
        page.write_text(words + "\n".join([head, *rows]) + "\n")


if __name__ == "__main__":
    main()
