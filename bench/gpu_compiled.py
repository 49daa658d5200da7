"""Counts of what XLA makes of a measured step on an NVIDIA H100, without a GPU.

    python -m bench.gpu_compiled [--networks=mlp,cnn,...] [--environment=.venv-gpu] [--json=FILE]

1. The plain, the measured and the measured step without histograms of each network are traced with `jit_compile=True`
   and `TAPESCOPE_PLATFORM=gpu`, and saved as StableHLO.
2. jaxlib's CUDA plugin compiles them for an H100 from a description of the card. It needs pinned packages, which this
   program installs into an environment of its own the first time (1.2 GB).

`kernels` are the instructions of the compiled program that launch something. `conditionals` are host waits: XLA copies
the predicate to the host and blocks, and no CUDA graph spans one. Counts are not times. The XLA is that of jaxlib, with
autotuning off, so a count is compared with that of the plain step, and is not the number of a real GPU.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from typing import Any

PACKAGES = (
    *("jax==0.10.2", "jaxlib==0.10.2", "jax-cuda12-plugin==0.10.2", "jax-cuda12-pjrt==0.10.2"),
    *("nvidia-cuda-nvcc-cu12==12.9.86", "numpy", "scipy", "ml_dtypes", "opt_einsum"),
)
"""Pinned, because the calls below are private ones of jaxlib."""
H100 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
 shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
 cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
PROGRAMS = ("plain", "measured", "lean")
"""A step without a probe, one that is measured, and one that is measured without histograms."""
CONDITIONALS = 0
KERNELS_PER_TENSOR = 1.0
KERNELS = 2.0
MEMORY = 1.25
COMPILE = 2.5
"""The aims; the last three are ratios to the plain step."""


# In the project's environment


def make_environment(directory: pathlib.Path) -> pathlib.Path:
    """Return the Python of the environment that compiles; make it if it is not there."""
    python = directory / "bin" / "python"
    stamp = directory / ".installed"
    if not stamp.exists() or stamp.read_text() != " ".join(PACKAGES):
        print(f"installing {PACKAGES[0]} and its CUDA plugin into {directory}, once", file=sys.stderr)
        venv.create(directory, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
        stamp.write_text(" ".join(PACKAGES))
    return python


def measured_tensors(state: Any, passes: Any) -> int:
    """Return how many tensors are measured: gradients, weights and their changes, outputs, and distinct deltas."""
    merged = state.selection.variables()
    deltas = {id(d) for call in passes.calls for d in call.deltas if d is not None}
    return 3 * len(merged) + len(passes.calls) + len(deltas)


def save_programs(name: str, directory: pathlib.Path) -> int:
    """Save the three programs of a network as StableHLO, and return how many tensors are measured."""
    from bench.cost.networks import Trained

    from tapescope import tape as tapes

    counts = []
    measure = tapes.MeasuringTape._measure

    def counted(self: Any, merged: Any, *arguments: Any, **options: Any) -> Any:
        counts.append(measured_tensors(self._state, merged))
        return measure(self, merged, *arguments, **options)

    trained = Trained(name)
    steps: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "plain": (trained.plain(jit=True), ()),
        "measured": (trained.probed(jit=True)[0], (True,)),
        "lean": (trained.probed(jit=True, histograms=False)[0], (True,)),
    }
    tapes.MeasuringTape._measure = counted
    try:
        for program, (step, arguments) in steps.items():
            ir = step.experimental_get_compiler_ir(*arguments)
            (directory / f"{program}.shlo").write_bytes(ir(stage="stablehlo_serialized"))
    finally:
        tapes.MeasuringTape._measure = measure
    return counts[0]


def row(name: str, program: str, found: dict[str, Any], plain: dict[str, Any], tensors: int) -> str:
    """Return one row of the table; an aim that is missed is bold."""

    def cell(text: str, aim: float, value: float) -> str:
        return text if program == "plain" or value <= aim else f"**{text}**"

    added = found["kernels"] - plain["kernels"]
    cells = [
        name if program == "plain" else "",
        program,
        f"{found['kernels']}",
        cell(f"{found['kernels'] / plain['kernels']:.2f}", KERNELS, found["kernels"] / plain["kernels"]),
        "" if program == "plain" else cell(f"{added / tensors:.2f} of {tensors}", KERNELS_PER_TENSOR, added / tensors),
        cell(f"{found['conditionals']}", CONDITIONALS, found["conditionals"]),
        f"{found['temp_mb']:.2f}",
        cell(f"{found['temp_mb'] / plain['temp_mb']:.2f}", MEMORY, found["temp_mb"] / plain["temp_mb"]),
        f"{found['compile_s']:.1f}",
        cell(f"{found['compile_s'] / plain['compile_s']:.1f}", COMPILE, found["compile_s"] / plain["compile_s"]),
    ]
    return f"| {' | '.join(cells)} |"


COLUMNS = ("network", "step", "kernels", "ratio", "added for each tensor", "host waits")
COLUMNS += ("temporary MB", "ratio", "compile s", "ratio")
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def main() -> None:
    """Save, compile and count the programs; print the table, and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="mlp,cnn,resnet,transformer,chain100")
    parser.add_argument("--environment", type=pathlib.Path, default=pathlib.Path(".venv-gpu"))
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TAPESCOPE_PLATFORM", "gpu")
    python = make_environment(options.environment.absolute())
    results = {}
    print(HEADER)
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            directory = pathlib.Path(temporary)
            tensors = save_programs(name, directory)
            files = [str(directory / f"{program}.shlo") for program in PROGRAMS]
            # The first program is compiled twice, so that none has to load the compiler.
            command = [python, __file__, "count", files[0], *files]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if len(lines) != 1 + len(PROGRAMS):
                sys.exit(f"the compiler gave {len(lines)} results of {1 + len(PROGRAMS)} for {name}: {done.stderr}")
        found = dict(zip(PROGRAMS, map(json.loads, lines[1:]), strict=True))
        results[name] = {"tensors": tensors, **found}
        for program in PROGRAMS:
            print(row(name, program, found[program], found["plain"], tensors), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


# In the environment that compiles


def _device() -> Any:
    """Return a description of an H100 that compiles and runs nothing."""
    site = sysconfig.get_path("purelib")
    os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={site}/nvidia/cuda_nvcc"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from jaxlib import xla_client  # pyright: ignore[reportMissingImports]

    plugin = xla_client.load_pjrt_plugin_dynamically("cuda", f"{site}/jax_plugins/xla_cuda12/xla_cuda_plugin.so")
    xla_client.initialize_pjrt_plugin("cuda")
    topology = xla_client.make_c_api_device_topology(plugin, "", target_config=H100, topology="1x1x1")
    return topology._make_compile_only_devices()


def _without_copies(op: Any) -> None:
    """Remove `mhlo.copy`, which is of TensorFlow's dialect; its operand is the same value."""
    for block in (block for region in op.regions for block in region.blocks):
        for inner in list(block.operations):
            if inner.operation.name == "mhlo.copy":
                inner.operation.results[0].replace_all_uses_with(inner.operation.operands[0])
                inner.operation.erase()
            else:
                _without_copies(inner)


def _count(path: str, devices: Any) -> dict[str, Any]:
    """Compile a program and count what it launches."""
    from jax._src.interpreters import mlir  # pyright: ignore[reportMissingImports]
    from jax._src.lib.mlir import ir  # pyright: ignore[reportMissingImports]
    from jaxlib import _jax  # pyright: ignore[reportMissingImports]

    with mlir.make_ir_context(), ir.Location.unknown():
        module = ir.Module.parse(pathlib.Path(path).read_bytes())
        _without_copies(module.operation)
        options = _jax.CompileOptions()
        options.num_replicas = options.num_partitions = 1
        start = time.perf_counter()
        made = devices[0].client.compile(module, _jax.DeviceList(tuple(devices)), options)
        seconds = time.perf_counter() - start
    text = made.hlo_modules()[0].to_string()
    if "BENCH_HLO" in os.environ:
        pathlib.Path(os.environ["BENCH_HLO"], pathlib.Path(path).stem + ".hlo").write_text(text)
    parts = text.split("\n\n")
    bodies = {m.group(1): part for part in parts if (m := re.match(r"%?(\S+) \(", part.strip()))}
    kinds: collections.Counter[str] = collections.Counter()
    for line in next(part for part in parts if part.strip().startswith("ENTRY")).splitlines():
        if " fusion(" in line and (called := re.search(r"calls=%?([^\s,]+)", line)):
            body = bodies.get(called.group(1), "")
            kinds[next((kind for kind in ("dot", "reduce", "scatter") if f" {kind}(" in body), "elementwise")] += 1
        elif " custom-call(" in line:
            kinds["library"] += 1
        elif re.search(r"= \S+ copy\(", line) and not re.search(r"= \w+\[(\d+,)*0(,\d+)*\]", line):  # of elements
            kinds["copy"] += 1
        elif " conditional(" in line:
            kinds["conditional"] += 1
    conditionals = kinds.pop("conditional", 0)
    return {
        "kernels": sum(kinds.values()),
        "conditionals": conditionals,
        "temp_mb": made.get_compiled_memory_stats().temp_size_in_bytes / 1e6,
        "of": dict(kinds),
        "compile_s": seconds,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["count"]:
        described = _device()
        for argument in sys.argv[2:]:
            print(json.dumps(_count(argument, described)), flush=True)
        os._exit(0)  # the plugin crashes as the interpreter ends
    main()
