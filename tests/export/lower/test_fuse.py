"""What the TensorRT lowering fuses: every chain that it should, none that differs, and the model stays the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from deltart.export.assemble import Tracer, assemble
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.lower.functions import PORTABLE, composite_functions
from deltart.export.lower.fuse import fuse
from deltart.export.lower.tensorrt import lower
from deltart.export.spec import read_spec
from support.cases import Export


def composites(nodes: list[onnx.NodeProto]) -> Counter[str]:
    return Counter(node.op_type for node in nodes if node.domain == "deltart")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_chain_is_found(exported: Export, dtype: torch.dtype) -> None:
    made = exported("fp8")
    spec, tensors = read_spec(made.checkpoint), Checkpoint(made.checkpoint)
    bound = bind(spec, tensors, dtype)
    tracer = Tracer(bound)
    for graph in (b.graph for b in bound.graphs):
        nodes = lower(assemble(graph, tracer)[0]).graph.node
        count = composites(nodes)
        layers = len(spec.layer_types) if graph.name == "model" else 1
        assert count["Fp8BlockGateUp"] == layers
        assert count["QkNormRope"] == count["AttentionProjections"] == count["GatedAttention"] == 1
        # Stored weights are bf16, as bf16 activations are; f32 ones need the head, a and b cast first.
        assert count["LmHead"] == (dtype == torch.bfloat16)
        assert count["DeltaNetProjections"] == (count["GatedDeltaRule"] if dtype == torch.bfloat16 else 0)
        assert not [n.name for n in nodes if n.op_type in ("RotaryEmbedding", "Sigmoid")]


def text(body: str) -> list[onnx.NodeProto]:
    model = f'<ir_version: 10, opset_import: ["" : 24, "deltart" : 1]> g () => () {{ {body} }}'
    return list(onnx.parser.parse_model(model).graph.node)


MLP = """
  gate = deltart.Fp8BlockLinear <quantize_activations = 0> (x, w, s)
  opened = Sigmoid (gate)
  silu = Mul ({silu})
  up = deltart.Fp8BlockLinear <quantize_activations = 0> ({other}, v, t)
  y = Mul ({product})
