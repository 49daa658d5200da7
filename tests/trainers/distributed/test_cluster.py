"""Workers: how they find each other, agree, train as one device does, and end when one is lost."""

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.testbed import processes
from scripts.testbed.processes import Trainer, newest, until, variables, workers

import tapescope
from tapescope_trainers import train
from tapescope_trainers.distributed import cluster, link
from tapescope_trainers.distributed.cluster import Cluster
from tests.trainers import trainings

FLAGS = {"batch_size": 64, "seed": 0}


def free_addresses(count: int) -> tuple[str, ...]:
    """Return addresses on this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)


# The cluster from TF_CONFIG, Slurm or Kubernetes.


TF_CONFIG = json.dumps({"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}})


def test_tf_config_has_the_workers_and_this_one():
    parsed = cluster.parse(TF_CONFIG)
    assert parsed == Cluster(("a:1", "b:2"), 1)
    assert not parsed.chief
    assert parsed.name(1) == "worker 1 (b:2)"


def test_tf_config_is_written_as_it_is_parsed():
    parsed = cluster.parse(TF_CONFIG)
    assert cluster.parse(parsed.tf_config()) == parsed


def test_a_chief_comes_before_the_workers():
    text = json.dumps({"cluster": {"worker": ["a:1"], "chief": ["c:1"]}, "task": {"type": "worker", "index": 0}})
    assert cluster.parse(text) == Cluster(("c:1", "a:1"), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--strategy=multi_worker needs TF_CONFIG in the environment, such as"),
        ("{", "cannot be parsed .*: it must be like"),
        ("[]", "cannot be parsed"),
        ('{"cluster": {"worker": ["a:1"]}}', "has no 'task'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "not one of the .* count from 0"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "cannot be parsed"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": true}}', "index true is not a whole"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0.5}}',
            "index 0.5 is not a whole",
        ),
        ('{"cluster": {"worker": ["a:0"]}, "task": {"type": "worker", "index": 0}}', "with a port from 1 to 65535"),
        ('{"cluster": {"worker": ["a:65536"]}, "task": {"type": "worker", "index": 0}}', "with a port from 1 to 65535"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "'a' is not host:port"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "have the same address"),
    ],
)
def test_a_malformed_tf_config_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        cluster.parse(text)


@pytest.mark.parametrize("source", ["slurm", "kubernetes"])
@pytest.mark.parametrize("port", ["", "0", "65536", "http"])
def test_a_port_that_is_none_is_refused_at_once(monkeypatch, source, port):
    monkeypatch.setenv("TAPESCOPE_PORT", port)
    with pytest.raises(ValueError, match="TAPESCOPE_PORT must be a port from 1 to 65535; got "):
        cluster.find(source, workers=2)


def test_slurm_needs_its_environment():
    with pytest.raises(ValueError, match=r"--cluster=slurm: SLURM_PROCID not found .* start it inside a job"):
        cluster.find("slurm")


def test_slurm_is_read_from_its_environment(monkeypatch):
    variables = {"PROCID": "3", "STEP_NUM_TASKS": "4", "STEP_NODELIST": "gpu[07-08]", "STEP_TASKS_PER_NODE": "2(x2)"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert cluster.find("slurm") == Cluster(("gpu07:8888", "gpu07:8889", "gpu08:8888", "gpu08:8889"), 3)


def test_kubernetes_needs_the_number_of_workers():
    with pytest.raises(ValueError, match="needs --workers=N"):
        cluster.find("kubernetes")


@pytest.fixture
def pod_requests(monkeypatch):
    """Replace the API server by two pods, of which one is pending at the first request; return the labels asked for."""
    labels: list[str] = []

    def pod(name: str, ip: str, phase: str = "Running") -> Any:
        status = types.SimpleNamespace(phase=phase, host_ip="10.0.0.1", pod_ip=ip)
        return types.SimpleNamespace(metadata=types.SimpleNamespace(name=name), status=status)

    class Api:
        def list_pod_for_all_namespaces(self, label_selector: str) -> Any:
            labels.append(label_selector)
            phase = "Pending" if len(labels) == 1 else "Running"
            return types.SimpleNamespace(items=[pod("b", "10.1.0.4"), pod("a", "10.1.0.5", phase)])

    kubernetes = types.ModuleType("kubernetes")
    vars(kubernetes).update(
        client=types.SimpleNamespace(CoreV1Api=Api), config=types.SimpleNamespace(load_incluster_config=lambda: None)
    )
    monkeypatch.setitem(sys.modules, "kubernetes", kubernetes)
    monkeypatch.setenv("POD_IP", "10.1.0.5")
    return labels


def test_kubernetes_waits_for_the_pods_and_uses_their_addresses(pod_requests):
    assert cluster.find("kubernetes", 2) == Cluster(("10.1.0.4:8888", "10.1.0.5:8888"), 1)
    assert pod_requests == ["app=tapescope-train"] * 2


def test_kubernetes_names_the_pods_if_there_are_too_few(pod_requests):
    pod_requests.append("an earlier request")
    with pytest.raises(ValueError, match=r"no 3 pods within 0 s: 2 pods of app=.* run: 10.1.0.4:8888, 10"):
        cluster.find("kubernetes", 3, patience_s=0)


# Messages between the workers, in threads and without TensorFlow.


def join_all(addresses: Sequence[str], flags: Sequence[dict], patience_s: float = 20) -> list[link.Link | str]:
    """Join as many workers as there are flags, started at different times.

    Returns:
        By worker its link, or the error.
    """
    results: list[link.Link | str] = [""] * len(flags)

    def join(index: int) -> None:
        time.sleep(0.1 * ((index + 1) % 3))
        try:
            results[index] = link.join(Cluster(tuple(addresses), index), flags[index], patience_s)
        except ValueError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=join, args=(index,)) for index in range(len(flags))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def make_links(count: int) -> list[link.Link]:
    joined = join_all(free_addresses(count), [FLAGS] * count)
    links = [one for one in joined if isinstance(one, link.Link)]
    assert len(links) == count, joined
    return links


def test_the_chiefs_message_reaches_all_workers():
    chief, *others = make_links(4)
    chief.send(resume=40)
    assert [other.receive("resume", 10) for other in others] == [40] * 3
    for one in (*others, chief):
        one.end()


def test_an_orderly_end_is_not_a_loss():
    chief, *others = make_links(4)
    losses: list[str] = []
    for one in (chief, *others):
        one.on_loss(losses.append)
    for one in (*others, chief):
        one.end()
    assert losses == []


def test_silence_of_the_chief_is_reported():
    chief, other = make_links(2)
    with pytest.raises(ValueError, match=r"no message from worker 0 \(.*\) for 0.1 s: check its log"):
        other.receive("resume", 0.1)
    for one in (other, chief):
        one.end()


def test_different_flags_are_named_on_both_workers():
    errors = join_all(free_addresses(2), [FLAGS, FLAGS | {"seed": 7}])
    assert errors == ["--seed is 0 on worker 0 and 7 on worker 1: start all workers with the same flags"] * 2


def test_a_missing_worker_is_named_on_every_worker():
    addresses = free_addresses(3)
    start = time.monotonic()
    errors = join_all(addresses, [FLAGS, FLAGS], patience_s=2)
    assert errors == [f"no connection from worker 2 ({addresses[2]}) within 2 s: was it started?"] * 2
    assert time.monotonic() - start < 10


def test_a_chief_that_cannot_be_reached_is_named():
    addresses = free_addresses(2)
    with pytest.raises(ValueError, match=rf"the chief, worker 0 \({addresses[0]}\), cannot be reached within 1 s"):
        link.join(Cluster(addresses, 1), FLAGS, 1)


def test_a_strange_client_at_the_chiefs_port_is_ignored():
    addresses = free_addresses(2)
    port = int(addresses[0].rpartition(":")[2])

    def send_http_request() -> None:
        for _ in range(50):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return
            time.sleep(0.02)

    thread = threading.Thread(target=send_http_request)
    thread.start()
    joined = join_all(addresses, [FLAGS, FLAGS])
    thread.join()
    links = [one for one in joined if isinstance(one, link.Link)]
    assert len(links) == 2, joined
    for one in reversed(links):
        one.end()


# Strangers at the chief's port.


def greeting_line(workers: Sequence[str], **changes: Any) -> bytes:
    greeting = {"index": 1, "addresses": list(workers), "flags": FLAGS} | changes
    return f"{json.dumps(greeting)}\n".encode()


def join_with_strangers(
    strangers: Callable[[Sequence[str], Callable], object], patience_s: float = 20, host="127.0.0.1"
):
    """Join two workers, the second one only after `strangers(addresses, connect)` has returned."""
    addresses = (
        free_addresses(2) if host == "127.0.0.1" else tuple(a.replace("127.0.0.1", host) for a in free_addresses(2))
    )
    joined: list[link.Link | str] = []

    def join(index: int) -> None:
        try:
            joined.append(link.join(Cluster(addresses, index), FLAGS, 20))
        except ValueError as error:
            joined.append(str(error))

    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            port = int(addresses[0].rpartition(":")[2])
            for _ in range(200):
                with contextlib.suppress(OSError):
                    return stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
                time.sleep(0.02)
            raise AssertionError("the chief does not listen")

        threads = [threading.Thread(target=join, args=(index,)) for index in (0, 1)]
        threads[0].start()
        strangers(addresses, connect)
        threads[1].start()
        for thread in threads:
            thread.join(60)
    for one in joined:
        if isinstance(one, link.Link):
            one._close()
    return joined


def is_joined(joined: Sequence[object]) -> bool:
    return len(joined) == 2 and all(isinstance(one, link.Link) for one in joined)


@pytest.mark.parametrize(
    "changes",
    [
        {"index": None},
        {"index": "1"},
        {"index": True},
        {"index": 1.0},
        {"index": -1},
        {"index": 99},
        {"index": 10**400},
        {"index": [1]},
        {"addresses": None},
        {"addresses": [1, 2]},
        {"addresses": {}},
        {"flags": None},
        {"flags": [1]},
        {"flags": "seed"},
    ],
    ids=str,
)
def test_an_odd_greeting_is_ignored(changes):
    assert is_joined(
        join_with_strangers(lambda addresses, connect: connect().sendall(greeting_line(addresses, **changes)))
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"null\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b"NaN\n",
        b"\x16\x03\x01\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
    ids=range(9),
)
def test_what_is_not_a_greeting_is_ignored(content):
    assert is_joined(join_with_strangers(lambda _, connect: connect().sendall(content)))


def test_silent_strangers_cost_no_time():
    start = time.monotonic()
    assert is_joined(join_with_strangers(lambda _, connect: [connect() for _ in range(300)]))
    assert time.monotonic() - start < 10


def test_silent_strangers_do_not_extend_the_patience():
    addresses = free_addresses(2)
    port = int(addresses[0].rpartition(":")[2])
    done = threading.Event()

    def connect_again_and_again() -> None:
        with contextlib.ExitStack() as stack:
            while not done.wait(0.1):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), 1)).sendall(b"x")

    thread = threading.Thread(target=connect_again_and_again)
    thread.start()
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"no connection from worker 1 .* within 2 s"):
        link.join(Cluster(addresses, 0), FLAGS, 2)
    assert time.monotonic() - start < 4
    done.set()
    thread.join()


def test_a_greeting_without_an_end_is_cut_off():
    sent = 0

    def send_much(_: object, connect: Callable) -> None:
        nonlocal sent
        connection = connect()
        with contextlib.suppress(OSError):
            for _ in range(200):
                sent += connection.send(b"x" * (1 << 20))

    assert is_joined(join_with_strangers(send_much))
    assert sent < 50 << 20


def test_two_workers_with_one_index_are_named():
    addresses = free_addresses(3)
    errors: list[str] = []

    def join(index: int) -> None:
        try:
            link.join(Cluster(addresses, index), FLAGS, 20)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=join, args=(index,)) for index in (0, 1, 1)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join(60)
    assert errors == [f"two workers have the index 1 of worker 1 ({addresses[1]}): give each its own"] * 3


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_worker_that_was_started_again_takes_its_place(order):
    addresses = free_addresses(3)
    ended = threading.Event()

    def come_and_go() -> None:
        port = int(addresses[0].rpartition(":")[2])
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(greeting_line(addresses))
                time.sleep(0.2)
                break
            time.sleep(0.02)
        ended.set()

    threading.Thread(target=come_and_go).start()
    chief: list[link.Link | str] = []
    thread = threading.Thread(target=lambda: chief.extend(join_all(addresses, [FLAGS])))
    thread.start()
    ended.wait(20)
    others = [
        threading.Thread(target=lambda i=i: chief.append(link.join(Cluster(addresses, i), FLAGS, 20))) for i in order
    ]
    for other in others:
        other.start()
        time.sleep(0.2)
    for other in (*others, thread):
        other.join(30)
    assert [type(one) for one in chief] == [link.Link] * 3, chief
    for one in chief:
        if isinstance(one, link.Link):
            one._close()


def test_a_flag_that_the_chief_does_not_have_is_named():
    errors = join_all(free_addresses(2), [FLAGS, FLAGS | {"new": 7}])
    assert errors == ["--new is None on worker 0 and 7 on worker 1: start all workers with the same flags"] * 2


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the machine has no IPv6")
def test_workers_meet_over_ipv6():
    assert is_joined(join_with_strangers(lambda *_: None, host="[::1]"))


@pytest.mark.parametrize("content", [b"x" * (3 << 20), b"5\n", b"[" * 100_000 + b"\n", b"\xff\n", b'{"lost": 5}\n'])
def test_what_is_not_a_message_is_a_loss(content):
    chief, other = make_links(2)
    lost = threading.Event()
    chief.on_loss(lambda _: lost.set())
    with contextlib.suppress(OSError):
        other._sockets[0].sendall(content)
    assert lost.wait(5)
    for one in (other, chief):
        one._close()


def test_all_wait_for_all():
    links = make_links(3)
    arrived: list[int] = []

    def wait(one: link.Link) -> None:
        one.wait_for_all()
        arrived.append(one.cluster.index)

    threads = [threading.Thread(target=wait, args=(one,)) for one in links]
    for thread in threads[:2]:
        thread.start()
    time.sleep(0.3)
    assert arrived == []
    threads[2].start()
    for thread in threads:
        thread.join(20)
    assert sorted(arrived) == [0, 1, 2]
    for one in reversed(links):
        one._close()


def test_a_worker_that_fails_before_the_others_arrive_is_named_on_all():
    chief, one, other = make_links(3)
    one.end("worker 1 cannot read its data")
    for worker in (chief, other):
        with pytest.raises(ValueError, match="worker 1 cannot read its data"):
            worker.wait_for_all()
        worker._close()


@pytest.mark.parametrize("gone", [0, 2])
def test_a_lost_worker_is_named_by_all_others(gone):
    links = make_links(4)
    lost = {index: threading.Event() for index in range(4) if index != gone}
    lines: dict[int, str] = {}
    for index in lost:
        links[index].on_loss(lambda line, index=index: (lines.update({index: line}), lost[index].set()))
    links[gone]._ended = True
    for connection in links[gone]._sockets.values():  # as the kernel does for a process that dies
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    assert all(event.wait(5) for event in lost.values())
    for one in links:
        one._close()
    assert set(lines.values()) == {f"{links[0].cluster.name(gone)} is lost"}


def test_an_error_of_one_worker_ends_all():
    chief, one, other = make_links(3)
    one.end("worker 1 cannot read its data")
    for worker in (chief, other):
        with pytest.raises(ValueError, match="worker 1 cannot read its data"):
            worker.receive("resume", 10)
        worker._close()


# Real workers.


ARGUMENTS = (
    "--preset=cnn",
    "--depth=2",
    "--width=8",
    "--steps=40",
    "--measure_every=4",
    "--checkpoint_every=20",
    "--validate_every=30",
    "--clip_norm=0.1",
    "--window_examples=256",
    "--noprogress",
)
NOT_COMPARED = {
    "step_ms",
    "measure_ms",
    "noise_scale",
    "noise_scale_total",
    "unit_state",
    "gradient_histogram",
    "activation_histogram",
}
"""Times, columns of several replicas only, and counts that may move to a neighbouring bin."""
LONG = pytest.mark.timeout(3 * processes.PATIENCE_S)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Train on one device."""
    logdir = tmp_path_factory.mktemp("one_device")
    with Trainer(logdir, *ARGUMENTS) as trainer:
        trainer.finish()
    return logdir


