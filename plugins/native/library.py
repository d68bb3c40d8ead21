"""Builds the C++ plugin library: finds TensorRT's headers, embeds the kernels and calls the host compiler."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltart.errors import BuildError, MissingDependencyError
from deltart.plugins import cache
from deltart.plugins.compilers import compile_with
from deltart.plugins.kernel_call import kernel_of
from deltart.plugins.native.contract import contract_source
from deltart.plugins.registry import OPS
from deltart.plugins.toolchain import TARGETS, compile_gpu

FOLDER = Path(__file__).resolve().parent
NAME = "libdeltart_plugins.so"
# Where TensorRT's packages and archives put NvInfer.h.
INCLUDE_FOLDERS = (
    "/usr/include",
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/local/include",
    "/usr/local/tensorrt/include",
    "/opt/tensorrt/include",
)
EXPORTS = FOLDER / "exports.map"
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-Wl,--no-undefined")


def find_headers(given: Sequence[Path] = ()) -> Path:
    """The folder of NvInfer.h: one of `given` (or its include/), else of the system's usual places.

    Raises MissingDependencyError where there is none; where folders are given, they alone count.
    """
    candidates = [folder / below for folder in given for below in ("", "include")]
    for folder in candidates or [Path(name) for name in INCLUDE_FOLDERS]:
        if (folder / "NvInfer.h").is_file():
            return folder
    raise MissingDependencyError(
        f"NvInfer.h is not in {', '.join(map(str, given)) or ', '.join(INCLUDE_FOLDERS)}",
        "TensorRT's or TensorRT-RTX's C++ headers, of the version that will load the library",
        "unpack NVIDIA's archive or install libnvinfer-headers-dev, then: deltart plugins native "
        "--include DIR (without them, the Python plugin classes do the same)",
    )


def find_compiler() -> str:
    """g++ on PATH; raises MissingDependencyError where it is not."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise MissingDependencyError("g++ was not found", "a C++17 compiler on PATH", "apt-get install g++")
    return compiler


def headers_version(include: Path) -> str:
    """The version that NvInferVersion.h states ("11.1.0"); raises BuildError where it states none."""
    text = (include / "NvInferVersion.h").read_text() if (include / "NvInferVersion.h").is_file() else ""
    numbers = [re.search(rf"#define (?:NV_TENSORRT|TRT)_{part}\w* (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    if not all(numbers):
        raise BuildError(f"{include} states no version", "NvInferVersion.h beside NvInfer.h")
    return ".".join(match[1] for match in numbers if match)


def kernel_sources() -> dict[str, Path]:
    """Every .cu file that an op's plugin launches, by its path in plugins/."""
    kernels = [kernel_of(spec) for spec in OPS]
    return {f"{k.folder.name}/{source}": k.folder / source for k in kernels for source in k.sources}


def build_library(include: Path, targets: tuple[str, ...] = TARGETS, nvcc: Path | None = None) -> Path:
    """The plugin library, compiled with the headers in `include`, or the cached one of the same texts and kernels.

    Raises:
        MissingDependencyError: g++ or nvcc is missing.
        BuildError: something does not compile.
    """
    fatbins = {name: compile_gpu(path, targets, nvcc=nvcc).fatbin for name, path in kernel_sources().items()}
    main, flags = FOLDER / "library.cpp", ("-isystem", str(include))
    return compile_library(main, contract_source(OPS), fatbins, flags, headers_version(include))


def compile_library(
    main: Path, contract: str, fatbins: Mapping[str, Path], flags: tuple[str, ...], version: str
) -> Path:
    """The shared library of a C++ file, the text of a contract and embedded `fatbins`; `version` is what else the
    result depends on."""
    compiler = find_compiler()
    written = {
        "deltart_contract.inc": contract,
        "deltart_fatbins.inc": _fatbin_table(fatbins),
        "fatbins.S": _assembly(fatbins),
    }

    def make(folder: Path) -> None:
        for name, text in written.items():
            (folder / name).write_text(text)
        includes = ("-I", str(folder), "-I", str(FOLDER / "cuda"), *flags, f"-Wl,--version-script={EXPORTS}")
        files = (str(main), str(folder / "fatbins.S"), "-ldl", "-o", str(folder / NAME))
        compile_with([compiler, *FLAGS, *includes, *files], main, "headers of TensorRT 10 or later")

    texts = (*written.values(), EXPORTS.read_text())
    return cache.build(main, (compiler, *FLAGS, *flags, version, *texts), make) / NAME


def _fatbin_table(fatbins: Mapping[str, Path]) -> str:
    symbols = "".join(f"extern const unsigned char {_symbol(name)}[];\n" for name in fatbins)
    rows = "".join(f'    {{"{name}", {_symbol(name)}}},\n' for name in fatbins)
    table = f"namespace deltart {{\ninline const Fatbin FATBINS[] = {{\n{rows}}};\n}}  // namespace deltart\n"
    return f'extern "C" {{\n{symbols}}}\n{table}'


def _assembly(fatbins: Mapping[str, Path]) -> str:
    rows = [
        f'.balign 64\n.global {_symbol(name)}\n.hidden {_symbol(name)}\n{_symbol(name)}:\n.incbin "{path}"\n'
        for name, path in fatbins.items()
    ]
    return ".section .rodata\n" + "".join(rows) + '.section .note.GNU-stack,"",@progbits\n'


def _symbol(name: str) -> str:
    return "deltart_" + re.sub(r"\W", "_", name)
