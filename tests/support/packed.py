"""Checkpoints packed in int4, by the description of compressed-tensors' format: none of the exporter's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from support.saved import State

Packer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # integers [out, in], scales [out, groups] -> words


def scheme(group_size: int, ignore: list[str], targets: list[str] | None = None, **weights: Any) -> dict[str, Any]:
    """A quantization_config as llm-compressor writes it."""
    given = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    group = {"targets": targets or ["Linear"], "weights": given | weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ignore, "kv_cache_scheme": None,
    }  # fmt: skip


def words_of(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Eight values plus 8 in one int32, the first in its lowest four bits."""
    words = torch.zeros(integers.shape[0], integers.shape[1] // 8, dtype=torch.int64)
    for place in range(8):
        words |= (integers[:, place::8].long() + 8) << 4 * place
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def in_int4(
    state: State, leaves: tuple[str, ...], group_size: int, scales: torch.dtype, pack: Packer = words_of
) -> tuple[State, State]:
    """(the checkpoint's tensors with the linears named by `leaves` packed, what they stand for in float32)."""
    stored, plain = dict(state), dict(state)
    for name, weight in state.items():
        module = name.removesuffix(".weight")
        if weight.ndim == 2 and module.rpartition(".")[2] in leaves and not weight.shape[1] % group_size:
            groups = weight.reshape(weight.shape[0], -1, group_size)
            scale = (groups.abs().amax(-1) / 7.5).clamp(min=1e-8).to(scales)
            integers = (groups / scale.float()[..., None]).round().clamp(-8, 7)
            del stored[name]
            stored[f"{module}.weight_packed"] = pack(integers.reshape(weight.shape).to(torch.int8), scale)
            stored[f"{module}.weight_scale"] = scale
            stored[f"{module}.weight_shape"] = torch.tensor(weight.shape)
            plain[name] = (integers * scale.float()[..., None]).reshape(weight.shape)
    return stored, plain
