"""Checkpoints of several compressed-tensors schemes in one file against transformers: logits, greedy tokens, fates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from deltart.artifact import load_manifest
from deltart.errors import BuildError
from deltart.export.pipeline import export_checkpoint
from deltart.export.targets import lower_artifact
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend, OrtState
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.verify.reference import ReferenceModel
from support.compressed import (
    ATTENTION,
    BLOCK,
    CHANNEL,
    DELTA_NET,
    INT4,
    MLP,
    quantization,
    stored,
    written_by_the_library,
)  # fmt: skip
from support.saved import LINEARS, Config, flat, model_of, save, state_of, text

TOLERANCE, RANDOM_MODEL = 1e-4, 2e-2  # of logits; relative RMS that bfloat16 activations cost
# What is stored how, and whether the config quantizes activations too.
CASES: dict[str, tuple[Mapping[str, str], bool]] = {
    "int4-mlp-block-rest": ({MLP: INT4, "Linear": BLOCK}, False),
    "int4-rows-and-blocks": ({ATTENTION: CHANNEL, DELTA_NET: INT4, "Linear": BLOCK}, False),
    "block-alone": ({"Linear": BLOCK}, False),
    "presets": ({"re:.*down_proj": INT4, MLP: CHANNEL, "Linear": BLOCK}, True),
}


def config() -> Config:
    """Widths that are no multiples of 128 but where int4 groups need it."""
    made = text(hidden_size=256, intermediate_size=416, linear_key_head_dim=128, linear_value_head_dim=64)
    return made | {"head_dim": 64, "rope_parameters": made["rope_parameters"] | {"mrope_section": [4, 2, 2]}}


@dataclass(frozen=True)
class Made:
    """A checkpoint, its artifact, and transformers' model of it."""

    checkpoint: Path
    artifact: Path
    model: Any


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    kinds, activations = CASES[request.param]
    folder = tmp_path_factory.mktemp("compressed")
    checkpoint = written_by_the_library(folder / "checkpoint", config(), kinds, activations)
    export_checkpoint(checkpoint, folder / "artifact")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    for module in model.modules():
        module.quantization_enabled = False  # of activations, whose rounding is the runtime's business
    return Made(checkpoint, folder / "artifact", model)


def logits(backend: OrtBackend, state: OrtState, ids: np.ndarray, past: int = 0) -> np.ndarray:
    everywhere = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    inputs = text_inputs(ids, past_len=np.full(len(ids), past, np.int32), logit_index=everywhere)
    return backend.run("model", state, inputs, ["logits"])[0]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["portable", "ort"])
def test_logits_equal_transformers(made: Made, target: str) -> None:
    for mode in ("folded", "mapped"):
        backend = OrtBackend(made.artifact, target, weights=mode)
        for length in (1, 7, 65):
            ids = np.random.default_rng(length).integers(0, 300, (2, length))
            with torch.no_grad():
                expected = made.model(torch.from_numpy(ids)).logits.numpy()
            found = logits(backend, backend.new_state("model", 2, 80), ids)
            assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.slow
def test_64_greedy_tokens_equal_transformers(made: Made) -> None:
    prompt = np.random.default_rng(0).integers(0, 300, (1, 13))
    made.model.generation_config.eos_token_id = None
    with torch.no_grad():
        expected = made.model.generate(torch.from_numpy(prompt), max_new_tokens=64, do_sample=False, pad_token_id=0)
    backend = OrtBackend(made.artifact)
    state, ids, tokens = backend.new_state("model", 1, 80), prompt, list[int]()
    for _ in range(64):
        tokens.append(int(logits(backend, state, ids, len(prompt[0]) + len(tokens) - ids.shape[1])[0, -1].argmax()))
        ids = np.array([tokens[-1:]])
    assert tokens == expected[0, 13:].tolist()


@pytest.mark.slow
def test_every_tensor_has_a_fate_and_no_byte_is_copied(made: Made) -> None:
    entries = load_manifest(made.artifact).tensors
    deferred = {name for name, entry in entries.items() if entry.fate == "deferred"}
    assert deferred == {name.replace("_groups", "_shape") for name in entries if name.endswith(".weight_groups")}
    assert {entry.dtype for entry in entries.values()} >= {"F8_E4M3", "F32"}
    weight = made.checkpoint / "model.safetensors"
    assert (made.artifact / "weights" / "model.safetensors").stat().st_ino == weight.stat().st_ino


@pytest.mark.slow
def test_the_reference_of_verify_reads_it_too(made: Made) -> None:
    ids = np.random.default_rng(5).integers(0, 300, 21)
    with torch.no_grad():
        expected = made.model(torch.from_numpy(ids[None])).logits[0].numpy()
    found = ReferenceModel(load_manifest(made.artifact)).points(ids)["logits"]
    assert np.abs(found - expected).max() <= TOLERANCE


LEAVES = {INT4: LINEARS[7:], BLOCK: LINEARS[:3], CHANNEL: LINEARS[3:7]}
KINDS = {MLP: INT4, DELTA_NET: BLOCK, ATTENTION: CHANNEL}


def described(folder: Path, leaves: Mapping[str, tuple[str, ...]], kinds: Mapping[str, str]) -> Made:
    """A checkpoint by the description of the format, all else and the scales in bfloat16."""
    model = model_of(config())
    state = {name: tensor.bfloat16().float() for name, tensor in state_of(model).items()}
    tensors, plain = stored(state, leaves, torch.bfloat16)
    tensors = {name: t.bfloat16() if t.dtype == torch.float32 else t for name, t in tensors.items()}
    described = flat(config()) | {"quantization_config": quantization(kinds)}
    checkpoint = save(folder / "checkpoint", described, tensors)
    model.load_state_dict(plain)
    export_checkpoint(checkpoint, folder / "artifact")
    return Made(checkpoint, folder / "artifact", model)


def test_int4_blocks_and_rows_in_one_file(tmp_path: Path) -> None:
    made = described(tmp_path, LEAVES, KINDS)
    ids = np.random.default_rng(2).integers(0, 300, (1, 19))
    with torch.no_grad():
        expected = made.model(torch.from_numpy(ids)).logits.numpy()
    for target in ("portable", "ort"):
        backend = OrtBackend(made.artifact, target)
        assert np.abs(logits(backend, backend.new_state("model", 1, 32), ids) - expected).max() <= TOLERANCE
    with pytest.raises(BuildError, match="a scale per row, which no kernel for GPUs reads"):
        lower_artifact(made.artifact, "native")


@pytest.mark.slow
def test_native_plans_compute_the_same(tmp_path: Path) -> None:
    """int4 and block FP8 side by side, every kernel on the CPU shim."""
    made = described(tmp_path, {INT4: LINEARS[5:], BLOCK: LINEARS[:5]}, {
        MLP: INT4, "re:.*[vo]_proj": INT4, "Linear": BLOCK})  # fmt: skip
    lower_artifact(made.artifact, "native")
    build_engine(made.artifact, BuildOptions("native", None, 2, 128, 96))
    backend = TensorRtBackend(made.artifact, "native", cuda=HostCuda())
    for length in (1, 9, 80):
        ids = np.random.default_rng(length).integers(0, 300, (2, length))
        with torch.no_grad():
            expected = made.model(torch.from_numpy(ids)).logits.numpy()[:, -1:]
        inputs = text_inputs(ids, np.zeros(2, np.int32), logit_index=np.full((2, 1), length - 1))
        found = backend.run("model", backend.new_state("model", 2, 96), inputs, ["logits"])[0]
        assert relative_rms(found, expected) <= RANDOM_MODEL
