"""Several workers: how they find each other, agree, train as one device does, and end when one is lost."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.testbed import processes
from scripts.testbed.processes import Trainer, newest, until, variables, workers

import tapescope
from tapescope_trainers.distributed import cluster, link, strategy
from tapescope_trainers.distributed.cluster import Cluster

make = strategy.make  # before conftest.py replaces it
FLAGS = {"batch_size": 64, "seed": 0}


def addresses(count: int) -> tuple[str, ...]:
    """Free ones on this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)


# How the cluster is found.


def test_tf_config_names_workers_and_this_one():
    text = json.dumps({"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}})
    found = cluster.parse(text)
    assert found == Cluster(("a:1", "b:2"), 1)
    assert not found.chief
    assert found.name(1) == "worker 1 (b:2)"
    assert cluster.parse(found.tf_config()) == found
    text = json.dumps({"cluster": {"worker": ["a:1"], "chief": ["c:1"]}, "task": {"type": "worker", "index": 0}})
    assert cluster.parse(text) == Cluster(("c:1", "a:1"), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--strategy=multi_worker needs TF_CONFIG in the environment, such as"),
        ("{", "is not understood .*: it must be like"),
        ("[]", "is not understood"),
        ('{"cluster": {"worker": ["a:1"]}}', "has no 'task'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "none of the .* count from 0"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "is not understood"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "'a' is not host:port"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "two workers have one"),
    ],
)
def test_a_tf_config_that_does_not_serve(text, message):
    with pytest.raises(ValueError, match=message):
        cluster.parse(text)


def test_slurm_tells_by_its_environment(monkeypatch):
    with pytest.raises(
        ValueError, match=r"--cluster=slurm: SLURM_PROCID not found .* start it inside a job, with srun"
    ):
        cluster.find("slurm")
    told = {"PROCID": "3", "STEP_NUM_TASKS": "4", "STEP_NODELIST": "gpu[07-08]", "STEP_TASKS_PER_NODE": "2(x2)"}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert cluster.find("slurm") == Cluster(("gpu07:8888", "gpu07:8889", "gpu08:8888", "gpu08:8889"), 3)


def test_kubernetes_says_what_it_needs():
    with pytest.raises(ValueError, match="needs --workers=N"):
        cluster.find("kubernetes")


def test_kubernetes_tells_the_addresses_of_the_pods(monkeypatch):
    """TensorFlow's resolver, with a stand-in for the API server."""
    asked: list[str] = []

    def pod(name: str, ip: str, phase: str = "Running") -> Any:
        status = types.SimpleNamespace(phase=phase, host_ip="10.0.0.1", pod_ip=ip)
        return types.SimpleNamespace(metadata=types.SimpleNamespace(name=name), status=status)

    class Api:
        def list_pod_for_all_namespaces(self, label_selector: str) -> Any:
            asked.append(label_selector)
            items = [pod("b", "10.1.0.4"), pod("a", "10.1.0.5", "Pending" if len(asked) == 1 else "Running")]
            return types.SimpleNamespace(items=items)

    fake = types.ModuleType("kubernetes")
    vars(fake).update(
        client=types.SimpleNamespace(CoreV1Api=Api), config=types.SimpleNamespace(load_incluster_config=lambda: None)
    )
    monkeypatch.setitem(sys.modules, "kubernetes", fake)
    monkeypatch.setenv("POD_IP", "10.1.0.5")
    assert cluster.find("kubernetes", 2) == Cluster(("10.1.0.4:8888", "10.1.0.5:8888"), 1)
    assert asked == ["app=tapescope-train"] * 2  # the first time one was not running yet
    with pytest.raises(ValueError, match=r"no 3 pods within 0 s: 2 pods of app=.* run: 10.1.0.4:8888, 10"):
        cluster.find("kubernetes", 3, patience_s=0)


# What the workers say to each other; threads here, no TensorFlow.


def joined(where: Sequence[str], flags: Sequence[dict], patience_s: float = 20) -> list[link.Link | str]:
    """What `join` gave or said on each of the workers for which there are flags; they start a little apart."""
    results: list[link.Link | str] = [""] * len(flags)

    def one(index: int) -> None:
        time.sleep(0.1 * ((index + 1) % 3))
        try:
            results[index] = link.join(Cluster(tuple(where), index), flags[index], patience_s)
        except ValueError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(flags)) if flags[i] is not None]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def links(count: int) -> list[link.Link]:
    made = joined(addresses(count), [FLAGS] * count)
    assert all(isinstance(one, link.Link) for one in made), made
    return [one for one in made if isinstance(one, link.Link)]


