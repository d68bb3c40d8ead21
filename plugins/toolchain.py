"""nvcc: where it is, how a kernel source becomes a fatbin, and what the assembler says of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

from deltart.errors import BuildError, MissingDependencyError
from deltart.json_files import parse_json
from deltart.plugins import cache
from deltart.plugins.compilers import compile_with
from deltart.text_files import read_bytes
from deltart.typed import typed

TARGETS = ("80", "86", "89", "90a", "100a", "120a")
OTHERS = ("87", "110", "121")  # compiled for where they are what is there: Orin, Thor, Spark
PTX = "80"  # compiled at load time by the driver of a GPU that none of TARGETS fits
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one target; sizes in bytes per thread."""

    kernel: str
    target: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True)
class Built:
    """A compiled source: the fatbin's path and its kernels' resources, one row per target and kernel."""

    source: Path
    fatbin: Path
    resources: list[Resources]


def sources() -> list[Path]:
    """Every kernel source of the package."""
    return sorted(Path(__file__).resolve().parent.glob("*/*.cu"))


def find_nvcc(explicit: Path | None = None) -> Path:
    """nvcc: `explicit`, else the one on PATH, in $CUDA_HOME, or of the PyPI wheel, in this order.

    Raises MissingDependencyError where there is none, or where `explicit` is not an executable file.
    """
    if explicit is not None:
        if not os.access(explicit, os.X_OK) or explicit.is_dir():
            raise MissingDependencyError(f"{explicit} is not an executable file", "the path of nvcc")
        return explicit
    on_path, home = shutil.which("nvcc"), os.environ.get("CUDA_HOME", "")
    wheels = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc"), reverse=True)
    candidates = [Path(on_path)] if on_path else []
    candidates += [Path(home) / "bin" / "nvcc"] if home else []
    for nvcc in candidates + wheels:
        if os.access(nvcc, os.X_OK):
            return nvcc
    raise MissingDependencyError(
        "nvcc was not found on PATH, in CUDA_HOME, or among the Python packages",
        "CUDA 13 or later",
        "pip install nvidia-cuda-nvcc nvidia-cuda-cccl",
    )


def known_targets(nvcc: Path) -> tuple[str, ...]:
    """Those of TARGETS and OTHERS that the compiler has a name for."""
    done = subprocess.run([str(nvcc), "--list-gpu-code"], check=False, capture_output=True, text=True)
    names = {name.removeprefix("sm_") for name in done.stdout.split()}
    return tuple(target for target in (*TARGETS, *OTHERS) if target.rstrip("a") in names)


def version(nvcc: Path) -> str:
    """The compiler's own words; they are part of the cache key."""
    done = subprocess.run([str(nvcc), "--version"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{nvcc} --version failed:\n{done.stderr}", "a working nvcc")
    return done.stdout


def parse(log: str) -> list[Resources]:
    """The rows of a `ptxas -v` report."""
    rows = []
    for part in re.split(r"(?=Compiling entry function)", log):
        entry, spills, registers = ENTRY.search(part), SPILLS.search(part), REGISTERS.search(part)
        if not entry:
            continue
        if not spills or not registers:
            raise BuildError(f"no resource usage of {entry[1]} in the assembler's report:\n{part}")
        stack, stores, loads = (int(n) for n in spills.groups())
        rows.append(Resources(entry[1], entry[2], int(registers[1]), stack, stores, loads))
    return sorted(rows, key=lambda row: (row.kernel, (*TARGETS, *OTHERS).index(row.target)))


def compile_gpu(
    source: Path, targets: tuple[str, ...] = TARGETS, defines: tuple[str, ...] = (), nvcc: Path | None = None
) -> Built:
    """Compiles `source` for `targets` into one fatbin, or takes the cached one of the same text and flags.

    Raises BuildError with the compiler's message when it does not compile.
    """
    compiler, flags = find_nvcc(nvcc), _flags(targets, defines)

    def make(folder: Path) -> None:
        command = [str(compiler), *flags, str(source), "-o", str(folder / "kernel.fatbin")]
        rows = [asdict(row) for row in parse(compile_with(command, source))]
        (folder / "resources.json").write_text(json.dumps(rows, indent=1))

    folder = cache.build(source, (version(compiler), *flags), make)
    return Built(source, folder / "kernel.fatbin", _resources(folder / "resources.json"))


def compile_for(source: Path, capability: int) -> Built:
    """As `compile_gpu`, for the GPU of that compute capability (times ten) alone, which takes a sixth of the time; for
    all targets where that is in the cache, or where none of them is this GPU."""
    own = tuple(target for target in (*TARGETS, *OTHERS) if target.rstrip("a") == str(capability))
    everything = (version(find_nvcc()), *_flags(TARGETS, ()))
    return compile_gpu(source) if not own or cache.has(source, everything) else compile_gpu(source, own)


def _flags(targets: tuple[str, ...], defines: tuple[str, ...]) -> tuple[str, ...]:
    return (
        "-std=c++17",
        "-O3",
        "-fatbin",
        "-Xptxas=-v",
        *(f"-gencode=arch=compute_{t},code=sm_{t}" for t in targets),
        f"-gencode=arch=compute_{PTX},code=compute_{PTX}",
        *(f"-D{define}" for define in defines),
    )


def _resources(path: Path) -> list[Resources]:
    rows = parse_json(read_bytes(path, BuildError), str(path), BuildError)
    return typed(rows, list[Resources], str(path), BuildError)
