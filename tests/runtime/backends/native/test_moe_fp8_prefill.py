"""A sparse model on native plans whose prefill rounds activations to E4M3, on the CPU shim."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deltart.cli import main
from deltart.export.targets import lower_artifact
from deltart.plugins.cpu_shim.host_cuda import HostCuda, HostLimits
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.verify.fp8_prefill import Fp8PrefillBackend
from deltart.verify.runners import backend_points
from deltart.verify.tolerances import FP8_PREFILL, NATIVE_ON_SHIM, TWIN_SHARE
from support.cases import Export

TOKENS = 24


def points(backend: TensorRtBackend | OrtBackend | Fp8PrefillBackend) -> dict[str, np.ndarray]:
    """Of a prompt, and of one token behind it."""
    ids = np.random.default_rng(0).integers(0, 256, TOKENS + 1)
    return backend_points(backend, [], TOKENS, mtp=False)(ids)


@pytest.mark.slow
def test_experts_round_activations_where_the_gpu_multiplies_them(exported: Export, tmp_path: Path) -> None:
    """A random model's hidden states are off by what routes that flip make of it, those of the twin's too."""
    artifact = Path(shutil.copytree(exported("moe-fp8").artifact, tmp_path / "artifact", symlinks=True))
    lower_artifact(artifact, "native")
    build_engine(artifact, BuildOptions("native", None, 1, 64, 32, prefill_activations="fp8"))
    exact = points(OrtBackend(artifact))["hidden"][:TOKENS]
    errors = {0: relative_rms(points(Fp8PrefillBackend(artifact))["hidden"][:TOKENS], exact)}
    for capability in (89, 90):
        limits = HostLimits(shared_limit=227 << 10, capability=capability)
        found = points(TensorRtBackend(artifact, "native", cuda=HostCuda(limits)))
        errors[capability] = relative_rms(found["hidden"][:TOKENS], exact)
    assert all(5e-3 < one < TWIN_SHARE * errors[0] for one in errors.values()), errors


@pytest.mark.slow
def test_verify_compares_with_a_twin(exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = Path(shutil.copytree(exported("moe-fp8").artifact, tmp_path / "artifact", symlinks=True))
    lower_artifact(artifact, "native")
    build_engine(artifact, BuildOptions("native", None, 1, 64, 32))
    capsys.readouterr()
    main(["verify", str(artifact), "--tokens", str(TOKENS), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["twins"] == {NATIVE_ON_SHIM: FP8_PREFILL} and report["passed"]