@LONG
@pytest.mark.process
@pytest.mark.parametrize(("count", "real"), [(2, True), (4, False)])
def test_workers_have_the_readings_and_the_weights_of_one_device(one_device, tmp_path, count, real):
    with workers(tmp_path, free_addresses(count), *ARGUMENTS, real=real) as trainers:
        for trainer in trainers:
            trainer.finish()
    assert len([name for name in os.listdir(tmp_path) if "tfevents" in name]) == 1  # the chief's
    run = tapescope.Run(tmp_path)
    expected = tapescope.Run(one_device)
    assert run.status["replicas"] == count
    assert run["replica_norm"].shape == (10, count, len(run.variables))
    assert np.isfinite(run["replica_norm"]).all()
    assert np.isfinite(run["noise_scale_total"]).all()
    assert run.steps.tolist() == expected.steps.tolist() == list(range(0, 40, 4))
    for column in set(expected.columns) - NOT_COMPARED:
        np.testing.assert_allclose(run[column], expected[column], rtol=1e-3, atol=1e-4, err_msg=column)
    actual = variables(tmp_path)
    for name, value in variables(one_device).items():
        assert np.linalg.norm(actual[name] - value) <= 1e-4 * np.linalg.norm(value) + 1e-7, name


@LONG
@pytest.mark.process
def test_after_the_loss_of_a_worker_all_end_and_the_same_command_continues(tmp_path):
    cut = tmp_path / "cut"
    whole = tmp_path / "whole"
    addresses = free_addresses(2)
    with workers(cut, addresses, *ARGUMENTS, "--steps=1000000") as (chief, other):
        until(chief, lambda: newest(cut) >= 40)
        other.send(signal.SIGKILL)
        start = time.monotonic()
        lines = chief.wait()
        assert time.monotonic() - start < 30  # on a busy machine; it takes one or two
        assert chief.code == train.EXIT_WORKER_LOST
    lost = f"worker 1 ({addresses[1]}) is lost"
    assert lines[-1] == f"tapescope-train: {lost}; start all workers again to continue", lines
    assert tapescope.Run(cut).status["reason"] == lost
    steps = newest(cut) + 50
    for logdir in (cut, whole):
        with workers(logdir, free_addresses(2), *ARGUMENTS, f"--steps={steps}") as trainers:
            for trainer in trainers:
                trainer.finish()
    actual = variables(cut)
    assert [name for name, v in variables(whole).items() if not np.array_equal(actual[name], v)] == []
    run = tapescope.Run(cut)
    expected = tapescope.Run(whole)
    assert run.steps.tolist() == list(range(0, steps, 4))
    for column in ("loss", "gradient_norm", "replica_cosine", "units_dead"):
        np.testing.assert_array_equal(run[column], expected[column])