def test_the_chiefs_word_reaches_all_and_an_end_is_no_loss():
    chief, *others = links(4)
    lost: list[str] = []
    for one in (chief, *others):
        one.on_loss(lost.append)
    chief.send(resume=40)
    assert [one.receive("resume", 10) for one in others] == [40] * 3
    for one in (*others, chief):
        one.end()
    assert lost == []


def test_flags_that_differ_are_named_on_every_worker():
    told = joined(addresses(3), [FLAGS, FLAGS, FLAGS | {"seed": 7}])
    assert told == ["--seed is 0 on worker 0 and 7 on worker 2: start all workers with the same flags"] * 3 or (
        told[0] == told[2] and "--seed" in str(told[0]) and "worker 1 (" in str(told[1])
    )


def test_a_worker_that_does_not_come_is_named_on_every_worker():
    where = addresses(3)
    start = time.monotonic()
    told = joined(where, [FLAGS, FLAGS], patience_s=2)
    assert told == [f"worker 2 ({where[2]}) did not come within 2 s: see whether it was started"] * 2
    assert time.monotonic() - start < 10


def test_a_chief_that_cannot_be_reached_is_named():
    where = addresses(2)
    with pytest.raises(ValueError, match=rf"the chief, worker 0 \({where[0]}\), cannot be reached within 1 s"):
        link.join(Cluster(where, 1), FLAGS, 1)


def test_a_stranger_at_the_chiefs_port_is_no_worker():
    where = addresses(2)
    port = int(where[0].rpartition(":")[2])

    def knock() -> None:
        for _ in range(50):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as s:
                s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return
            time.sleep(0.02)

    thread = threading.Thread(target=knock)
    thread.start()
    made = joined(where, [FLAGS, FLAGS])
    thread.join()
    for one in reversed(made):
        assert isinstance(one, link.Link)
        one.end()


@pytest.mark.parametrize("gone", [0, 2])
def test_a_lost_worker_is_named_by_all_the_others(gone):
    made = links(4)
    lost = {i: threading.Event() for i in range(4) if i != gone}
    lines: dict[int, str] = {}
    for i in lost:
        made[i].on_loss(lambda line, i=i: (lines.update({i: line}), lost[i].set()))
    made[gone]._ended = True
    for one in made[gone]._sockets.values():  # as the kernel does for a process that dies
        one.shutdown(socket.SHUT_RDWR)
        one.close()
    assert all(event.wait(5) for event in lost.values())
    for one in made:
        one._close()
    assert set(lines.values()) == {f"{made[0].cluster.name(gone)} is lost"}


def test_an_error_of_one_is_the_end_of_all():
    chief, one, other = links(3)
    one.end("worker 1 cannot read its data")
    for who in (chief, other):
        with pytest.raises(ValueError, match="worker 1 cannot read its data"):
            who.receive("resume", 10)
        who._close()


