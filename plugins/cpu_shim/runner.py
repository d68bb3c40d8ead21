"""Builds a kernel source with g++ and the CPU shim, and executes launches on host memory."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Sequence
from pathlib import Path

from deltart.errors import BuildError, MissingDependencyError
from deltart.plugins import cache
from deltart.plugins.compilers import compile_with
from deltart.plugins.launch import Launch

FORWARD, REVERSE = 0, 1  # which warp of a block runs ahead of the others


class CpuModule:
    """A kernel source compiled for the host. `run` executes launches in order and raises BuildError on a
    deadlock, a divergent warp call, or a wrong number of arguments."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def hold(self, regions: Sequence[tuple[int, int]]) -> None:
        """From now on no launch may touch these (address, bytes) before it waits for the launches before it, as each of
        its threads must."""
        places = (ctypes.c_void_p * len(regions))(*(address for address, _ in regions))
        sizes = (ctypes.c_size_t * len(regions))(*(nbytes for _, nbytes in regions))
        self.library.shim_hold(places, sizes, len(regions))

    def run(self, launches: list[Launch], order: int = FORWARD) -> None:
        """Executes `launches` one after the other, synchronously."""
        for launch in launches:
            self._run(launch, order)

    def _run(self, launch: Launch, order: int) -> None:
        function = getattr(self.library, f"{launch.kernel}_launch", None)
        if function is None:
            raise BuildError(f"no kernel {launch.kernel} in {self.library._name}", "an EXPORT_KERNEL line")
        arguments = (ctypes.c_void_p * len(launch.args))(*(ctypes.addressof(arg) for arg in launch.args))
        message = ctypes.create_string_buffer(256)
        status = function(
            (ctypes.c_uint * 3)(*launch.grid),
            (ctypes.c_uint * 3)(launch.block, 1, 1),
            ctypes.c_size_t(launch.shared_bytes),
            arguments,
            len(launch.args),
            order,
            message,
            256,
        )
        if status:
            raise BuildError(f"{launch.kernel}: {message.value.decode()}", "a kernel that runs to its end")


def compile_cpu(source: Path, defines: tuple[str, ...] = ()) -> CpuModule:
    """Compiles `source` (a .cu file) with g++, or takes the cached library of the same text and defines."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise MissingDependencyError("g++ was not found", "a C++17 compiler on PATH", "apt-get install g++")
    flags = [
        "-std=c++17",
        "-O2",
        "-fno-strict-aliasing",
        "-shared",
        "-fPIC",
        "-Wno-unknown-pragmas",
        "-DDELTART_CPU_SHIM",
        *(f"-D{define}" for define in defines),
    ]

    def make(folder: Path) -> None:
        command = [compiler, *flags, "-x", "c++", str(source), "-o", str(folder / "kernel.so")]
        compile_with(command, source, "a kernel that the shim takes")

    return CpuModule(cache.build(source, (compiler, *flags), make) / "kernel.so")
