"""Native engines whose LM head is E4M3, on the CPU shim, against ONNX Runtime with the same rounded head."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltart.artifact import load_manifest
from deltart.cli import main
from deltart.cli.build import _head
from deltart.errors import BuildError
from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.export.targets import lower_artifact
from deltart.manifest import GraphEntry
from deltart.plugins.cpu_shim.host_cuda import HostCuda, memory
from deltart.plugins.lm_head.reference import dequantized, quantize
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.base import ServingBackend
from deltart.runtime.backends.gpu import lm_head
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.engine_manifest import load_engine
from deltart.runtime.backends.native.builder import lm_head as native_head
from deltart.runtime.backends.native.builder.lm_head import quantized_head, with_fp8_head
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.runtime.backends.weights import MappedWeights
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.verify.runners import backend_points, read_prompts
from support.native_engine import BAR, HELDOUT, NANO, heldout_ids

Nano = Callable[[str], Path]
HEAD = "lm_head.weight"
FP8 = BuildOptions("native", None, 2, 160, 32, "bf16", lm_head="fp8")


@pytest.fixture(scope="module")
def artifact(native_nano: Nano, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano in FP8, its head too."""
    folder = tmp_path_factory.mktemp("head") / "artifact"
    shutil.copytree(native_nano("fp8"), folder, symlinks=True)
    shutil.rmtree(folder / "engine")
    build_engine(folder, FP8)
    return folder


