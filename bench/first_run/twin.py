"""`python -m bench.first_run.twin ARTIFACT...`: native engines on this GPU against what their CPU twins left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
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


def main(artifacts: Sequence[Path]) -> int:
    """0; 1 where a point is further off than engines may be; 2 if something is missing."""
    return max([_main(artifact) for artifact in artifacts])


def _main(artifact: Path) -> int:
    began = time.monotonic()
    try:
        errors = compare(artifact, CudaDriver())
    except DeltaRTError as error:
        print(f"{artifact.name}: {error}", file=sys.stderr)
        return 2
    wrong = [point for point, error in errors.items() if not error <= allowed(BAR, point)]
    for point, error in errors.items():
        print(f"{point:12} {error:.1e}{'  TOO LARGE' if point in wrong else ''}")
    verdict = "FAILED" if wrong else "equal"
    print(f"{artifact.name}: {verdict} within {BAR:g}, {time.monotonic() - began:.1f} s", flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main([Path(word) for word in sys.argv[1:]]))
