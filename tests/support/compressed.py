"""Checkpoints of several compressed-tensors schemes: written by the description of the format, or by the library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from support.packed import in_int4
from support.saved import Config, State, flat, in_fp8, model_of, save

BLOCK, CHANNEL, INT4 = "block", "channel", "int4"
MLP, ATTENTION, DELTA_NET = "re:.*mlp.*", "re:.*self_attn.*", "re:.*linear_attn.*"
IGNORED = ["lm_head", "re:.*in_proj_[ab]$"]
DYNAMIC = {
    BLOCK: {"strategy": "group", "group_size": 128},
    CHANNEL: {"strategy": "token"},
}  # how llm-compressor's presets quantize what goes into a linear of each kind


def group(kind: str, target: str, activations: bool = False) -> dict[str, Any]:
    """A config group: weights of `kind` for what `target` means; with FP8 `activations` too."""
    weights: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": kind, "dynamic": False}
    if kind == BLOCK:
        weights["block_structure"] = [128, 128]
    if kind == INT4:
        weights |= {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    form = "pack-quantized" if kind == INT4 else "float-quantized" if activations else "naive-quantized"
    inputs = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True} if activations else None
    return {
        "targets": [target], "weights": weights, "format": form,
        "input_activations": inputs and inputs | DYNAMIC[kind],
    }  # fmt: skip


def quantization(kinds: Mapping[str, str], activations: bool = False) -> dict[str, Any]:
    """A quantization_config with a group per target of `kinds`."""
    groups = {
        f"group_{number}": group(kind, target, activations and kind != INT4)
        for number, (target, kind) in enumerate(kinds.items())
    }
    return {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed",
        "config_groups": groups, "ignore": IGNORED, "kv_cache_scheme": None,
    }  # fmt: skip


def stored(
    state: State, leaves: Mapping[str, tuple[str, ...]], scales: torch.dtype = torch.float32
) -> tuple[State, State]:
    """(the checkpoint's tensors with the linears named by `leaves` of each kind quantized, what they stand for)."""
    made, plain = in_int4(state, leaves.get(INT4, ()), 32, scales)
    made, blocks = in_fp8(made, leaves.get(BLOCK, ()), scales)
    made = {name.removesuffix("_inv"): tensor for name, tensor in made.items()}
    plain |= {name: blocks[name] for name in blocks if name in plain and not torch.equal(blocks[name], plain[name])}
    for name, weight in state.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in leaves.get(CHANNEL, ()):
            scale = (weight.abs().amax(1, keepdim=True) / 448).to(scales)
            made[name] = (weight / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
            made[f"{module}.weight_scale"] = scale
            plain[name] = made[name].float() * scale.float()
    return made, plain


def written_by_the_library(folder: Path, config: Config, kinds: Mapping[str, str], activations: bool) -> Path:
    """A checkpoint that compressed-tensors quantized, packed and described; skips where it is not installed."""
    pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors accelerate: it writes the weights")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    model = model_of(config)
    given = quantization(kinds, activations) | {"quantization_status": "initialized"}
    apply_quantization_config(model, QuantizationConfig.model_validate(given))
    for module in model.modules():
        weights = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if weights is not None:
            low, high = _extent(module.weight.data, weights.strategy, weights.group_size)
            module.weight_scale.data = calculate_qparams(low, high, weights)[0]
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    save(folder, flat(config), {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    compressor.update_config(folder)
    return folder


def _extent(weight: torch.Tensor, strategy: str, group_size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and largest value behind each scale."""
    if strategy == "group":
        parts, axes = weight.view(len(weight), -1, group_size or 1), (-1,)
        return parts.amin(axes), parts.amax(axes)
    if strategy == CHANNEL:
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    rows, columns = (128 * math.ceil(size / 128) for size in weight.shape)
    wide = F.pad(weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0]))
    parts = wide.view(rows // 128, 128, columns // 128, 128)
    return parts.amin((1, 3)), parts.amax((1, 3))
