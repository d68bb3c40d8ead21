"""The model as its own torch modules compute it, composite ops by their float64 references, in any activation dtype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deltart.export.checkpoint import Checkpoint
from deltart.export.models.registry import graphs_of
from deltart.export.spec import read_spec
from deltart.export.structure import settle
from deltart.export.weights import build_module, load_parameters, torch_dtype


def eager_logits(checkpoint: Path, ids: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Logits f32 [B, T, V] of tokens [B, T] from an empty state; in bfloat16, what is traced for TensorRT."""
    tensors = Checkpoint(checkpoint)
    spec = settle(read_spec(checkpoint), tensors).spec
    (graph,) = graphs_of(spec, dtype, False)
    rows, length = ids.shape
    values = {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.arange(length).expand(3, rows, length).contiguous(),
        "past_len": torch.zeros(rows, dtype=torch.int32),
        "n_tokens": torch.full((rows,), length, dtype=torch.int32),
        "n_commit": torch.full((rows,), length, dtype=torch.int32),
        "logit_index": torch.arange(length).expand(rows, length),
    }
    for block in graph.blocks:
        module = build_module(block, spec, tensors)
        load_parameters(module, block, tensors)
        sizes = {"B": rows, "capacity": length}
        states = [torch.zeros(s.shape(sizes), dtype=torch_dtype(s.element_type(dtype))) for s in block.states]
        with torch.no_grad():
            results = module(*[values[i] for i in block.inputs], *states)
        values.update(zip(block.outputs, results if isinstance(results, tuple) else (results,), strict=False))
    logits: np.ndarray = values["logits"].float().numpy()
    return logits
