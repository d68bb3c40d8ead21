"""Small models of the real architecture that tests export and compare."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltart.export.checkpoint import Checkpoint
from deltart.export.synthetic.presets import Experts


@dataclass(frozen=True)
class Exported:
    """A synthetic checkpoint and its artifact."""

    config: dict[str, Any]
    checkpoint: Path
    artifact: Path


# Sizes kept small, GDN heads at their real width: (text config, checkpoint format).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "heads-1-3": (dict(hidden=128, ffn=256, layers=4, heads=4, kv_heads=2, k_heads=1, v_heads=3, head_dim=64), {}),
    "heads-2-2": (dict(hidden=192, ffn=320, layers=8, heads=2, kv_heads=1, k_heads=2, v_heads=2, head_dim=256), {}),
    "heads-2-4": (dict(hidden=128, ffn=256, layers=12, heads=6, kv_heads=2, k_heads=2, v_heads=4, head_dim=64), {}),
    "tied": (
        dict(hidden=128, ffn=256, layers=4, heads=4, kv_heads=1, k_heads=1, v_heads=2, head_dim=64, tied=True),
        {},
    ),
    "yarn": (
        dict(hidden=128, ffn=256, layers=4, heads=4, kv_heads=1, k_heads=1, v_heads=2, head_dim=256, yarn=4.0),
        {},
    ),
    "fp8": (
        dict(hidden=320, ffn=448, layers=4, heads=4, kv_heads=2, k_heads=1, v_heads=3, head_dim=64),
        {"quantized": True, "scale_dtype": "BF16", "dtype": "BF16"},
    ),
    "fp8-f32-scales": (
        dict(hidden=256, ffn=384, layers=4, heads=2, kv_heads=1, k_heads=2, v_heads=4, head_dim=256),
        {"quantized": True, "scale_dtype": "F32"},
    ),
}
# The same with routed experts: (text config, checkpoint format). `ffn` is the width of the shared expert.
_SMALL = dict(hidden=128, layers=4, heads=4, kv_heads=1, k_heads=1, v_heads=2, head_dim=64)
_FP8 = {"quantized": True, "dtype": "BF16"}
SPARSE_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "moe-bf16": (dict(**_SMALL, ffn=96, experts=Experts(7, 3, 80)), {"dtype": "BF16"}),
    "moe-one-of-five": (dict(**_SMALL, ffn=64, experts=Experts(5, 1, 48)), {}),
    "moe-all-of-two-wide": (dict(**_SMALL, ffn=32, experts=Experts(2, 2, 640)), {}),
    "moe-256-narrow": (dict(**_SMALL, ffn=64, experts=Experts(256, 8, 16)), {"dtype": "BF16"}),
    "moe-fp8": (dict(**_SMALL | {"hidden": 256}, ffn=384, experts=Experts(12, 4, 128)), _FP8),
    "moe-fp8-partial": (
        dict(**_SMALL | {"hidden": 320}, ffn=72, experts=Experts(11, 2, 200)),
        _FP8 | {"scale_dtype": "F32"},
    ),
    "moe-fp8-all-of-three": (dict(**_SMALL | {"hidden": 192}, ffn=256, experts=Experts(3, 3, 64)), _FP8),
}
VOCAB = 320

Export = Callable[[str], Exported]


def stored_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every weight in float32, FP8 blocks expanded here by plain repetition, experts fused; no scales."""
    tensors = Checkpoint(checkpoint)
    weights = {}
    for name in tensors:
        if name.endswith(("_scale_inv", ".k_scale", ".v_scale")):
            continue
        value = torch.from_numpy(np.asarray(tensors.read(name)).astype(np.float32))
        scale_name = f"{name}_scale_inv"
        if scale_name in tensors:
            scale = torch.from_numpy(np.asarray(tensors.read(scale_name)).astype(np.float32))
            expanded = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            value = value * expanded[: value.shape[0], : value.shape[1]]
        weights[name] = value
    return _fused(weights)


def _fused(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts that are stored one by one as transformers' modules hold them: stacked by number, gate above up."""
    layers: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for name in [name for name in weights if re.search(r"\.experts\.\d+\.", name)]:
        layer, number, part = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name).groups()
        layers.setdefault(layer, {}).setdefault(int(number), {})[part] = weights.pop(name)
    for layer, experts in layers.items():
        ordered = [experts[number] for number in range(len(experts))]
        weights[f"{layer}.gate_up_proj"] = torch.stack([torch.cat([e["gate_proj"], e["up_proj"]]) for e in ordered])
        weights[f"{layer}.down_proj"] = torch.stack([e["down_proj"] for e in ordered])
    return weights
