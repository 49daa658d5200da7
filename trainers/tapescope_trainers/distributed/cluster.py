"""The workers of a training and the place of this process among them, from TF_CONFIG, Slurm or Kubernetes."""

import json
import os
import re
import socket
import time
from typing import Any, NamedTuple

from tapescope_trainers.logs import import_tensorflow

EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
"""A TF_CONFIG, for messages."""


class Cluster(NamedTuple):
    """The workers, the same on each of them except `index`. Worker 0 is the chief, which writes the records."""

    addresses: tuple[str, ...]
    """host:port of every worker."""
    index: int
    """Of this process."""

    @property
    def chief(self) -> bool:
        """True in the process of worker 0."""
        return self.index == 0

    def name(self, index: int) -> str:
        """Return the name of a worker in messages."""
        return f"worker {index} ({self.addresses[index]})"

    def tf_config(self) -> str:
        """Return the cluster as a TF_CONFIG."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": self.addresses}, "task": task})


def find(source: str, workers: int | None = None, patience_s: float = 60) -> Cluster:
    """Return the cluster that this process is in.

    Args:
        source: A value of --cluster.
        workers: Number of Kubernetes pods to wait for.
        patience_s: How long to wait for them, in seconds.

    Raises:
        ValueError: The cluster cannot be found; the message is one line and says what to do.
    """
    if source == "tf_config":
        return parse(os.environ.get("TF_CONFIG", ""))
    return _slurm() if source == "slurm" else _kubernetes(workers, patience_s)


def parse(text: str) -> Cluster:
    """Return the cluster of a TF_CONFIG. As in TensorFlow, a "chief" comes before the workers.

    Raises:
        ValueError: The text is not a TF_CONFIG of workers.
    """
    if not text.strip():
        raise ValueError(
            f"--strategy=multi_worker needs TF_CONFIG in the environment, such as {EXAMPLE}; or pass --cluster=slurm"
        )
    try:
        fields = json.loads(text)
        jobs = fields["cluster"]
        task = fields["task"]
        chiefs = jobs.get("chief", [])
        workers = jobs.get("worker", [])
        if not re.fullmatch(r"-?\d+", str(task["index"])):
            raise ValueError(f"index {json.dumps(task['index'])} is not a whole number")
        index = int(task["index"]) + (len(chiefs) if task["type"] == "worker" else 0)
        colleagues = {**jobs, "chief": chiefs, "worker": workers}[task["type"]]
        addresses = tuple(map(str, (*chiefs, *workers)))
        if task["type"] not in ("chief", "worker") or not 0 <= int(task["index"]) < len(colleagues):
            raise LookupError(f"task {task} is not one of the cluster's workers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"TF_CONFIG={text!r} cannot be parsed ({reason}): it must be like {EXAMPLE}") from None
    except LookupError as error:
        raise ValueError(f"TF_CONFIG={text!r}: {error}: indices count from 0") from None
    ports = {address: re.fullmatch(r".+:(\d{1,5})", address) for address in addresses}
    malformed = [address for address, port in ports.items() if not port or not 0 < int(port[1]) < 65536]
    if malformed:
        raise ValueError(
            f"TF_CONFIG={text!r}: {malformed[0]!r} is not host:port, with a port from 1 to 65535: it must be like "
            f"{EXAMPLE}"
        )
    if len(set(addresses)) < len(addresses):
        raise ValueError(f"TF_CONFIG={text!r}: two workers have the same address: it must be like {EXAMPLE}")
    return Cluster(addresses, index)


def _port() -> int:
    """Return the port that the workers listen on, where the job scheduler does not say it."""
    text = os.environ.get("TAPESCOPE_PORT", "8888")
    if not re.fullmatch(r"\d{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError(f"TAPESCOPE_PORT must be a port from 1 to 65535; got {text!r}")
    return int(text)


def _slurm() -> Cluster:
    port = _port()
    tf = import_tensorflow()
    try:
        # Slurm assigns the GPUs itself (--gpus-per-task). The resolver would do so too, but fails if there is none; so
        # it is given more than enough of them, and does not set them.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=port,
            gpus_per_node=4096,
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        spec = resolver.cluster_spec()
        return Cluster(tuple(spec.job_tasks("worker")), int(resolver.get_task_info()[1]))
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"--cluster=slurm: {error}: start it inside a job, with srun") from None


class _PodApi:
    """A Kubernetes client whose pods report their own address as the host's.

    TensorFlow's resolver uses the address of the node, but it is the pods that listen. The two are equal only with
    hostNetwork.
    """

    def __init__(self, api: Any):
        self._api = api

    def list_pod_for_all_namespaces(self, label_selector: str) -> Any:
        """Return the pods with a label."""
        pods = self._api.list_pod_for_all_namespaces(label_selector=label_selector)
        for pod in pods.items:
            pod.status.host_ip = pod.status.pod_ip
        return pods


def _kubernetes(workers: int | None, patience_s: float) -> Cluster:
    if not workers:
        raise ValueError("--cluster=kubernetes needs --workers=N, the number of pods to wait for")
    label = os.environ.get("TAPESCOPE_PODS", "app=tapescope-train")
    port = _port()
    tf = import_tensorflow()
    try:
        from kubernetes import client, config  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("--cluster=kubernetes needs the kubernetes package: pip install kubernetes") from None
    deadline = time.monotonic() + patience_s
    while True:
        try:
            config.load_incluster_config()
            resolver = tf.distribute.cluster_resolver.KubernetesClusterResolver(
                {"worker": [label]}, port, override_client=_PodApi(client.CoreV1Api())
            )
            # Sorted, because each worker asks by itself and all must number the pods alike.
            addresses = tuple(sorted(resolver.cluster_spec().job_tasks("worker")))
            host = os.environ.get("POD_IP") or socket.gethostbyname(socket.gethostname())
            address = f"{host}:{port}"
            if len(addresses) == workers and address in addresses:
                return Cluster(addresses, addresses.index(address))
            reason = f"{len(addresses)} pods of {label} run: {', '.join(addresses)}; this is {address}"
        except Exception as error:  # the client's own types; a pod that does not run yet is a RuntimeError
            reason = str(error).strip().partition("\n")[0]
        if time.monotonic() > deadline:
            raise ValueError(f"--cluster=kubernetes: no {workers} pods within {patience_s:g} s: {reason}")
        time.sleep(1)
