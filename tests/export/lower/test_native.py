"""The lowering for native plans: all that is left has a kernel, and what has none is named."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from deltart.artifact import load_manifest
from deltart.errors import ExportError
from deltart.export.lower import native
from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.export.targets import lower_artifact
from deltart.plugins.registry import NATIVE_OPS
from support.cases import CASES, VOCAB, Export

Models = dict[str, dict[str, onnx.ModelProto]]  # by graph and target


def lowered(artifact: Path, folder: Path) -> Models:
    """Both lowerings of every graph."""
    copy = Path(shutil.copytree(artifact, folder / "lowered"))
    lower_artifact(copy, "native")
    return {
        name: {target: onnx.load(copy / graph.files[target]) for target in ("tensorrt", "native")}
        for name, graph in load_manifest(copy).graphs.items()
    }


@pytest.fixture(scope="module")
def fp8(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return lowered(exported("fp8").artifact, tmp_path_factory.mktemp("fp8"))


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """No weight in FP8, YaRN, an MTP head."""
    folder = tmp_path_factory.mktemp("bf16")
    config = causal_lm(text_config(**CASES["yarn"][0], vocab=VOCAB, max_position=2048))
    write_checkpoint(config, folder / "checkpoint", dtype="BF16")
    export_checkpoint(folder / "checkpoint", folder / "artifact")
    return lowered(folder / "artifact", folder)


def copied(models: Models) -> onnx.ModelProto:
    """The text model as TensorRT has it, to be changed."""
    model = onnx.ModelProto()
    model.CopyFrom(models["model"]["tensorrt"])
    return model


def check(models: Models) -> None:
    """Only ops and constants that they read are left, no norm got lost, and the border is the same."""
    for pair in models.values():
        before, after = pair["tensorrt"].graph, pair["native"].graph
        assert {node.domain or node.op_type for node in after.node} == {"deltart", "Constant"}
        assert [*map(str, before.input), *map(str, before.output)] == [*map(str, after.input), *map(str, after.output)]
        counts = Counter(node.op_type for node in after.node)
        norms = sum(node.op_type == "RMSNormalization" for node in before.node)
        assert counts["RmsNorm"] + counts["ResidualRmsNorm"] == norms
        read = {name for node in after.node for name in node.input}
        assert all(node.output[0] in read for node in after.node if node.op_type == "Constant")


def test_nothing_is_left_but_ops_and_their_constants(fp8: Models, bf16: Models) -> None:
    check(fp8)
    check(bf16)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["moe-bf16", "moe-fp8", "moe-fp8-partial"])
def test_experts_are_ops_already(exported: Export, case: str, tmp_path: Path) -> None:
    check(lowered(exported(case).artifact, tmp_path))


def test_the_table_keeps_yarns_factor(fp8: Models, bf16: Models) -> None:
    for models, scale in ((fp8, 1.0), (bf16, 0.1 * np.log(4) + 1)):
        (table,) = [node for node in models["model"]["native"].graph.node if node.op_type == "RotaryTable"]
        assert table.attribute[0].f == pytest.approx(scale)


def test_every_op_is_met_in_some_graph(fp8: Models, bf16: Models) -> None:
    met = {node.op_type for models in (fp8, bf16) for pair in models.values() for node in pair["native"].graph.node}
    # A gate in FP8 beside an up in BF16; what single phases join; and what a build makes of the head if asked to.
    assert {spec.name for spec in NATIVE_OPS} - met == {
        "SiluMul",
        "Fp8LinearNorm",
        "Int4LinearNorm",
        "MoeExpertsNorm",
        "Fp8MoeExpertsNorm",
        "SparseMoeNorm",
        "Fp8SparseMoeNorm",
        "Fp8LmHead",
        "GatedDeltaNorm",
        "ConvGatedDeltaNorm",
        "RopeGatedAttention",
    }


def test_a_gate_and_an_up_of_different_kinds(bf16: Models) -> None:
    model = copied(bf16)
    up = next(node for node in model.graph.node if "model.layers.0.mlp.up_proj.weight" in node.input)
    up.op_type, up.domain = "Fp8BlockLinear", "deltart"
    counts = Counter(node.op_type for node in native.lower(model).graph.node)
    assert counts["SiluMul"] == 1 and counts["LinearGateUp"] == 3


@pytest.mark.parametrize("op", ["Softmax", "Add"])
def test_a_node_without_a_kernel_is_named(fp8: Models, op: str) -> None:
    model = copied(fp8)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "between"
    inputs = ["between"] * (2 if op == "Add" else 1)
    model.graph.node.append(onnx.helper.make_node(op, inputs, ["logits"], "head/odd"))
    with pytest.raises(ExportError, match=f"node 'head/odd' is {op}"):
        native.lower(model)


def test_a_norm_of_another_kind_is_not_folded(fp8: Models) -> None:
    """2 + weight in place of 1 + weight."""
    model = copied(fp8)
    one = next(node for node in model.graph.node if node.name == "layers.0/Constant_0")
    one.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array(2, np.float32)))
    with pytest.raises(ExportError, match=r"node 'layers\.0/"):
        native.lower(model)
