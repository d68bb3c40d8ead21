"""A layer of each kind at the width of the 27B model, on native plans over the CPU shim, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.export.targets import lower_artifact
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from support.native_engine import BAR
from support.twins import Twins

pytestmark = pytest.mark.slow
SIZES = dict(hidden=5120, ffn=17408, layers=2, heads=24, kv_heads=4, k_heads=16, v_heads=48, vocab=320)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    text = text_config(**SIZES, max_position=4096, mtp=False)
    text |= {"layer_types": ["linear_attention", "full_attention"], "full_attention_interval": 2}
    write_checkpoint(causal_lm(text), folder / "checkpoint", quantized=True, dtype="BF16")
    export_checkpoint(folder / "checkpoint", folder / "artifact")
    lower_artifact(folder / "artifact", "native")
    build_engine(folder / "artifact", BuildOptions("native", None, 1, 256, 128))
    return folder / "artifact"


def test_a_prompt_and_decode_steps(artifact: Path) -> None:
    """66 tokens take the kernels of prompts; 3 those of drafts; 1 decode's."""
    gpu = TensorRtBackend(artifact, "native", cuda=HostCuda())
    twins, rng = Twins(gpu, OrtBackend(artifact, weights="mapped"), 1, 256), np.random.default_rng(0)
    for length in (66, 3, 1):
        ids = rng.integers(0, SIZES["vocab"], (1, length))
        assert twins.call(ids, np.array([length]), np.array([[length - 1]])) <= BAR, length
