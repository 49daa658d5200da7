"""Several workers: how they find each other, agree, train as one device does, and end when one is lost."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tapescope
from tapescope_trainers import cluster, link, resume, strategy
from tapescope_trainers.cluster import Cluster

make = strategy.make  # before conftest.py replaces it
TENSORFLOWS_OWN = re.compile(r"WARNING: All log|[IWE]\d{4} ")
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
    chief.tell(resume=40)
    assert [one.hear("resume", 10) for one in others] == [40] * 3
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
            who.hear("resume", 10)
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


@contextlib.contextmanager
def workers(logdir: Path, where: Sequence[str], *arguments: str, only: int | None = None) -> Iterator[list]:
    """Processes that are all gone at the end, whatever happens."""
    processes = []
    try:
        for index in range(len(where)) if only is None else [only]:
            command = [
                sys.executable,
                "-m",
                "tapescope_trainers.train",
                f"--logdir={logdir}",
                "--strategy=multi_worker",
            ]
            environment = os.environ | {"TF_CONFIG": Cluster(tuple(where), index).tf_config()}
            pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            processes.append(subprocess.Popen([*command, *arguments], env=environment, text=True, **pipes))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=30)


def said(process: subprocess.Popen, seconds: float = 150) -> list[str]:
    """Its lines, without TensorFlow's."""
    return [line for line in process.communicate(timeout=seconds)[1].splitlines() if not TENSORFLOWS_OWN.match(line)]


def weights(logdir: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(resume.folder(str(logdir))))
    names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE") and "save_counter" not in n]
    return {name: reader.get_tensor(name) for name in names}


ARGUMENTS = (
    *("--preset=cnn", "--depth=2", "--width=8", "--steps=120", "--measure_every=4", "--checkpoint_every=20"),
    *("--validate_every=50", "--clip_norm=0.1", "--window_examples=256"),
)
TIMES_AND_REPLICAS = {"step_ms", "measure_ms", "noise_scale", "noise_scale_total", "unit_state"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training on one device."""
    logdir = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "tapescope_trainers.train", f"--logdir={logdir}", *ARGUMENTS]
    subprocess.run(command, check=True, capture_output=True, timeout=150)
    return logdir


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_workers_have_the_readings_and_the_weights_of_one_device(alone, tmp_path, count):
    with workers(tmp_path, addresses(count), *ARGUMENTS) as processes:
        for process in processes:
            said(process)
        assert [process.returncode for process in processes] == [0] * count
    assert len([name for name in os.listdir(tmp_path) if "tfevents" in name]) == 1  # the chief's
    run, one = tapescope.Run(tmp_path), tapescope.Run(alone)
    assert run.status["replicas"] == count
    assert run["replica_norm"].shape == (30, count, len(run.variables))
    assert np.isfinite(run["replica_norm"]).all()
    assert np.isfinite(run["noise_scale_total"]).all()
    assert run.steps.tolist() == one.steps.tolist() == list(range(0, 120, 4))
    for column in set(one.columns) - TIMES_AND_REPLICAS - {"gradient_histogram", "activation_histogram"}:
        np.testing.assert_allclose(run[column], one[column], rtol=1e-3, atol=1e-4, err_msg=column)
    found = weights(tmp_path)
    for name, value in weights(alone).items():
        assert np.linalg.norm(found[name] - value) <= 1e-4 * np.linalg.norm(value) + 1e-7, name


@pytest.mark.slow
def test_a_worker_is_lost_and_the_cluster_started_again_goes_on(tmp_path):
    arguments = (*ARGUMENTS, "--steps=600")
    for name, kill in (("whole", None), ("cut", 1)):
        logdir = tmp_path / name
        if kill is not None:
            with workers(logdir, where := addresses(2), *arguments) as processes:
                end = time.monotonic() + 120
                while not (logdir / "checkpoints" / "ckpt-60.index").exists():
                    assert time.monotonic() < end
                    time.sleep(0.05)
                processes[kill].kill()
                start = time.monotonic()
                lines = said(processes[0])
                assert time.monotonic() - start < 10
                assert processes[0].returncode == 3
                assert lines[-1] == (
                    f"tapescope-train: worker 1 ({where[1]}) is lost; start all workers again to go on"
                ), lines
            assert tapescope.Run(logdir).status["reason"] == f"worker 1 ({where[1]}) is lost"
        with workers(logdir, addresses(2), *arguments) as processes:
            for process in processes:
                said(process)
            assert [process.returncode for process in processes] == [0, 0]
    found, expected = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []
    run, whole = tapescope.Run(tmp_path / "cut"), tapescope.Run(tmp_path / "whole")
    assert run.steps.tolist() == list(range(0, 600, 4))
    for column in ("loss", "gradient_norm", "replica_cosine", "units_dead"):
        np.testing.assert_array_equal(run[column], whole[column])


@pytest.mark.slow
def test_sigterm_to_one_worker_ends_all_at_one_step(tmp_path):
    with workers(tmp_path, addresses(2), *ARGUMENTS, "--steps=1000000", "--checkpoint_every=1000000") as processes:
        end = time.monotonic() + 120
        while not (tmp_path / "checkpoints" / "ckpt-0.index").exists() or len(measured(tmp_path)) < 3:
            assert time.monotonic() < end
            time.sleep(0.2)
        processes[1].send_signal(signal.SIGTERM)
        lines = said(processes[0], 30)
        said(processes[1], 30)
        assert [process.returncode for process in processes] == [0, 0]
    done = re.search(r"ended by another worker after (\d+) steps", lines[-1])
    assert done, lines
    assert (tmp_path / "checkpoints" / f"ckpt-{done[1]}.index").exists()


def measured(logdir: Path) -> Sequence[int]:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return tapescope.Run(logdir).steps.tolist()
    return []


@pytest.mark.slow
def test_bad_input_of_the_chief_is_one_line_on_every_worker(tmp_path):
    with workers(tmp_path, addresses(2), "--batch_size=65") as processes:
        for process in processes:
            assert said(process) == [
                "tapescope-train: --batch_size=65 cannot be divided among 2 replicas: take 64, for example"
            ]
            assert process.returncode == 2