@pytest.fixture(scope="module")
def rounded(native_nano: Nano, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint with the head's values as they are behind the rounding, in float32."""
    folder = tmp_path_factory.mktemp("rounded")
    shutil.copytree(native_nano("fp8").parent / "checkpoint", folder / "checkpoint")
    (file,) = [path for path in (folder / "checkpoint").glob("*.safetensors") if HEAD in _names(path)]
    tensors = load_file(file)
    tensors[HEAD] = torch.from_numpy(dequantized(*quantize(tensors[HEAD].float().numpy()))).float()
    save_file(tensors, file)
    export_checkpoint(folder / "checkpoint", folder / "artifact")
    return folder / "artifact"


def _names(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    names: dict[str, object] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return names


def replies(backend: ServingBackend, drafts: int) -> list[list[int]]:
    greedy = SamplingParams(temperature=0, max_new_tokens=12)
    options = EngineOptions(slots=2, draft_tokens=drafts, cache_bytes=0)
    with Engine(backend, Tokenizer.from_folder(NANO), None, options) as serving:
        prompts = read_prompts(HELDOUT, NANO, 3)
        asked = [serving.submit(serving.request(prompt, greedy)) for prompt in prompts]
        return [handle.result()[0].drawn for handle in asked]


def test_tokens_are_those_of_the_rounded_head(artifact: Path, rounded: Path) -> None:
    """By the device's sampler, and with drafts, which the MTP head draws by the same rounded head."""
    gpu, cpu = TensorRtBackend(artifact, "native", cuda=HostCuda()), OrtBackend(rounded)
    expected = replies(cpu, 0)
    for drafts in (0, 2):
        assert replies(gpu, drafts) == expected


def test_logits_are_those_of_the_rounded_head(artifact: Path, rounded: Path) -> None:
    ids = heldout_ids(40)
    gpu = backend_points(TensorRtBackend(artifact, "native", cuda=HostCuda()), [], 30)(ids)
    cpu = backend_points(OrtBackend(rounded), [], 30)(ids)
    exact = backend_points(OrtBackend(artifact), [], 30)(ids)
    for point in ("logits", "mtp.logits"):
        mine, others = relative_rms(gpu[point], cpu[point]), relative_rms(exact[point], cpu[point])
        assert mine <= BAR and mine < others / 2, (point, mine, others)


def test_the_device_has_the_head_once(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its codes and scales are the reference's, however many pieces it came in; the bfloat16 head is not there."""
    head, manifest = load_engine(artifact, "native").lm_head, load_manifest(artifact)
    assert head is not None and head.weight == HEAD
    stored = MappedWeights(artifact, manifest)
    expected = dict(zip((head.codes, head.scale), quantize(stored[HEAD]), strict=True))
    for pieces in (lm_head.BUFFER_BYTES, 100 * 2 * 256):
        cuda = HostCuda()
        monkeypatch.setattr(lm_head.load_quantized, "__defaults__", (pieces,))
        backend = TensorRtBackend(artifact, "native", cuda=cuda)
        assert HEAD not in backend.weights
        for name, right in expected.items():
            found = memory(backend.weights[name], right.nbytes)
            np.testing.assert_array_equal(found, right.reshape(-1).view(np.uint8))
        weights = sum(manifest.tensors[n].nbytes for n in backend.weights if n not in expected)
        held = sum(len(block) for block in cuda.blocks.values())
        assert held < 1.02 * (weights + sum(one.nbytes for one in expected.values()))


def test_the_error_is_measured_and_said(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = load_engine(artifact, "native").lm_head
    assert head is not None and head.relative_rms is not None
    stored = MappedWeights(artifact, load_manifest(artifact))[HEAD].astype(np.float64)
    assert head.relative_rms == pytest.approx(relative_rms(dequantized(*quantize(stored)), stored), rel=0.02)
    assert head.rows == 1024 < len(stored) and 0.015 < head.relative_rms < 0.03
    assert main(["build", str(artifact), "--flavour", "native", "--lm-head", "fp8"]) == 0
    assert f"{HEAD} is rounded to E4M3 when it is loaded: relative RMS error 2." in capsys.readouterr().out
    assert "not measured" in _head(replace(head, relative_rms=None, rows=0))


def test_no_error_is_made_up(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sparse checkpoint's zeros, or where the weights are not."""
    manifest, names = load_manifest(artifact), {"model": HEAD, "mtp": HEAD}
    monkeypatch.setattr(native_head, "MappedWeights", lambda *where: {HEAD: np.zeros((9, 256), np.float32)})
    assert quantized_head(artifact, manifest, names).relative_rms is None
    monkeypatch.undo()
    elsewhere = replace(manifest, checkpoint=str(artifact / "nowhere"))
    assert quantized_head(artifact / "nowhere", elsewhere, names).relative_rms is None
    with pytest.raises(BuildError, match="one head that all graphs share"):
        quantized_head(artifact, manifest, {"model": HEAD, "mtp": "mtp.lm_head.weight"})


@pytest.mark.slow
def test_tied_weights_keep_the_embedding(tmp_path: Path) -> None:
    text = text_config(hidden=256, ffn=384, layers=2, heads=2, kv_heads=1, k_heads=2, v_heads=2, vocab=300, tied=True)
    write_checkpoint(causal_lm(text), tmp_path / "checkpoint", dtype="BF16")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact")
    lower_artifact(tmp_path / "artifact", "native")
    engine = build_engine(tmp_path / "artifact", replace(FP8, max_context=64))
    head = engine.lm_head
    assert head is not None and head.weight.endswith("embed_tokens.weight")
    backend = TensorRtBackend(tmp_path / "artifact", "native", cuda=HostCuda())
    assert {head.weight, head.codes, head.scale} <= set(backend.weights)
    stored = MappedWeights(tmp_path / "artifact", backend.manifest)[head.weight]
    ids = np.arange(12)
    found = backend_points(backend, [], 12, mtp=False)(ids)
    right = found["hidden"].astype(np.float64) @ dequantized(*quantize(stored)).T
    assert relative_rms(found["logits"], right) <= BAR


def test_what_can_not_be_rounded_is_refused(artifact: Path, native_nano: Nano, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="--lm-head fp8 with --flavour rtx"):
        build_engine(artifact, replace(FP8, flavour="rtx"))
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("LmHead", ["x", "w"], ["logits"], domain="deltart")]
    for kind, outputs in ((onnx.TensorProto.FLOAT, ["logits"]), (onnx.TensorProto.BFLOAT16, [])):
        inputs = [value("x", onnx.TensorProto.BFLOAT16, ["B", "L", 16]), value("w", kind, [8, 16])]
        made = [value(name, onnx.TensorProto.FLOAT, ["B", "L", 8]) for name in outputs]
        content = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", inputs, made)).SerializeToString()
        with pytest.raises(BuildError, match="not stored in bfloat16"):
            with_fp8_head(content, GraphEntry({}, [], [], [], ["w"]))
