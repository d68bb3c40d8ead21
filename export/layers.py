"""Layers that every model of the family shares: norms, weight holders and the rotary table."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from deltart.export import ops
from deltart.export.rope import RopeSpec, YarnSpec, yarn_pairs


class Weight(nn.Module):
    """Holds one parameter named `weight`, as the checkpoint's module does."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)


class RMSNorm(Weight):
    """x / rms(x) * (1 + w) in f32: the family stores its norm weights as offsets from one."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__(width)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 1.0 + self.weight.to(torch.float32)  # bf16 would round 1 + w to 2^-8
        return F.rms_norm(x.to(torch.float32), self.weight.shape, scale, self.epsilon).to(x.dtype)


class GatedRMSNorm(Weight):
    """w * x / rms(x) * silu(z) per head: the one norm that multiplies by w itself."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__(width)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return ops.gated_rms_norm(x, self.weight, z, self.epsilon)


class RotaryTable(nn.Module):
    """cos and sin of the interleaved multimodal RoPE angles, each [B, T, rotary_dim / 2], in `dtype`."""

    def __init__(self, rope: RopeSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.scale = attention_factor(rope.yarn)
        self.register_buffer("inv_freq", torch.tensor(inverse_frequencies(rope)), persistent=False)
        self.register_buffer("axis", torch.tensor(mrope_axes(rope.mrope_section)), persistent=False)

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = position_ids.index_select(0, self.axis).permute(1, 2, 0)  # [3, B, T] -> [B, T, rotary_dim / 2]
        angles = positions.to(torch.float32) * self.inv_freq
        return (angles.cos() * self.scale).to(self.dtype), (angles.sin() * self.scale).to(self.dtype)


def mrope_axes(section: tuple[int, int, int]) -> list[int]:
    """Which of (T, H, W) positions turns each rotary pair: T H W T H W ... while H and W last, then T."""
    axes = [0] * sum(section)
    for axis in (1, 2):
        for pair in range(axis, 3 * section[axis], 3):
            axes[pair] = axis
    return axes


def inverse_frequencies(rope: RopeSpec) -> list[float]:
    """theta^(-2i/rotary_dim) per rotary pair; under YaRN blended with the interpolated frequency, in f32."""
    pairs = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32, device="cpu") / rope.rotary_dim
    inv_freq = 1.0 / rope.theta**pairs
    if rope.yarn is not None:
        ramp = _yarn_ramp(rope, rope.yarn)
        inv_freq = inv_freq / rope.yarn.factor * ramp + inv_freq * (1 - ramp)
    frequencies: list[float] = inv_freq.tolist()
    return frequencies


def attention_factor(yarn: YarnSpec | None) -> float:
    """YaRN's multiplier of cos and sin; 1 without YaRN."""
    return 0.1 * math.log(yarn.factor) + 1.0 if yarn else 1.0


def _yarn_ramp(rope: RopeSpec, yarn: YarnSpec) -> torch.Tensor:
    """0 where a pair keeps its frequency, 1 where it is divided by the factor, linear between."""
    low, high = yarn_pairs(yarn, rope.theta, rope.rotary_dim)
    steps = torch.arange(rope.rotary_dim // 2, dtype=torch.float32, device="cpu")
    return ((steps - low) / max(high - low, 1e-3)).clamp(0, 1)
