"""The LM head of native plans in E4M3: the graph that reads it, and what the rounding costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from deltart.errors import ArtifactError, BuildError
from deltart.manifest import GraphEntry, Manifest
from deltart.plugins.lm_head.op import FP8_LM_HEAD, LM_HEAD
from deltart.plugins.lm_head.reference import GROUP, dequantized, quantize
from deltart.plugins.spec import DOMAIN
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.gpu.engine_manifest import QuantizedHead
from deltart.runtime.backends.weights import MappedWeights

SAMPLED_ROWS, PIECES = 1024, 32  # of the head, whose error is measured: so many rows, in so many runs


def with_fp8_head(content: bytes, entry: GraphEntry) -> tuple[bytes, GraphEntry, str]:
    """The lowered graph `content` with its head's weight as codes and scales, its `entry`, and that weight's name.

    Where other nodes read the weight too, as the embedding does where both are tied, the graph keeps it besides.

    Raises:
        BuildError: its logits are not those of one bfloat16 weight.
    """
    model = onnx.load_model_from_string(content)
    graph = model.graph
    results, types = {value.name for value in graph.output}, {v.name: v.type.tensor_type for v in graph.input}
    heads = [n for n in graph.node if (n.domain, n.op_type) == (DOMAIN, LM_HEAD.name) and n.output[0] in results]
    if len(heads) != 1 or types[heads[0].input[1]].elem_type != onnx.TensorProto.BFLOAT16:
        raise BuildError(
            "--lm-head fp8 of a head that is not stored in bfloat16", "a bfloat16 head", "leave --lm-head away"
        )
    (head,) = heads
    x, weight = head.input
    vocabulary, k = (d.dim_value for d in types[weight].shape.dim)
    codes, scale = made_of(weight)
    head.op_type = FP8_LM_HEAD.name
    head.input[:] = [x, codes, scale]
    added = {codes: (onnx.TensorProto.INT8, [vocabulary, k])}
    added |= {scale: (onnx.TensorProto.BFLOAT16, [vocabulary, -(-k // GROUP)])}
    weights = list(entry.weights)
    if not any(weight in node.input for node in graph.node):
        weights.remove(weight)
        graph.input.remove(next(value for value in graph.input if value.name == weight))
    graph.input.extend(onnx.helper.make_tensor_value_info(name, *kind) for name, kind in added.items())
    return model.SerializeToString(deterministic=True), replace(entry, weights=[*weights, *added]), weight


def made_of(weight: str) -> tuple[str, str]:
    """Names of the codes and scales of a head's weight."""
    return f"{weight}.e4m3", f"{weight}.e4m3_scale"


def quantized_head(artifact: Path, manifest: Manifest, weights: Mapping[str, str]) -> QuantizedHead:
    """What engine.json says of the head: `weights` names it by graph.

    Raises:
        BuildError: the graphs have heads of their own.
    """
    names = sorted(set(weights.values()))
    if len(names) != 1:
        raise BuildError(f"--lm-head fp8 of the heads {', '.join(names)}", "one head that all graphs share")
    codes, scale = made_of(names[0])
    try:
        found = MappedWeights(artifact, manifest)[names[0]]
    except ArtifactError:
        return QuantizedHead(names[0], codes, scale, None, 0)
    rows = _sample(len(found))
    taken = found[rows].astype(np.float32)
    if not taken.any():  # a sparse checkpoint's
        return QuantizedHead(names[0], codes, scale, None, 0)
    error = relative_rms(dequantized(*quantize(taken)), taken)
    return QuantizedHead(names[0], codes, scale, error, len(rows))


def _sample(rows: int) -> np.ndarray:
    """Which of so many rows are measured: runs of neighbours, spread evenly."""
    if rows <= SAMPLED_ROWS:
        return np.arange(rows)
    run = SAMPLED_ROWS // PIECES
    starts = np.linspace(0, rows - run, PIECES).astype(np.int64)
    return (starts[:, None] + np.arange(run)).ravel()
