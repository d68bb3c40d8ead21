"""The vision tower in TensorRT's terms: plain standard nodes that compute what the portable graph computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from deltart.artifact import load_manifest
from deltart.export.assemble import Tracer, assemble
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.lower.tensorrt import lower
from deltart.export.spec import read_spec
from deltart.plugins.spec import DOMAIN
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.vision.tower import grid_inputs
from support.seeing import Seeing


@pytest.fixture(scope="module")
def towers(seeing: Seeing) -> dict[torch.dtype, onnx.ModelProto]:
    """The lowered graph by the type of its activations."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        bound = bind(read_spec(seeing.checkpoint), Checkpoint(seeing.checkpoint), dtype, vision=True)
        (tower,) = [graph for graph in bound.graphs if graph.graph.name == "vision"]
        found[dtype] = lower(assemble(tower.graph, Tracer(replace(bound, graphs=(tower,))))[0])
    return found


@pytest.mark.parametrize(("frames", "rows", "columns"), [(1, 8, 12), (3, 2, 6)])
def test_it_computes_what_the_portable_graph_does(
    frames: int, rows: int, columns: int, towers: dict[torch.dtype, onnx.ModelProto], seeing: Seeing
) -> None:
    entry = load_manifest(seeing.artifact).vision
    assert entry is not None
    patches = np.random.default_rng(rows).standard_normal((frames, rows * columns, 3 * 2 * entry.patch**2))
    inputs = {"patches": patches.astype(np.float32), **grid_inputs(rows, columns, entry)}
    expected = OrtBackend(seeing.artifact, "portable").see(inputs)
    model, tensors = towers[torch.float32], Checkpoint(seeing.checkpoint)
    weights = {w.name: tensors.read(w.name) for w in model.graph.input if w.name not in inputs}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["embeds"], {**inputs, **weights})
    assert relative_rms(found, expected) < 1e-6


def test_it_needs_no_plugin_and_copies_no_weight(towers: dict[torch.dtype, onnx.ModelProto], seeing: Seeing) -> None:
    model = towers[torch.bfloat16]
    assert not [node for node in model.graph.node if node.domain == DOMAIN]
    assert not [node for node in model.graph.node if node.op_type in ("Transpose", "MatMul", "Gemm")]
    assert not model.graph.initializer
    weights = {value.name for value in model.graph.input} & set(Checkpoint(seeing.checkpoint))
    assert weights == {name for name in Checkpoint(seeing.checkpoint) if ".visual." in name}
    assert [o.type.tensor_type.elem_type for o in model.graph.output] == [onnx.TensorProto.FLOAT]


def test_queries_and_keys_are_turned_in_f32(towers: dict[torch.dtype, onnx.ModelProto]) -> None:
    nodes = towers[torch.bfloat16].graph.node
    makers = {output: node for node in nodes for output in node.output}
    turned = [node for node in nodes if node.op_type == "RotaryEmbedding"]
    casts = [makers[node.input[0]] for node in turned]
    assert len(turned) == 4
    assert all(c.op_type == "Cast" and c.attribute[0].i == onnx.TensorProto.FLOAT for c in casts)