@LONG
@pytest.mark.process
def test_sigterm_to_one_worker_ends_all_after_the_same_step(tmp_path):
    arguments = (*ARGUMENTS, "--steps=1000000", "--checkpoint_every=1000000")
    with workers(tmp_path, free_addresses(2), *arguments) as (chief, other):
        until(chief, lambda: len(measured_steps(tmp_path)) > 2)
        other.send(signal.SIGTERM)
        lines = chief.finish()
        other.finish()
    line = re.search(r"^Stopped by another worker after (\d+) steps", lines[-1])
    assert line, lines
    assert (tmp_path / "checkpoints" / f"ckpt-{line[1]}.index").exists()


def measured_steps(logdir: Path) -> Sequence[int]:
    """Return the steps of the records so far; none if there is no record."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return tapescope.Run(logdir).steps.tolist()
    return []


@LONG
@pytest.mark.process
@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.nightly), 1], ids=["chief", "other"])
def test_sigterm_while_waiting_is_answered_at_once(tmp_path, index):
    tf_config = Cluster(free_addresses(2), index).tf_config()
    with Trainer(tmp_path, "--strategy=multi_worker", tf_config=tf_config, real=True) as trainer:
        time.sleep(8)
        assert trainer.code is None, trainer.wait()
        trainer.send(signal.SIGTERM)
        start = time.monotonic()
        assert trainer.finish() == ["Stopped by SIGTERM before the first step"]
        assert time.monotonic() - start < 10
    assert list(tmp_path.iterdir()) == []


@LONG
@pytest.mark.process
def test_bad_input_of_another_worker_leaves_the_run_that_would_be_replaced(tmp_path):
    logdir = tmp_path / "run"
    trainings.run(logdir, "--preset=mlp", "--width=8", "--steps=2", "--checkpoint_every=1")
    before = sorted(path.name for path in logdir.rglob("*"))
    flags = ("--strategy=multi_worker", "--resume=never", "--data=mnist")
    addresses = free_addresses(2)
    with contextlib.ExitStack() as stack:
        whole = tmp_path / "whole"
        whole.mkdir()
        np.savez(whole / "mnist.npz", x_train=np.zeros((640, 4, 4), np.uint8), y_train=np.arange(640) % 3)
        trainers = [
            stack.enter_context(
                Trainer(logdir, *flags, f"--data_dir={data_dir}", tf_config=Cluster(addresses, index).tf_config())
            )
            for index, data_dir in enumerate((whole, tmp_path / "missing"))
        ]
        lines = [trainer.wait() for trainer in trainers]
        assert [trainer.code for trainer in trainers] == [train.EXIT_BAD_INPUT] * 2, lines
    assert lines[0] == lines[1]
    assert "missing has no mnist.npz" in lines[0][0]
    assert sorted(path.name for path in logdir.rglob("*")) == before


@LONG
@pytest.mark.process
def test_bad_input_of_the_chief_is_one_line_on_every_worker(tmp_path):
    line = "--batch_size=65 cannot be divided among 2 replicas: use 64, for example"
    with workers(tmp_path, free_addresses(2), "--batch_size=65") as trainers:
        for trainer in trainers:
            assert trainer.wait() == [f"tapescope-train: {line}"]
            assert trainer.code == train.EXIT_BAD_INPUT