"""


@pytest.mark.parametrize("silu", ["gate, opened", "opened, gate"])
@pytest.mark.parametrize("product", ["silu, up", "up, silu"])
def test_operands_may_come_in_any_order(silu: str, product: str) -> None:
    (node,) = fuse(text(MLP.format(silu=silu, other="x", product=product)), ["y"])
    assert (node.op_type, list(node.input), list(node.output)) == (
        "Fp8BlockGateUp", ["x", "w", "s", "v", "t"], ["y"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"other": "z"},  # another input
        {"product": "silu, silu"},
        {"silu": "opened, opened"},
        {"silu": "gate, x"},
    ],
)
def test_what_only_looks_like_it_stays(changed: dict[str, str]) -> None:
    nodes = text(MLP.format(**{"silu": "gate, opened", "other": "x", "product": "silu, up"} | changed))
    assert "Fp8BlockGateUp" not in composites(fuse(nodes, ["y"]))


def test_a_value_that_is_read_elsewhere_stays() -> None:
    nodes = text(MLP.format(silu="gate, opened", other="x", product="silu, up") + "probe = Neg (gate)")
    assert composites(fuse(nodes, ["y", "probe"])) == {"Fp8BlockGateUp": 1, "Fp8BlockLinear": 1}


def linears(*lines: str) -> list[onnx.NodeProto]:
    plain = 'Einsum <equation = "btk,nk->btn">'
    given = "\n".join(lines).replace("PLAIN", plain).replace("FP8", "deltart.Fp8BlockLinear <quantize_activations = 0>")
    for size in (32, 64):
        given = given.replace(f"INT4_{size}", f"deltart.Int4GroupLinear <K = 64, N = 8, group_size = {size}>")
    nodes = text(given)
    for index, node in enumerate(nodes):
        node.name = str(index)
    return nodes


def test_linears_of_one_input_are_joined_where_the_first_was() -> None:
    mixed = ["p = FP8 (x, w, s)", "a = PLAIN (x, u)", "n = Neg (p)", "q = FP8 (x, v, t)", "b = PLAIN (x, y)"]
    joined, *others = fuse(linears(*mixed, "d = Add (a, b)"), ["n", "q", "d"])
    assert (joined.op_type, list(joined.input)) == ("DeltaNetProjections", ["x", "w", "s", "v", "t", "u", "y"])
    assert list(joined.output) == ["p", "q", "a", "b"] and [n.op_type for n in others] == ["Neg", "Add"]
    three = ["p = FP8 (x, w, s)", "q = FP8 (x, v, t)", "r = FP8 (x, u, o)"]
    assert [n.op_type for n in fuse(linears(*three), ["p", "q", "r"])] == ["AttentionProjections"]


@pytest.mark.parametrize(
    "lines",
    [
        ["p = FP8 (x, w, s)", "q = FP8 (x, v, t)"],
        ["p = FP8 (x, w, s)", "q = FP8 (x, v, t)", "r = FP8 (n, u, o)"],
        ["p = FP8 (x, w, s)", "q = FP8 (x, v, t)", "a = PLAIN (x, u)", "c = Neg (y)", "b = PLAIN (x, c)"],
    ],
)
def test_other_linears_stay(lines: list[str]) -> None:
    nodes = linears(*lines)
    results = [node.output[0] for node in nodes if node.op_type != "Neg"]
    kept = fuse(nodes, results)
    assert [n.op_type for n in kept if n.op_type not in ("Neg", "LmHead", "Einsum")] == [
        n.op_type for n in nodes if n.op_type not in ("Neg", "Einsum")
    ]


def test_int4_linears_are_joined() -> None:
    three = ["p = INT4_32 (x, w, s)", "q = INT4_32 (x, v, t)", "r = INT4_32 (x, u, o)", "y = Sum (p, q, r)"]
    one, _ = fuse(linears(*three), ["y"])
    assert (one.op_type, list(one.input)) == ("Int4AttentionProjections", ["x", "w", "s", "v", "t", "u", "o"])
    assert [(a.name, a.i) for a in one.attribute] == [("group_size", 32)]
    mixed = ["p = INT4_64 (x, w, s)", "a = PLAIN (x, u)", "q = INT4_64 (x, v, t)", "b = PLAIN (x, o)"]
    assert fuse(linears(*mixed, "y = Sum (p, q, a, b)"), ["y"])[0].op_type == "Int4DeltaNetProjections"
    gated = ["g = INT4_32 (x, w, s)", "o = Sigmoid (g)", "i = Mul (g, o)", "u = INT4_32 (x, v, t)", "m = Mul (u, i)"]
    one, _ = fuse(linears(*gated, "y = Neg (m)"), ["y"])
    assert (one.op_type, list(one.input)) == ("Int4GroupGateUp", ["x", "w", "s", "v", "t"])
    assert [(a.name, a.i) for a in one.attribute] == [("group_size", 32)]


@pytest.mark.parametrize(
    "lines",
    [
        ["p = INT4_32 (x, w, s)", "q = INT4_64 (x, v, t)", "r = INT4_32 (x, u, o)", "y = Sum (p, q, r)"],
        ["p = INT4_32 (x, w, s)", "q = FP8 (x, v, t)", "r = INT4_32 (x, u, o)", "y = Sum (p, q, r)"],
        ["g = INT4_32 (x, w, s)", "o = Sigmoid (g)", "i = Mul (g, o)", "u = INT4_64 (x, v, t)", "y = Mul (u, i)"],
        ["g = INT4_32 (x, w, s)", "o = Sigmoid (g)", "i = Mul (g, o)", "u = FP8 (x, v, t)", "y = Mul (u, i)"],
    ],
    ids=["groups", "formats", "pair-groups", "pair-formats"],
)
def test_mixed_linears_stay(lines: list[str]) -> None:
    nodes = linears(*lines)
    assert [n.op_type for n in fuse(nodes, ["y"])] == [n.op_type for n in nodes]


def test_a_packed_head_keeps_its_logits_in_float32() -> None:
    head = linears("y = INT4_32 (x, w, s)", "logits = Cast <to = 1> (y)")
    (one,) = fuse(head, ["logits"])
    assert (one.op_type, list(one.input), list(one.output)) == ("Int4LmHead", ["x", "w", "s"], ["logits"])


def test_a_head_must_leave_the_graph() -> None:
    head = """logits = Einsum <equation = "btk,nk->btn"> (x, w)"""
    assert [n.op_type for n in fuse(text(head), ["logits"])] == ["LmHead"]
    inner = text(head + " y = Neg (logits)")
    assert [n.op_type for n in fuse(inner, ["y"])] == ["Einsum", "Neg"]
    made = text("w = Neg (v) " + head)
    assert [n.op_type for n in fuse(made, ["logits"])] == ["Neg", "Einsum"]


@pytest.mark.parametrize("case", ["fp8", "fp8-f32-scales"])
def test_fused_graph_computes_the_unfused_one(exported: Export, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """In float32, with portable bodies, over a prompt and states that are not zero."""
    made = exported(case)
    spec, tensors = read_spec(made.checkpoint), Checkpoint(made.checkpoint)
    bound = bind(spec, tensors)
    graph = bound.graphs[0].graph
    assembled = assemble(graph, Tracer(bound))[0]
    fused = lower(assembled)
    monkeypatch.setattr("deltart.export.lower.tensorrt.fuse", lambda nodes, results: nodes)
    plain = lower(assembled)
    assert composites(fused.graph.node) != composites(plain.graph.node)
    assert composites(fused.graph.node)["DeltaNetProjections"] == (3 if case == "fp8-f32-scales" else 0)
    first, second = (run(model, tensors) for model in (fused, plain))
    for name, found, expected in zip([o.name for o in plain.graph.output], first, second, strict=True):
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max(), name


def run(model: onnx.ModelProto, tensors: Checkpoint) -> list[np.ndarray]:
    """Every output for seeded inputs; FP8 weights come as values, which is what the int8 bits stand for."""
    rng = np.random.default_rng(0)
    model.functions.extend(composite_functions(model.graph.node, PORTABLE))
    sizes = {"B": 2, "T": 5, "L": 2, "capacity": 16}
    values = {
        "input_ids": rng.integers(0, 320, (2, 5)),
        "position_ids": np.tile(np.arange(5) + 3, (3, 2, 1)),
        "past_len": np.array([3, 0], np.int32),
        "n_tokens": np.array([5, 4], np.int32),
        "n_commit": np.array([2, 4], np.int32),
        "logit_index": np.array([[4, 0], [3, 1]]),
    }
    for tensor in model.graph.input:
        if tensor.name in tensors:
            values[tensor.name] = np.asarray(tensors.read(tensor.name))
            tensor.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        elif tensor.name not in values:
            shape = [d.dim_value or sizes[d.dim_param] for d in tensor.type.tensor_type.shape.dim]
            values[tensor.name] = rng.standard_normal(shape, np.float32)
    wide = {n: v.astype(np.float32) if v.dtype.kind not in "iu" else v for n, v in values.items()}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, wide)
