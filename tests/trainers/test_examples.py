"""The programs in docs/examples, as far as they run without a cluster: shell, flags, TF_CONFIG."""

import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from tapescope_trainers import flags
from tapescope_trainers.distributed import cluster

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def shell(name: str) -> str:
    """Return the shell program in an example; of a Kubernetes manifest the one that the container runs."""
    text = (EXAMPLES / name).read_text()
    if not name.endswith(".yaml"):
        return text
    block = re.search(r"^( +)args:\n +- \|\n((?:\1 {4}.*\n)+)", text, re.M)
    assert block
    return textwrap.dedent(block[2])


@pytest.fixture
def run(tmp_path):
    """Return a function that runs an example with programs that print their arguments in place of the real ones."""
    programs = {"tapescope-train": 'printf "%s\\n" "$TF_CONFIG" "$@"', "srun": 'shift; exec "$@"'}
    for name, body in programs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run_example(name: str, **environment: str) -> list[str]:
        variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "TF_CONFIG": "", **environment}
        interpreter = "sh" if name.endswith(".yaml") else "bash"
        done = subprocess.run(
            [interpreter, "-c", shell(name)], env=variables, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    return run_example


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.iterdir()))
def test_the_trainer_accepts_the_flags_of(name, run, tmp_path):
    arguments = [argument for argument in run(name, JOB_COMPLETION_INDEX="0")[1:] if "--logdir=" not in argument]
    options = flags.parse(["tapescope-train", *arguments, f"--logdir={tmp_path}/run"])
    assert options.checkpoint_every
    assert options.strategy in ("mirrored", "multi_worker")
    assert "\\" not in "".join(arguments)


@pytest.mark.parametrize("index", [0, 1])
def test_kubernetes_pods_get_a_valid_tf_config(run, index):
    tf_config = run("kubernetes.yaml", JOB_COMPLETION_INDEX=str(index))[0]
    addresses = ("tapescope-0.tapescope:2222", "tapescope-1.tapescope:2222")
    assert cluster.parse(tf_config) == cluster.Cluster(addresses, index)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl")
def test_kubectl_accepts_the_manifest():
    """Decoded strictly by kubectl's own types; no cluster is asked."""
    command = ["kubectl", "label", "--local", "--dry-run=client", "-o", "name", "-f", str(EXAMPLES / "kubernetes.yaml")]
    done = subprocess.run([*command, "checked=yes"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"service/tapescope", "job.batch/tapescope"}
