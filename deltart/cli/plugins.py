"""deltart plugins: the CUDA kernels compiled, what they take on each target, and the C++ library with them inside."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from deltart.cli import cache_option
from deltart.cli.guard import say
from deltart.errors import MissingDependencyError
from deltart.files import replacing
from deltart.plugins.compilers import in_parallel
from deltart.plugins.toolchain import TARGETS, Built, compile_gpu, sources

HOMES = ("TENSORRT_HOME", "TENSORRT_ROOT", "TRT_ROOT")  # environment variables of an unpacked TensorRT
MISSING = 3  # exit code where something to build with is not installed


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plugins", help="compile the CUDA kernels, show what they take, or build the C++ plugin library",
        description=__doc__,
    )  # fmt: skip
    parser.add_argument(
        "action",
        choices=("build", "report", "native"),
        help="build: compile every kernel; report: their registers and spills; native: the C++ plugin library",
    )
    parser.add_argument(
        "--artifact",
        type=Path,
        metavar="DIR",
        help="only the kernels that its built plans call (default: every kernel)",
    )
    parser.add_argument("--nvcc", type=Path, help="the compiler to use (default: PATH, CUDA_HOME, PyPI wheel)")
    names = " ".join(f"sm_{target}" for target in TARGETS)
    parser.add_argument("--gpu", nargs="+", type=_gpu, default=TARGETS, metavar="SM", help=f"of {names} (default: all)")
    native = parser.add_argument_group("native")
    native.add_argument(
        "--include", type=Path, metavar="DIR", help=f"folder of NvInfer.h (default: {', '.join(HOMES)}, the system's)"
    )
    native.add_argument("-o", "--output", type=Path, metavar="FILE", help="copy the library there")
    cache_option.add(parser)
    parser.set_defaults(run=run, extra="kernels")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0, or with a message 3 when something is missing. Raises BuildError when something does not compile."""
    targets = tuple(t for t in TARGETS if t in arguments.gpu)
    called = called_sources(arguments.artifact) if arguments.artifact else sources()
    try:
        if arguments.action == "native":
            build_native(arguments, targets)
            return 0
        built = compile_all(called, targets, arguments.nvcc)
    except MissingDependencyError as error:
        return say(f"error: {error}", MISSING)
    if arguments.action == "report":
        show(built, targets)
    else:
        for one in built:
            print(f"{one.fatbin}  {one.fatbin.stat().st_size >> 10} KiB")
    return 0


def show(built: list[Built], targets: tuple[str, ...]) -> None:
    """One row per kernel: registers on each target, spilled bytes behind a `+` where there are any."""
    cells: dict[str, dict[str, str]] = {}
    for row in (row for one in built for row in one.resources):
        spilled = row.spill_stores + row.spill_loads
        cells.setdefault(row.kernel, {})[row.target] = f"{row.registers}" + (f"+{spilled}" if spilled else "")
    width = max(map(len, cells))
    print("registers (+spilled bytes)".ljust(width), *(f"sm_{t:>4}" for t in targets))
    for kernel, by_target in cells.items():
        print(kernel.ljust(width), *(f"{by_target[t]:>7}" for t in targets))


def compile_all(called: list[Path], targets: tuple[str, ...], nvcc: Path | None) -> list[Built]:
    """Every source of `called`, as many at a time as there are cores."""
    return in_parallel(lambda source: compile_gpu(source, targets, nvcc=nvcc), called, os.cpu_count())


def called_sources(artifact: Path) -> list[Path]:
    """The kernel sources that the artifact's plans call, of every flavour that was built, and what its engines launch
    besides.

    Raises:
        ArtifactError: it has no plans.
    """
    from deltart.plugins.kernel_call import kernel_of
    from deltart.plugins.registry import NATIVE_OPS, OPS
    from deltart.runtime.backends.gpu import decode, lm_head
    from deltart.runtime.backends.gpu.engine_manifest import built_engines

    engines, specs = built_engines(artifact), {spec.name: spec for spec in (*OPS, *NATIVE_OPS)}
    names = {name for engine in engines for plan in engine.plans.values() for name in plan.plugins}
    kernels = [kernel_of(specs[name]) for name in names]
    found = {kernel.folder / source for kernel in kernels for source in kernel.sources} | {decode.SOURCE.resolve()}
    if any(engine.lm_head is not None for engine in engines):
        found.add(lm_head.SOURCE)
    return sorted(found)


def build_native(options: argparse.Namespace, targets: tuple[str, ...]) -> None:
    """Builds the plugin library and says where it is."""
    from deltart.plugins.native.library import build_library, find_headers, headers_version

    homes = [Path(os.environ[name]) for name in HOMES if os.environ.get(name)]
    include = find_headers([options.include] if options.include else homes)
    library = build_library(include, targets, options.nvcc)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.output) as partial:
            shutil.copyfile(library, partial)
        library = options.output
    print(f"{library}  {library.stat().st_size >> 10} KiB, headers {headers_version(include)} of {include}")


def _gpu(name: str) -> str:
    """One of TARGETS, by "sm_90a" or "90a"."""
    target = name.removeprefix("sm_")
    if target not in TARGETS:
        raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(f'sm_{t}' for t in TARGETS)}")
    return target
