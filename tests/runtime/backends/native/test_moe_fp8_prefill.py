"""A sparse model on native plans whose prefill rounds activations to E4M3, on the CPU shim."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from deltart.export.targets import lower_artifact
from deltart.plugins.cpu_shim.host_cuda import HostCuda, HostLimits
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.verify.runners import backend_points
from support.cases import Export

TOKENS = 24


def points(backend: TensorRtBackend | OrtBackend) -> dict[str, np.ndarray]:
    """Of a prompt, and of one token behind it."""
    ids = np.random.default_rng(0).integers(0, 256, TOKENS + 1)
    return backend_points(backend, [], TOKENS, mtp=False)(ids)


@pytest.mark.slow
def test_experts_round_activations_where_the_gpu_multiplies_them(exported: Export, tmp_path: Path) -> None:
    """A random model's hidden states are off by what routes that flip make of it; sm_90 leaves the experts alone."""
    artifact = Path(shutil.copytree(exported("moe-fp8").artifact, tmp_path / "artifact", symlinks=True))
    lower_artifact(artifact, "native")
    build_engine(artifact, BuildOptions("native", None, 1, 64, 32, prefill_activations="fp8"))
    exact, errors = points(OrtBackend(artifact)), {}
    for capability in (89, 90):
        limits = HostLimits(shared_limit=227 << 10, capability=capability)
        found = points(TensorRtBackend(artifact, "native", cuda=HostCuda(limits)))
        errors[capability] = relative_rms(found["hidden"][:TOKENS], exact["hidden"][:TOKENS])
    assert errors[89] != errors[90] and all(5e-3 < one < 0.3 for one in errors.values()), errors
