"""Checkpoints in packed int4 against transformers with the unpacked weights: logits, greedy tokens, mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

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
from deltart.verify.tolerances import tolerances
from support.packed import Packer, in_int4, scheme, words_of
from support.saved import LINEARS, flat, model_of, save, state_of, text

TOLERANCE = 1e-4
RANDOM_MODEL = 2e-2  # relative RMS of logits that bfloat16 activations cost
SMALL = ["re:.*in_proj_[ab]$"]
# name: (group size, scales, packed leaves, ignore list, changes of the config)
CASES = {
    "group-128": (128, torch.bfloat16, LINEARS, ["lm_head", *SMALL], {}),
    "group-32-and-head": (32, torch.float16, (*LINEARS, "lm_head"), SMALL, {}),
    "mixed": (32, torch.bfloat16, LINEARS[:5], ["lm_head", *SMALL, "re:.*mlp.*", "re:.*\\.[ov]_proj"], {}),
    "tied": (64, torch.float32, LINEARS, ["lm_head", *SMALL], {"tie_word_embeddings": True}),
}

FAST = ("group-32-and-head",)


@dataclass(frozen=True)
class Packed:
    """A packed checkpoint, its artifact, and transformers' model of what it stands for."""

    checkpoint: Path
    artifact: Path
    model: PreTrainedModel


def packed(
    folder: Path,
    case: str,
    pack: Packer = words_of,
    rounded: torch.dtype | None = None,
    rest: torch.dtype = torch.bfloat16,
) -> Packed:
    """`rounded` stores the scales in that type, and what isn't packed in `rest`."""
    group_size, scales, leaves, ignore, changes = CASES[case]
    scales = rounded or scales
    config = text(hidden_size=256, intermediate_size=384, linear_key_head_dim=128, linear_value_head_dim=64)
    config |= {"head_dim": 64, "rope_parameters": config["rope_parameters"] | {"mrope_section": [4, 2, 2]}} | changes
    model = model_of(config)
    state = {name: t.to(rest).float() for name, t in state_of(model).items()} if rounded else state_of(model)
    stored, plain = in_int4(state, leaves, group_size, scales, pack)
    if rounded:
        stored = {name: t.to(rest) if t.dtype == torch.float32 else t for name, t in stored.items()}
    checkpoint = save(folder / "checkpoint", flat(config) | {"quantization_config": scheme(group_size, ignore)}, stored)
    missing, unexpected = model.load_state_dict(plain, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    export_checkpoint(checkpoint, folder / "artifact")
    return Packed(checkpoint, folder / "artifact", model)


@pytest.fixture(
    scope="module", params=[pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES]
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed(tmp_path_factory.mktemp("int4"), request.param)


def logits(backend: OrtBackend, state: OrtState, ids: np.ndarray, past: int = 0) -> np.ndarray:
    everywhere = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    inputs = text_inputs(ids, past_len=np.full(len(ids), past, np.int32), logit_index=everywhere)
    return backend.run("model", state, inputs, ["logits"])[0]


@pytest.mark.parametrize("target", ["portable", "ort"])
def test_logits_equal_transformers(made: Packed, target: str) -> None:
    for mode in ("folded", "mapped"):
        backend = OrtBackend(made.artifact, target, weights=mode)
        for length in (1, 7, 65):
            ids = np.random.default_rng(length).integers(0, 300, (2, length))
            with torch.no_grad():
                expected = made.model(torch.from_numpy(ids)).logits.numpy()
            found = logits(backend, backend.new_state("model", 2, 80), ids)
            assert np.abs(found - expected).max() <= TOLERANCE


def test_64_greedy_tokens_equal_transformers(made: Packed) -> None:
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


def test_every_tensor_has_a_fate_and_no_byte_is_copied(made: Packed) -> None:
    manifest = load_manifest(made.artifact)
    entries = manifest.tensors
    groups = [name for name in entries if name.endswith(".weight_groups")]
    shapes = [name for name, entry in entries.items() if entry.fate == "deferred"]
    assert groups and sorted(shapes) == sorted(name.replace("_groups", "_shape") for name in groups)
    assert not any(name.endswith(".weight_packed") for name in entries)
    weight = made.checkpoint / "model.safetensors"
    assert (made.artifact / "weights" / "model.safetensors").stat().st_ino == weight.stat().st_ino


def test_int8_activations_are_near_labelled_and_no_default(made: Packed, tmp_path: Path) -> None:
    manifest = export_checkpoint(made.checkpoint, tmp_path / "artifact", int4_activations="int8")
    assert (manifest.int4_activations, load_manifest(made.artifact).int4_activations) == ("int8", "exact")
    ids = np.random.default_rng(1).integers(0, 300, (1, 40))
    exact, rounded, portable = (
        logits(backend, backend.new_state("model", 1, 40), ids)
        for backend in (
            OrtBackend(made.artifact),
            OrtBackend(tmp_path / "artifact"),
            OrtBackend(tmp_path / "artifact", "portable"),
        )
    )
    assert np.abs(portable - exact).max() <= TOLERANCE
    assert 1e-3 < relative_rms(rounded, exact) < 0.1
    assert tolerances("bf16", manifest.int4_activations)["ort"] > tolerances("bf16")["ort"]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "scales"), [*((case, torch.bfloat16) for case in CASES), ("mixed", torch.float16)])
def test_native_plans_compute_the_same(case: str, scales: torch.dtype, tmp_path: Path) -> None:
    """Every kernel on the CPU shim: packed and BF16 linears side by side, a packed head."""
    made = packed(tmp_path, case, rounded=scales)
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


@pytest.mark.slow
def test_what_is_not_packed_has_no_kernel_in_float16(tmp_path: Path) -> None:
    """Scales have: they are not what is named."""
    made = packed(tmp_path, "group-32-and-head", rounded=torch.float16, rest=torch.float16)
    with pytest.raises(BuildError, match="stored in float16") as refused:
        lower_artifact(made.artifact, "native")
    assert "weight_scale" not in str(refused.value)


@pytest.mark.slow
def test_what_compressed_tensors_packs_and_unpacks(tmp_path: Path) -> None:
    """The library's own packer writes the checkpoint, and its own dequantization is what the weights stand for."""
    library = pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors: it packs the weights")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")

    def pack(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        words = helpers.pack_to_int32(integers, 4)
        assert torch.equal(helpers.unpack_from_int32(words, 4, integers.shape), integers)
        return words

    config = library.quantization.QuantizationConfig.model_validate(scheme(128, ["lm_head"]))
    assert config.config_groups["group_0"].weights.group_size == 128
    made = packed(tmp_path, "group-128", pack)
    backend = OrtBackend(made.artifact)
    ids = np.random.default_rng(3).integers(0, 300, (2, 33))
    with torch.no_grad():
        expected = made.model(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(logits(backend, backend.new_state("model", 2, 40), ids) - expected).max() <= TOLERANCE
