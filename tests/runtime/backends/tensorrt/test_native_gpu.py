"""What needs a GPU: plans that run through the C++ plugin library. Run with -m gpu (--tensorrt-include DIR)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltart.errors import MissingDependencyError
from deltart.export.pipeline import export_checkpoint
from deltart.export.targets import lower_artifact
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.native.library import build_library
from deltart.plugins.toolchain import PTX, TARGETS
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.cuda import CudaDriver, device_name
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.runtime.backends.tensorrt.builder.makers import PRESENT_GPU
from deltart.runtime.backends.tensorrt.library import installed, load_tensorrt
from support.one_op import HEADS, check_gated_delta_rule, run_op

pytestmark = pytest.mark.gpu
NANO = Path(__file__).resolve().parents[4] / "tools" / "nano" / "checkpoint"


@pytest.fixture(scope="module")
def cuda() -> CudaDriver:
    try:
        return CudaDriver()
    except MissingDependencyError as error:
        pytest.skip(f"no GPU: {error}")


@pytest.fixture(scope="module")
def library(cuda: CudaDriver, tensorrt_include: Path) -> Path:
    """With kernels for this GPU alone."""
    here = device_name().split()[-1].removeprefix("sm_")
    return build_library(tensorrt_include, tuple(t for t in TARGETS if t.rstrip("a") == here) or (PTX,))


@pytest.mark.parametrize("tokens", [1, 8, 9, 1000])
def test_gated_delta_rule_plan(cuda: CudaDriver, library: Path, tokens: int, tmp_path: Path) -> None:
    """Against float64, and against the Python class bit for bit: they launch the same kernels."""
    arrays, o, state = check_gated_delta_rule(cuda, tokens, tmp_path, library)
    other, other_state = run_op(cuda, GATED_DELTA_RULE, arrays, HEADS, tmp_path)
    live = np.arange(tokens) < np.array([tokens, tokens // 2])[:, None]
    np.testing.assert_array_equal(o.view(np.uint16), other[live].view(np.uint16))
    np.testing.assert_array_equal(state, other_state)


@pytest.mark.parametrize("built_with_library", [False, True])
def test_either_runs_the_plans_of_the_other(
    cuda: CudaDriver, library: Path, built_with_library: bool, tmp_path: Path
) -> None:
    """The trained nano: a prefill, then decode steps that become a CUDA graph; equal logits from both."""
    artifact, flavour = tmp_path / "artifact", installed()[0]
    export_checkpoint(NANO, artifact)
    lower_artifact(artifact, "tensorrt")
    options = BuildOptions(flavour, (PRESENT_GPU,), 2, 256, 64, plugins=library if built_with_library else None)
    build_engine(artifact, options)
    results = []
    for plugins in (library, None):
        backend = TensorRtBackend(artifact, flavour, cuda=cuda, plugins=plugins)
        state, ids = backend.new_state("model", 2, 256), np.random.default_rng(0).integers(0, 200, (2, 110))
        steps, past = [], 0
        for length in (100, *[1] * 10):
            inputs = text_inputs(ids[:, past : past + length], np.full(2, past, np.int32))
            steps.append(backend.run("model", state, inputs, ["logits"])[0])
            past += length
        results.append(steps)
    for mine, other in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, other)
    load_tensorrt(flavour)
