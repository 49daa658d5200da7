"""Which workers there are, and which of them this process is: from TF_CONFIG, Slurm or Kubernetes."""

import json
import os
import re
import socket
import time
from typing import Any, NamedTuple

EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


class Cluster(NamedTuple):
    """The workers, the same on each of them but for `index`. Worker 0 is the chief: it writes the records."""

    addresses: tuple[str, ...]
    """host:port of every worker."""
    index: int
    """Of this process."""

    @property
    def chief(self) -> bool:
        return self.index == 0

    def name(self, index: int) -> str:
        """How messages name a worker."""
        return f"worker {index} ({self.addresses[index]})"

    def tf_config(self) -> str:
        """As TensorFlow's strategy takes it."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": self.addresses}, "task": task})


def find(source: str, workers: int | None = None, patience_s: float = 60) -> Cluster:
    """The cluster that this process is in. Raises ValueError of one line with the cure.

    `workers` is how many pods of Kubernetes to wait for, for `patience_s` seconds.
    """
    if source == "tf_config":
        return parse(os.environ.get("TF_CONFIG", ""))
    return _slurm() if source == "slurm" else _kubernetes(workers, patience_s)


def parse(text: str) -> Cluster:
    """The cluster in a TF_CONFIG. A "chief" comes before the workers, as TensorFlow has it."""
    if not text.strip():
        raise ValueError(
            f"--strategy=multi_worker needs TF_CONFIG in the environment, such as {EXAMPLE}; or pass --cluster=slurm"
        )
    try:
        fields = json.loads(text)
        jobs, task = fields["cluster"], fields["task"]
        chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
        index = int(task["index"]) + (len(chiefs) if task["type"] == "worker" else 0)
        known = {**jobs, "chief": chiefs, "worker": workers}[task["type"]]
        addresses = tuple(map(str, (*chiefs, *workers)))
        if task["type"] not in ("chief", "worker") or not 0 <= int(task["index"]) < len(known):
            raise LookupError(f"task {task} is none of the cluster's workers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"TF_CONFIG={text!r} is not understood ({what}): it must be like {EXAMPLE}") from None
    except LookupError as error:
        raise ValueError(f"TF_CONFIG={text!r}: {error}: let index count from 0") from None
    wrong = [a for a in addresses if not re.fullmatch(r".+:\d{1,5}", a)]
    if wrong or len(set(addresses)) < len(addresses):
        what = f"{wrong[0]!r} is not host:port" if wrong else "two workers have one address"
        raise ValueError(f"TF_CONFIG={text!r}: {what}: it must be like {EXAMPLE}")
    return Cluster(addresses, index)


def _slurm() -> Cluster:
    import tensorflow as tf

    try:
        # Slurm shares the GPUs out (--gpus-per-task). The resolver would do so too, but fails where there is none, so
        # it is told of more than enough, and kept from setting them.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=int(os.environ.get("TAPESCOPE_PORT", 8888)),
            **{"gpus_per_node": 4096, "gpus_per_task": 1, "auto_set_gpu": False},
        )
        spec = resolver.cluster_spec()
        return Cluster(tuple(spec.job_tasks("worker")), int(resolver.get_task_info()[1]))
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"--cluster=slurm: {error}: start it inside a job, with srun") from None


class _Pods:
    """The API's client as TensorFlow's resolver asks it: that takes the node's address, but it is the pods that listen.

    Only with hostNetwork they are the same.
    """

    def __init__(self, api: Any):
        self._api = api

    def list_pod_for_all_namespaces(self, label_selector: str) -> Any:
        pods = self._api.list_pod_for_all_namespaces(label_selector=label_selector)
        for pod in pods.items:
            pod.status.host_ip = pod.status.pod_ip
        return pods


def _kubernetes(workers: int | None, patience_s: float) -> Cluster:
    if not workers:
        raise ValueError("--cluster=kubernetes needs --workers=N, the number of pods to wait for")
    label, port = os.environ.get("TAPESCOPE_PODS", "app=tapescope-train"), os.environ.get("TAPESCOPE_PORT", "8888")
    import tensorflow as tf

    try:
        from kubernetes import client, config  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("--cluster=kubernetes needs the kubernetes package: pip install kubernetes") from None
    until, why = time.monotonic() + patience_s, ""
    while True:
        try:
            config.load_incluster_config()
            resolver = tf.distribute.cluster_resolver.KubernetesClusterResolver(
                {"worker": [label]}, int(port), override_client=_Pods(client.CoreV1Api())
            )
            # Sorted, for each worker asks for itself, and all must number them alike.
            addresses = tuple(sorted(resolver.cluster_spec().job_tasks("worker")))
            own = f"{os.environ.get('POD_IP') or socket.gethostbyname(socket.gethostname())}:{port}"
            if len(addresses) == workers and own in addresses:
                return Cluster(addresses, addresses.index(own))
            why = f"{len(addresses)} pods of {label} run: {', '.join(addresses)}; this is {own}"
        except Exception as error:  # the client's own types; a pod that does not run yet is a RuntimeError
            why = str(error).strip().partition("\n")[0]
        if time.monotonic() > until:
            raise ValueError(f"--cluster=kubernetes: no {workers} pods within {patience_s:g} s: {why}")
        time.sleep(1)
