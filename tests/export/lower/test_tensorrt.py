"""The TensorRT lowering: what is in the graph, what is not, and that it still computes the model."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tokenizers import Tokenizer

from deltart.artifact import load_manifest
from deltart.errors import ArtifactError, BuildError
from deltart.export.assemble import Tracer, assemble
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.lower.functions import PORTABLE, composite_functions
from deltart.export.lower.tensorrt import lower
from deltart.export.pipeline import export_checkpoint
from deltart.export.spec import read_spec
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.export.targets import lower_artifact
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from support.cases import VOCAB, Export
from support.eager import eager_logits

NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"
HELDOUT = NANO.parent / "heldout.jsonl"
SMALL = dict(
    hidden=128, ffn=128, layers=4, heads=2, kv_heads=1, k_heads=1, v_heads=1, head_dim=64, vocab=VOCAB, mtp=False
)
INT8, BF16, FLOAT = onnx.TensorProto.INT8, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT


def small_checkpoint(folder: Path, seed: int) -> Path:
    write_checkpoint(causal_lm(text_config(**SMALL)), folder, quantized=True, seed=seed)
    return folder


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> list[onnx.ModelProto]:
    """The graphs of two checkpoints of one shape."""
    models = []
    for seed in (0, 1):
        checkpoint = small_checkpoint(tmp_path_factory.mktemp("seed") / "checkpoint", seed)
        bound = bind(read_spec(checkpoint), Checkpoint(checkpoint), torch.bfloat16)
        models += [lower(assemble(graph.graph, Tracer(bound))[0]) for graph in bound.graphs]
    return models


def test_two_checkpoints_of_one_shape_lower_to_the_same_bytes(lowered: list[onnx.ModelProto]) -> None:
    first, second = (model.SerializeToString(deterministic=True) for model in lowered)
    assert first == second


def test_composites_are_bare_nodes_and_weights_are_inputs(lowered: list[onnx.ModelProto]) -> None:
    model = lowered[0]
    assert not model.functions and not model.graph.initializer
    assert Counter(n.op_type for n in model.graph.node if n.domain == "deltart") == {
        "GatedDeltaRule": 3, "CausalConv1d": 3, "GatedRMSNorm": 3, "GatedAttention": 1, "QkNormRope": 1,
        "Fp8BlockLinear": 2 * 4, "Fp8BlockGateUp": 4, "DeltaNetProjections": 3, "AttentionProjections": 1, "LmHead": 1,
    }  # fmt: skip
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    assert kinds["model.layers.0.linear_attn.in_proj_qkv.weight"] == INT8
    assert kinds["lm_head.weight"] == kinds["layers.0.conv"] == kinds["layers.3.k"] == BF16
    assert kinds["layers.0.S"] == FLOAT


def test_no_weight_is_transposed_or_rounded_before_its_norm(lowered: list[onnx.ModelProto]) -> None:
    model = lowered[0]
    weights = {i.name for i in model.graph.input if i.name.endswith(".weight")}
    nodes = {o: n for n in model.graph.node for o in n.output}
    assert not [n.name for n in model.graph.node if n.op_type == "Transpose" and n.input[0] in weights]
    for norm in (n for n in model.graph.node if n.op_type == "RMSNormalization"):
        offset = nodes[nodes[norm.input[1]].input[0]]
        assert (offset.op_type, offset.attribute[0].i) == ("Cast", FLOAT)


def test_names_say_the_layer(lowered: list[onnx.ModelProto]) -> None:
    names = [n.name for n in lowered[0].graph.node]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0] for name in names} == {"embed", "rotary", "head", *(f"layers.{n}" for n in range(4))}


def test_lowered_graph_computes_the_model(exported: Export) -> None:
    """In float32 and with portable bodies put back: inlining and contractions change nothing."""
    made = exported("heads-1-3")
    spec, tensors = read_spec(made.checkpoint), Checkpoint(made.checkpoint)
    bound = bind(spec, tensors, mtp=False)
    graph = bound.graphs[0].graph
    model = lower(assemble(graph, Tracer(bound))[0])
    model.functions.extend(composite_functions(model.graph.node, PORTABLE))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    backend = OrtBackend(made.artifact, "portable")
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 9))
    inputs = text_inputs(ids, np.zeros(2, np.int32), logit_index=np.tile(np.arange(9), (2, 1)))
    (expected,) = backend.run("model", backend.new_state("model", 2, 16), inputs, ["logits"])
    sizes = {"B": 2, "capacity": 16}
    for state in graph.states:
        inputs[state.name] = np.zeros([sizes.get(str(axis), axis) for axis in state.axes], np.float32)
    inputs |= {name: np.asarray(tensors.read(name)) for name in load_manifest(made.artifact).graphs["model"].weights}
    (logits,) = session.run(["logits"], inputs)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_bfloat16_keeps_the_trained_model() -> None:
    """What is traced for TensorRT, run by torch: the error that an engine has before any kernel adds its own."""
    prompts = [json.loads(line)["messages"][0]["content"] for line in HELDOUT.read_text().splitlines()[:60]]
    ids = np.array([Tokenizer.from_file(str(NANO / "tokenizer.json")).encode(" ".join(prompts)).ids[:400]])
    found, expected = (eager_logits(NANO, ids, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert relative_rms(found, expected) <= 1e-2
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.95


def test_a_changed_checkpoint_is_refused(exported: Export, tmp_path: Path) -> None:
    made = exported("heads-1-3")
    artifact = Path(shutil.copytree(made.artifact, tmp_path / "artifact"))
    other = small_checkpoint(tmp_path / "other", 0)
    shutil.rmtree(artifact / "weights")  # what the artifact links would do
    replace(load_manifest(artifact), checkpoint=str(other)).save(artifact)
    with pytest.raises(ArtifactError, match="no longer the checkpoint"):
        lower_artifact(artifact, "tensorrt")
    assert not list(artifact.glob("*.tensorrt.onnx"))


def test_float16_weights_of_plugins_are_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(causal_lm(text_config(**SMALL)), tmp_path / "checkpoint", dtype="F16")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact")
    with pytest.raises(BuildError, match=r"more tensors stored in float16 \(F16\)"):
        lower_artifact(tmp_path / "artifact", "tensorrt")
    assert not list((tmp_path / "artifact").glob("*.tensorrt.onnx"))


def test_an_artifact_lowers_after_its_checkpoint_has_moved(tmp_path: Path) -> None:
    checkpoint = small_checkpoint(tmp_path / "checkpoint", 0)
    for name in ("stays", "alone"):
        export_checkpoint(checkpoint, tmp_path / name)
    lower_artifact(tmp_path / "stays", "tensorrt")
    checkpoint.rename(tmp_path / "elsewhere")
    lower_artifact(tmp_path / "alone", "tensorrt")
    stays, alone = ((tmp_path / name / "model.tensorrt.onnx").read_bytes() for name in ("stays", "alone"))
    assert stays == alone
