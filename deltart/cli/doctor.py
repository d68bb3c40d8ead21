"""deltart doctor: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import argparse
import ctypes.util
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deltart import caches
from deltart.cli import cache_option
from deltart.cli.screen import console, line
from deltart.cli.streams import print_json
from deltart.errors import CacheError, MissingDependencyError
from deltart.plugins.toolchain import find_nvcc


@dataclass(frozen=True)
class Finding:
    """One thing looked for: whether it is there, what was found, what it is for, how to get it."""

    name: str
    present: bool
    found: str
    purpose: str
    remedy: str = ""


# distribution, what it is for, extra that brings it
PACKAGES = (
    ("onnxruntime", "run artifacts on the CPU", "cpu"),
    ("av", "read video files", "video"),
    ("torch", "export and calibrate", "export"),
    ("onnxscript", "export", "export"),
    ("transformers", "verify's reference", "verify"),
    ("tensorrt-rtx-cu13-bindings", "build and run TensorRT-RTX engines", "rtx"),
    ("tensorrt", "build and run TensorRT engines", "tensorrt"),
    ("cuda-bindings", "load kernels without torch", "kernels"),
)


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor", help="check what is installed and say what is missing", description=__doc__
    )
    parser.add_argument("--json", action="store_true", help="print findings as JSON")
    cache_option.add(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the findings."""
    findings = examine()
    if arguments.json:
        print_json([asdict(f) for f in findings])
        return
    width = max(len(finding.name) for finding in findings)
    out = console()
    for finding in findings:
        mark = line("ok  ", "green") if finding.present else line("--  ", "yellow")
        out.print(mark + line(f"{finding.name:{width}}  {finding.found}: {finding.purpose}"))
        if not finding.present:
            out.print(line(f"    {finding.remedy}", "bold"), soft_wrap=True)


def examine() -> list[Finding]:
    """Everything worth knowing about this machine, cheapest first."""
    return [
        _python(),
        _memory(),
        *(_package(*row) for row in PACKAGES),
        _cache(),
        _nvcc(),
        _headers(),
        _driver(),
        _gpu(),
    ]


def _python() -> Finding:
    return Finding("python", True, f"{platform.python_version()} on {platform.machine()}", "everything")


def _memory() -> Finding:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Finding("memory", True, f"{gib:.0f} GiB, {os.cpu_count()} CPUs", "CPU generation folds weights to f32")


def _package(distribution: str, purpose: str, extra: str) -> Finding:
    try:
        return Finding(distribution, True, version(distribution), purpose)
    except PackageNotFoundError:
        wanted = f"deltart[{extra}]" if extra else "deltart"
        return Finding(distribution, False, "not installed", purpose, f"pip install '{wanted}'")


def _cache() -> Finding:
    purpose = "keep compiled kernels and plans"
    try:
        return Finding("cache", True, str(caches.folder(caches.KERNELS).parent), purpose)
    except CacheError as error:
        return Finding("cache", False, error.found, purpose, f"export {caches.VARIABLE}=DIR  # or --cache DIR")


def _nvcc() -> Finding:
    purpose = "compile the CUDA kernels"
    try:
        return Finding("nvcc", True, str(find_nvcc()), purpose)
    except MissingDependencyError:
        return Finding("nvcc", False, "not found", purpose, "pip install 'deltart[kernels]'")


def _headers() -> Finding:
    from deltart.plugins.native.library import find_headers

    purpose = "build the C++ plugin library"
    try:
        return Finding("TensorRT headers", True, str(find_headers()), purpose)
    except MissingDependencyError:
        return Finding(
            "TensorRT headers",
            False,
            "not found",
            purpose,
            "apt install libnvinfer-headers-dev  # from NVIDIA's repository",
        )


def _driver() -> Finding:
    library = ctypes.util.find_library("cuda")
    return Finding("CUDA driver", bool(library), library or "not found", "run engines", "install NVIDIA's driver")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    query = [tool, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader"] if tool else []
    result = subprocess.run(query, capture_output=True, text=True, check=False) if tool else None
    names = result.stdout.strip().replace("\n", "; ") if result and result.returncode == 0 else ""
    return Finding("GPU", bool(names), names or "none seen", "run engines", "engines still build without one")
