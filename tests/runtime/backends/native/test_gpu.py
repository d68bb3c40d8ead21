"""What needs a GPU: the trained nano on native plans there, against its twins. Run with -m gpu; needs no TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deltart.errors import MissingDependencyError
from deltart.plugins.cpu_shim.host_cuda import HostCuda, HostLimits
from deltart.plugins.tolerance import TOLERANCE
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.cuda import CudaDriver
from deltart.verify.runners import backend_points
from support.native_engine import BAR, heldout_ids
from support.twins import error

pytestmark = pytest.mark.gpu
STORED = ("bf16", "fp8")
Nano = Callable[[str], Path]


@pytest.fixture(scope="module")
def cuda() -> CudaDriver:
    for package in ("onnx", "onnxscript", "onnxruntime", "polygraphy"):
        pytest.importorskip(package)
    try:
        return CudaDriver()
    except MissingDependencyError as reason:
        pytest.skip(f"no GPU: {reason}")


@pytest.mark.parametrize("stored", STORED)
def test_every_block_equals_its_twin(cuda: CudaDriver, native_nano: Nano, stored: str) -> None:
    from deltart.verify import tensorrt_exposed as exposed
    from deltart.verify.exposed import ExposedBackend

    gpu, ids = TensorRtBackend(native_nano(stored), "native", cuda=cuda), heldout_ids(200)
    twin = ExposedBackend(gpu.artifact)
    found = backend_points(gpu, exposed.points(gpu.engine), 150, exposed.GRAPH, mtp=True)(ids)
    expected = backend_points(twin, twin.points, 150)(ids)
    errors = {point: error(found[point], expected[point]) for point in found if not point.startswith("mtp.")}
    assert max(errors.values()) <= BAR, errors


@pytest.mark.parametrize("stored", STORED)
def test_the_chip_computes_what_the_shim_does(cuda: CudaDriver, native_nano: Nano, stored: str) -> None:
    """The same launches of the same kernels: only the order inside a tensor core's sums may differ."""
    limits = HostLimits(cuda.limits.shared_limit, cuda.limits.capability, cuda.limits.multiprocessors)
    gpu, shim = (TensorRtBackend(native_nano(stored), "native", cuda=c) for c in (cuda, HostCuda(limits)))
    ids = heldout_ids(40)
    found, expected = (backend_points(backend, [], 32)(ids) for backend in (gpu, shim))
    assert error(found["logits"], expected["logits"]) <= 3 * TOLERANCE["bf16"]


def test_a_captured_step_is_the_plain_one(cuda: CudaDriver, native_nano: Nano, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, states included: the last step reads what all others wrote."""
    from deltart.runtime.backends.native.executor import NativeExecutor

    ids, results = heldout_ids(40), []
    for captured in (True, False):
        if not captured:
            monkeypatch.setattr(NativeExecutor, "capturable", lambda self, stream: False)
        results.append(backend_points(TensorRtBackend(native_nano("fp8"), "native", cuda=cuda), [], 20)(ids))
    for point, array in results[0].items():
        np.testing.assert_array_equal(results[1][point], array, point)
