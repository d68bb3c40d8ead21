"""What needs a GPU: the driver calls, single ops as plans, and whole engines against ONNX Runtime. Run with -m gpu."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tokenizers import Tokenizer

from deltart.errors import MissingDependencyError
from deltart.export.pipeline import export_checkpoint
from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from deltart.runtime.backends.cuda import CudaDriver
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.tensorrt import TensorRtBackend
from deltart.runtime.backends.tensorrt_builder import BuildOptions, build_engine
from deltart.runtime.backends.tensorrt_library import installed
from deltart.runtime.inputs import text_inputs
from support.one_op import gpus, run_op

pytestmark = pytest.mark.gpu
NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"
HELDOUT = NANO.parent / "heldout.jsonl"
HEADS = {"num_k_heads": 1, "num_v_heads": 3, "head_k_dim": 128, "head_v_dim": 128}
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def cuda() -> CudaDriver:
    try:
        return CudaDriver()
    except MissingDependencyError as error:
        pytest.skip(f"no GPU: {error}")


def test_copies_and_graphs(cuda: CudaDriver) -> None:
    source, target = cuda.pinned(1000), cuda.pinned(1000)
    address = cuda.allocate(1000)
    source[:] = np.arange(1000) % 251
    cuda.begin_capture()
    cuda.to_device(address, source)
    cuda.to_host(target, address)
    graph = cuda.end_capture()
    for fill in (1, 2):
        source[:10] = fill
        cuda.launch(graph)
        cuda.synchronize()
        np.testing.assert_array_equal(target, source)
    cuda.discard(graph)
    cuda.free(address)


@pytest.mark.parametrize("tokens", [1, 8, 9, 100, 1000])
def test_gated_delta_rule_plan(cuda: CudaDriver, tokens: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(tokens)
    n_tokens = np.array([tokens, tokens // 2], np.int32)
    arrays = [
        rng.standard_normal((2, tokens, 5 * 128)).astype(BF16),
        *(rng.standard_normal((2, tokens, 3)).astype(BF16) for _ in range(2)),
        *(rng.uniform(-1, 1, 3).astype(BF16) for _ in range(2)),
        rng.standard_normal((2, 3, 128, 128)).astype(np.float32),
        n_tokens,
    ]
    wide = [a.astype(np.float64) if a.dtype != np.int32 else a for a in arrays]
    expected, S = GATED_DELTA_RULE.reference(*wide, **HEADS)
    o, state = run_op(cuda, GATED_DELTA_RULE, arrays, HEADS, tmp_path)
    live = np.arange(tokens) < n_tokens[:, None]
    assert relative_rms(o[live], expected[live]) <= TOLERANCE["bf16"]
    assert relative_rms(state, S) <= TOLERANCE["state"]


@pytest.mark.parametrize("tokens", [1, 5, 100])
def test_causal_conv1d_plan(cuda: CudaDriver, tokens: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(tokens)
    n_tokens = np.array([tokens, tokens // 2], np.int32)
    arrays = [rng.standard_normal(s).astype(BF16) for s in ((2, tokens, 256), (256, 1, 4), (2, 3, 256))] + [n_tokens]
    wide = [a.astype(np.float64) if a.dtype != np.int32 else a for a in arrays]
    expected, kept = CAUSAL_CONV1D.reference(*wide)
    y, state = run_op(cuda, CAUSAL_CONV1D, arrays, {}, tmp_path)
    live = np.arange(tokens) < n_tokens[:, None]
    assert relative_rms(y[live], expected[live]) <= TOLERANCE["bf16"]
    assert relative_rms(state, kept) == 0


def test_engine_equals_its_cpu_twin(cuda: CudaDriver, tmp_path: Path) -> None:
    """The trained nano: prefill in pieces, then decode steps that become a CUDA graph. Every op needs its kernel."""
    artifact, flavour = tmp_path / "artifact", installed()[0]
    export_checkpoint(NANO, artifact, for_tensorrt=True)
    build_engine(artifact, BuildOptions(flavour, gpus() if flavour == "rtx" else (), 2, 256, 64))
    try:
        twins = (TensorRtBackend(artifact, flavour, cuda=cuda), OrtBackend(artifact))
        states = [backend.new_state("model", 2, 256) for backend in twins]
        text = " ".join(json.loads(line)["messages"][0]["content"] for line in HELDOUT.read_text().splitlines()[:40])
        ids = np.array(Tokenizer.from_file(str(NANO / "tokenizer.json")).encode(text).ids[:250]).reshape(2, 125)
        past = 0
        for length in (100, 5, *[1] * 20):
            inputs = text_inputs(ids[:, past : past + length], np.full(2, past, np.int32))
            found, expected = (
                backend.run("model", state, inputs, ["logits"])[0] for backend, state in zip(twins, states, strict=True)
            )
            assert relative_rms(found, expected) <= 2e-2
            past += length
    except MissingDependencyError as error:
        pytest.skip(f"the engine can't run yet: {error.found}")
