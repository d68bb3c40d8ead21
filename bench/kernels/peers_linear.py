"""torch's implementations of the linear layer and the attention, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.kernels.device import Buffers, CudaBuffers
from deltart.plugins.gated_attention.inputs import Shape
from deltart.plugins.launch import Launch

Peer = Callable[[CudaBuffers], Any]  # one call; returns the output
Plan = Callable[[Buffers], list[Launch]]


def blocks(scale: Any, n: int, k: int) -> Any:
    """Block scales as one value per weight."""
    return scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]


def torch_linear() -> Peer:
    """cuBLAS on a weight that was dequantized to bf16 beforehand: twice the bytes."""
    import torch

    weights: dict[int, Any] = {}

    def call(buffers: CudaBuffers) -> Any:
        x = buffers.tensors
        if id(buffers) not in weights:
            weight = x["weight"].view(torch.float8_e4m3fn).float()
            weights[id(buffers)] = (weight * blocks(x["weight_scale_inv"].float(), *weight.shape)).bfloat16()
        return torch.nn.functional.linear(x["x"], weights[id(buffers)])

    return call


def scaled_mm() -> Peer:
    """torch's block-wise scaled_mm (1x128 activations, 128x128 weights; sm_90); activations quantized beforehand."""
    import torch

    operands: dict[int, tuple[Any, ...]] = {}

    def prepare(x: dict[str, Any]) -> tuple[Any, ...]:
        rows = x["x"].reshape(-1, x["x"].shape[-1]).float()
        parts = rows.unflatten(-1, (-1, 128))
        scale = parts.abs().amax(-1).clamp(min=1e-12) / 448  # [M, K / 128]
        codes = (parts / scale[..., None]).flatten(1).to(torch.float8_e4m3fn)
        weight_scale = x["weight_scale_inv"].float()
        return codes, x["weight"].view(torch.float8_e4m3fn).t(), scale.t().contiguous().t(), weight_scale.t()

    def call(buffers: CudaBuffers) -> Any:
        if id(buffers) not in operands:
            operands[id(buffers)] = prepare(buffers.tensors)
        a, b, scale_a, scale_b = operands[id(buffers)]
        return torch._scaled_mm(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16)

    return call


def sdpa(shape: Shape) -> Peer:
    """torch's attention over the used part of a contiguous cache, then the gate; the new K and V are not appended."""
    import torch

    def call(buffers: CudaBuffers) -> Any:
        x = buffers.tensors
        q = x["q"].unflatten(-1, (shape.heads, -1)).transpose(1, 2)
        mask = torch.ones(shape.tokens, shape.capacity, dtype=torch.bool, device=q.device)
        mask = mask.tril(shape.capacity - shape.tokens) if shape.tokens > 1 else None
        o = torch.nn.functional.scaled_dot_product_attention(
            q, x["k_cache"], x["v_cache"], attn_mask=mask, enable_gqa=True
        )
        return o.transpose(1, 2).flatten(2) * x["gate"].sigmoid()

    return call
