"""`python -m deltart.plugins build|report`: compiles the kernels, or shows what they take on each target."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deltart.errors import DeltaRTError
from deltart.plugins.toolchain import TARGETS, Built, compile_gpu, sources


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


def main(arguments: list[str]) -> int:
    """Exit code 0, or 2 with a message when something is missing or does not compile."""
    parser = argparse.ArgumentParser(prog="python -m deltart.plugins", description=__doc__)
    parser.add_argument("command", choices=("build", "report"))
    parser.add_argument("--nvcc", type=Path, help="the compiler to use (default: PATH, CUDA_HOME, PyPI wheel)")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="GPU architectures")
    options = parser.parse_args(arguments)
    targets = tuple(t for t in TARGETS if t in options.target)
    try:
        built = [compile_gpu(source, targets, nvcc=options.nvcc) for source in sources()]
    except DeltaRTError as error:
        print(error, file=sys.stderr)
        return 2
    if options.command == "report":
        show(built, targets)
    else:
        for one in built:
            print(f"{one.fatbin}  {one.fatbin.stat().st_size >> 10} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