# Strategies that need no second machine to be refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("multi_worker", "cpu:2", "auto", Cluster(("a:1",), 0)), "a worker has one replica on processors"),
        (("mirrored", "cpu:2", "nccl"), "--collective=nccl works between GPUs, and none is used here"),
        (("mirrored", "cpu:2", "ring"), "--collective=ring is between machines"),
    ],
)
def test_strategies_that_do_not_serve(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


# Real workers.


ARGUMENTS = (
    *("--preset=cnn", "--depth=2", "--width=8", "--steps=80", "--measure_every=4", "--checkpoint_every=20"),
    *("--validate_every=50", "--clip_norm=0.1", "--window_examples=256", "--noprogress"),
)
TIMES_AND_REPLICAS = {"step_ms", "measure_ms", "noise_scale", "noise_scale_total", "unit_state"}
LONG = pytest.mark.timeout(3 * processes.PATIENCE_S)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training on one device."""
    logdir = tmp_path_factory.mktemp("alone")
    with Trainer(logdir, *ARGUMENTS) as trainer:
        trainer.finish()
    return logdir


@LONG
@pytest.mark.slow
@pytest.mark.parametrize(("count", "real"), [(2, True), (4, False)])
def test_workers_have_the_readings_and_the_weights_of_one_device(alone, tmp_path, count, real):
    with workers(tmp_path, addresses(count), *ARGUMENTS, real=real) as trainers:
        for trainer in trainers:
            trainer.finish()
    assert len([name for name in os.listdir(tmp_path) if "tfevents" in name]) == 1  # the chief's
    run, one = tapescope.Run(tmp_path), tapescope.Run(alone)
    assert run.status["replicas"] == count
    assert run["replica_norm"].shape == (20, count, len(run.variables))
    assert np.isfinite(run["replica_norm"]).all()
    assert np.isfinite(run["noise_scale_total"]).all()
    assert run.steps.tolist() == one.steps.tolist() == list(range(0, 80, 4))
    for column in set(one.columns) - TIMES_AND_REPLICAS - {"gradient_histogram", "activation_histogram"}:
        np.testing.assert_allclose(run[column], one[column], rtol=1e-3, atol=1e-4, err_msg=column)
    found = variables(tmp_path)
    for name, value in variables(alone).items():
        assert np.linalg.norm(found[name] - value) <= 1e-4 * np.linalg.norm(value) + 1e-7, name


@LONG
@pytest.mark.slow
def test_a_worker_is_lost_and_the_cluster_started_again_goes_on(tmp_path):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    with workers(cut, where := addresses(2), *ARGUMENTS, "--steps=1000000") as (chief, other):
        until(chief, lambda: newest(cut) >= 40)
        other.send(signal.SIGKILL)
        start = time.monotonic()
        lines = chief.wait()
        assert time.monotonic() - start < 30  # on a busy machine; it takes one or two
        assert chief.code == 3
        assert lines[-1] == f"tapescope-train: worker 1 ({where[1]}) is lost; start all workers again to go on", lines
    assert tapescope.Run(cut).status["reason"] == f"worker 1 ({where[1]}) is lost"
    steps = newest(cut) + 50  # however far it came
    for logdir in (cut, whole):
        with workers(logdir, addresses(2), *ARGUMENTS, f"--steps={steps}") as trainers:
            for trainer in trainers:
                trainer.finish()
    found, expected = variables(cut), variables(whole)
    assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []
    run, other_run = tapescope.Run(cut), tapescope.Run(whole)
    assert run.steps.tolist() == list(range(0, steps, 4))
    for column in ("loss", "gradient_norm", "replica_cosine", "units_dead"):
        np.testing.assert_array_equal(run[column], other_run[column])


@LONG
@pytest.mark.slow
def test_sigterm_to_one_worker_ends_all_at_one_step(tmp_path):
    arguments = (*ARGUMENTS, "--steps=1000000", "--checkpoint_every=1000000")
    with workers(tmp_path, addresses(2), *arguments) as (chief, other):
        until(chief, lambda: (tmp_path / "checkpoints" / "ckpt-0.index").exists() and len(measured(tmp_path)) > 2)
        other.send(signal.SIGTERM)
        lines = chief.finish()
        other.finish()
    done = re.search(r"ended by another worker after (\d+) steps", lines[-1])
    assert done, lines
    assert (tmp_path / "checkpoints" / f"ckpt-{done[1]}.index").exists()


def measured(logdir: Path) -> Sequence[int]:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return tapescope.Run(logdir).steps.tolist()
    return []


@LONG
@pytest.mark.slow
def test_bad_input_of_the_chief_is_one_line_on_every_worker(tmp_path):
    with workers(tmp_path, addresses(2), "--batch_size=65") as trainers:
        for trainer in trainers:
            line = "--batch_size=65 cannot be divided among 2 replicas: take 64, for example"
            assert trainer.wait() == [f"tapescope-train: {line}"]
            assert trainer.code == 2
