"""The C++ plugin library's host part and a recording CUDA driver, compiled for the tests."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deltart.errors import BuildError
from deltart.plugins import cache
from deltart.plugins.cases import OpCall, calls_of
from deltart.plugins.kernel_call import kernel_of
from deltart.plugins.launch import Launch
from deltart.plugins.native.contract import contract_source
from deltart.plugins.native.library import FOLDER, compile_library, find_compiler, kernel_sources
from deltart.plugins.registry import OPS
from deltart.plugins.spec import OpSpec

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
LIBRARY = FOLDER / "library.cpp"
TYPES = ("f32", "bf16", "i8", "i32", "f16")
ROOM = 1 << 16
KERNEL = re.compile(r'extern "C"\s+void\s+(\w+)\(([^)]*)\)\s*\{')


class Given(ctypes.Structure):
    """native_host.cpp's struct of this name."""

    _fields_ = (
        ("op", ctypes.c_char_p),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("ranks", ctypes.POINTER(ctypes.c_int32)),
        ("types", ctypes.POINTER(ctypes.c_int32)),
        ("integers", ctypes.POINTER(ctypes.c_int64)),
        ("reals", ctypes.POINTER(ctypes.c_float)),
        ("at", ctypes.POINTER(ctypes.c_uint64)),
        ("shared_limit", ctypes.c_int64),
        ("capability", ctypes.c_int64),
        ("multiprocessors", ctypes.c_int64),
    )


def given_of(one: OpCall) -> Given:
    """A call as the C++ part takes it."""
    integers = [v for v in one.attributes.values() if isinstance(v, int)]
    reals = [v for v in one.attributes.values() if isinstance(v, float)]
    flat = [size for shape in one.shapes for size in shape]
    types = [TYPES.index(one.dtypes[t.name]) for t in one.spec.inputs]
    return Given(
        one.spec.name.encode(),
        (ctypes.c_int64 * len(flat))(*flat),
        (ctypes.c_int32 * len(one.shapes))(*map(len, one.shapes)),
        (ctypes.c_int32 * len(types))(*types),
        (ctypes.c_int64 * len(integers))(*integers),
        (ctypes.c_float * len(reals))(*reals),
        (ctypes.c_uint64 * len(one.addresses))(*one.addresses),
        one.shared_limit,
        one.capability,
        one.multiprocessors,
    )


class Host:
    """The library's part without TensorRT."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.text = ctypes.create_string_buffer(ROOM)

    def ask(self, function: str, *arguments: Any) -> str:
        """The answer of one of its functions; raises BuildError with the C++ error's parts."""
        call = getattr(self.library, f"deltart_{function}")
        call.restype = ctypes.c_int64
        if call(*arguments, self.text, ctypes.c_size_t(ROOM)) < 0:
            raise BuildError(*self.text.value.decode().split("\n"))
        return self.text.value.decode()


def host(main: Path = SUPPORT / "native_host.cpp", specs: Sequence[OpSpec] = OPS) -> Host:
    """Compiles `main` with the contracts of `specs` and kernels that are only signatures; cached."""
    fatbins, texts = _signatures()
    return Host(compile_library(main, contract_source(specs), fatbins, ("-O0",), texts))


def plugin_library(include: Path, specs: Sequence[OpSpec] = OPS) -> Path:
    """The whole library, compiled with TensorRT's headers and kernels that are only signatures; cached."""
    fatbins, texts = _signatures()
    return compile_library(LIBRARY, contract_source(specs), fatbins, ("-O0", "-isystem", str(include)), texts)


def probe(include: Path) -> Path:
    """The program that drives a plugin library in TensorRT's place; cached."""
    flags = ("-std=c++17", "-I", str(LIBRARY.parent / "cuda"), "-isystem", str(include))

    def make(folder: Path) -> None:
        source = str(SUPPORT / "native_probe.cpp")
        subprocess.run([find_compiler(), *flags, source, "-ldl", "-o", str(folder / "probe")], check=True)

    return cache.build(SUPPORT / "native_probe.cpp", flags, make) / "probe"


def _signatures() -> tuple[dict[str, Path], str]:
    fatbins = {name: signatures(source) for name, source in kernel_sources().items()}
    return fatbins, "".join(path.read_text() for path in fatbins.values())


def signatures(source: Path) -> Path:
    """A file with the kernels of `source` and the kinds of their arguments, as recording_driver.c reads it."""

    def make(folder: Path) -> None:
        command = [find_compiler(), "-E", "-P", "-DDELTART_CPU_SHIM", "-x", "c++", str(source)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows = [f"{name} {''.join(map(_kind, arguments.split(',')))}\n" for name, arguments in KERNEL.findall(text)]
        assert rows, f"no kernels in {source}"
        (folder / "signatures").write_text("".join(rows) + "\0")

    return cache.build(source, ("signatures",), make) / "signatures"


def _kind(parameter: str) -> str:
    return "p" if "*" in parameter else {"int": "i", "long": "l", "float": "f"}[parameter.split()[0]]


def recording_driver(folder: Path) -> ctypes.CDLL:
    """A libcuda.so.1 in `folder` that writes down what it is asked."""
    path = folder / "libcuda.so.1"
    subprocess.run(
        [find_compiler(), "-x", "c", str(SUPPORT / "recording_driver.c"), "-shared", "-fPIC", "-o", str(path)],
        check=True,
    )
    return ctypes.CDLL(str(path))


def planted(folder: Path, changes: Iterable[tuple[str, tuple[str, str]]]) -> Host:
    """The host part with `changes` (file in plugins/, its text, other text) made in a copy of its sources."""
    for path in ROOT.glob("plugins/*/*.hpp"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for name, (found, other) in changes:
        text = (folder / "plugins" / name).read_text()
        assert text.count(found) == 1, f"{name}: {found}"
        (folder / "plugins" / name).write_text(text.replace(found, other))
    main = folder / "tests" / "support" / "native_host.cpp"
    main.parent.mkdir(parents=True)
    shutil.copy(SUPPORT / "native_host.cpp", main)
    return host(main)


def text_of(source: str, launches: Sequence[Launch]) -> str:
    """Python's launches as native_host.cpp writes them."""
    return "\n".join([source, *launch_lines(launches)])


def calls_on_h100(spec: OpSpec, every: int, shared_limit: int) -> tuple[list[OpCall], list[str]]:
    """One in `every` call of the op that has kernels on an H100, and Python's launches of them all as lines."""
    cases: list[OpCall] = []
    lines: list[str] = []
    for one in list(calls_of(spec))[::every]:
        one = replace(one, shared_limit=shared_limit, capability=90, multiprocessors=132)
        try:
            _, launches = kernel_of(spec).launches(one.call())
        except BuildError:
            continue
        cases.append(one)
        lines += launch_lines(launches)
    return cases, lines


def launch_lines(launches: Sequence[Launch]) -> list[str]:
    """A line for each launch: kernel, grid, threads, shared bytes, arguments."""
    geometry = [(*launch.grid, launch.block, launch.shared_bytes) for launch in launches]
    return [
        " ".join([launch.kernel, *map(str, sizes), *map(argument, launch.args)])
        for launch, sizes in zip(launches, geometry, strict=True)
    ]


def argument(value: Any) -> str:
    if isinstance(value, ctypes.c_void_p):
        return f"p{value.value or 0:x}"
    if isinstance(value, ctypes.c_int):
        return f"i{value.value}"
    if isinstance(value, ctypes.c_longlong):
        return f"l{value.value}"
    return f"f{np.float32(value.value).view(np.uint32):08x}"
