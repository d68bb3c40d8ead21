"""A layer of each kind at the width of the 27B model, on native plans over the CPU shim, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
SIZES = dict(hidden=5120, ffn=17408, layers=1, heads=24, kv_heads=4, k_heads=16, v_heads=48, vocab=320)


@pytest.mark.parametrize("stored", [{"quantized": True}, {"int4_group": 128}], ids=["fp8", "int4"])
@pytest.mark.parametrize("kind", ["linear_attention", "full_attention"])
def test_a_layer_of_the_27b_model(kind: str, stored: dict[str, Any], tmp_path: Path) -> None:
    """A call with drafts, then decode steps, the last a captured one. Prompts' kernels would take minutes: their own
    tests have the model's widths."""
    text = text_config(**SIZES, max_position=4096, mtp=False)
    text |= {"layer_types": [kind], "full_attention_interval": 1 if kind == "full_attention" else 4}
    write_checkpoint(causal_lm(text), tmp_path / "checkpoint", dtype="BF16", **stored)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact")
    lower_artifact(tmp_path / "artifact", "native")
    build_engine(tmp_path / "artifact", BuildOptions("native", None, 1, 256, 128))
    gpu = TensorRtBackend(tmp_path / "artifact", "native", cuda=HostCuda())
    twins = Twins(gpu, OrtBackend(tmp_path / "artifact", weights="mapped"), 1, 256)
    rng = np.random.default_rng(0)
    for length in (3, 1, 1):
        ids = rng.integers(0, SIZES["vocab"], (1, length))
        assert twins.call(ids, np.array([length]), np.array([[length - 1]])) <= BAR, length
