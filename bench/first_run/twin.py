"""`python -m bench.first_run.twin ARTIFACT`: the native engine on this GPU against what its CPU twin left in a file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from deltart.errors import DeltaRTError
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.cuda import Cuda, CudaDriver
from deltart.verify.runners import backend_points
from deltart.verify.tolerances import TOLERANCES, allowed

TWIN = "twin.npz"  # in the artifact
EXPOSED = "exposed"  # the graph that returns every block's state
IDS, PREFILL, CONTEXT = 200, 150, 512
BAR = TOLERANCES["engine"]


def compare(artifact: Path, cuda: Cuda) -> dict[str, float]:
    """Relative RMS by point: a prompt in one call, then captured decode steps, the MTP head over all of it."""
    with np.load(artifact / TWIN) as kept:
        expected = {name: kept[name] for name in kept.files}
    ids, prefill = expected.pop("ids"), int(expected.pop("prefill"))
    backend = TensorRtBackend(artifact, "native", cuda=cuda)
    blocks = [point for point in expected if point.endswith(".h")]
    found = backend_points(backend, blocks, prefill, EXPOSED, mtp=True)(ids)
    return {point: float(relative_rms(found[point], expected[point])) for point in expected}


def main(artifact: Path) -> int:
    """0; 1 where a point is further off than engines may be; 2 if something is missing."""
    began = time.monotonic()
    try:
        errors = compare(artifact, CudaDriver())
    except DeltaRTError as error:
        print(error, file=sys.stderr)
        return 2
    wrong = [point for point, error in errors.items() if not error <= allowed(BAR, point)]
    for point, error in errors.items():
        print(f"{point:12} {error:.1e}{'  TOO LARGE' if point in wrong else ''}")
    print(f"{'FAILED' if wrong else 'equal'} within {BAR:g}, {time.monotonic() - began:.1f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
