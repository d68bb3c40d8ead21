"""`python -m bench.first_run.compile`: every kernel for this machine's GPU, on all cores."""

from __future__ import annotations

import sys
import time

from deltart.errors import DeltaRTError
from deltart.plugins.compilers import in_parallel
from deltart.plugins.loader import GpuDevice
from deltart.plugins.toolchain import compile_for, sources


def main() -> int:
    """0, or 2 where nvcc or the GPU is missing or a source does not compile."""
    began = time.monotonic()
    try:
        capability = GpuDevice().capability
        built = in_parallel(lambda source: compile_for(source, capability), sources(), None)
    except DeltaRTError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(built)} sources for sm_{capability} in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
