"""Memory that the threads of a process have freed, and that it keeps."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading
import numpy as np
if sys.argv[1] == "tensorboard":
    import tensorboard.main
from tensorboard_plugin_tapescope.data.memory import limit_kept_memory, release_memory

together = threading.Barrier(2)

def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024

def answer():
    np.ones(2 << 20)  # a large array, after which glibc keeps more
    together.wait()
    blocks = [np.ones(100_000, np.uint8) for _ in range(300)]
    together.wait()
    del blocks

limit_kept_memory()
before = private()
for _ in range(4):
    threads = [threading.Thread(target=answer) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
release_memory()
print(private() - before)
"""


def kept(process: str) -> float:
    """Return the MiB that a process keeps after two threads at once have each freed 29 MiB, four times."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, process]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc: nothing is limited")
def test_only_tensorboards_own_process_keeps_little_of_what_was_freed():
    assert kept("tensorboard") < 5
    assert kept("training") > 10
