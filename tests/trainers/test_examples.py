"""docs/examples, as far as they can be checked without the cluster: shell, flags, TF_CONFIG."""

import re
import shlex
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from tapescope_trainers import flags
from tapescope_trainers.distributed import cluster

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def shell(name: str) -> str:
    """The shell in an example; of a Kubernetes manifest what the container runs."""
    text = (EXAMPLES / name).read_text()
    if not name.endswith(".yaml"):
        return text
    found = re.search(r"^( +)args:\n +- \|\n((?:\1 {4}.*\n)+)", text, re.M)
    assert found
    return textwrap.dedent(found[2])


@pytest.fixture
def ran(tmp_path):
    """Runs an example with programs in the place of the real ones, which print what they got."""
    for name in ("tapescope-train", "srun"):
        path = tmp_path / name
        done = 'printf "%s\\n" "$TF_CONFIG" "$@"' if name == "tapescope-train" else 'shift; exec "$@"'
        path.write_text(f"#!/bin/sh\n{done}\n")
        path.chmod(0o755)

    def run(name: str, **environment: str) -> list[str]:
        known = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "TF_CONFIG": "", **environment}
        interpreter = "sh" if name.endswith(".yaml") else "bash"
        done = subprocess.run([interpreter, "-c", shell(name)], env=known, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.iterdir()))
def test_the_command_is_one_that_the_trainer_takes(name, ran, tmp_path):
    arguments = [a for a in ran(name, JOB_COMPLETION_INDEX="0")[1:] if not a.startswith("--logdir=")]
    options = flags.parse(["x", *arguments, f"--logdir={tmp_path}/run"])
    assert options.checkpoint_every
    assert options.strategy in ("mirrored", "multi_worker")
    assert "\\" not in shlex.join(arguments)


def test_the_pods_of_kubernetes_get_a_tf_config_that_is_understood(ran):
    for index in (0, 1):
        found = cluster.parse(ran("kubernetes.yaml", JOB_COMPLETION_INDEX=str(index))[0])
        assert found == cluster.Cluster(("tapescope-0.tapescope:2222", "tapescope-1.tapescope:2222"), index)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl")
def test_kubernetes_takes_the_manifest():
    """Decoded strictly by kubectl's own types; nothing is asked of a cluster."""
    command = ["kubectl", "label", "--local", "--dry-run=client", "-o", "name", "-f", str(EXAMPLES / "kubernetes.yaml")]
    done = subprocess.run([*command, "checked=yes"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"service/tapescope", "job.batch/tapescope"}
