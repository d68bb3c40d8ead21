"""torch's implementations of the linear layer and the attention, on the same inputs."""

from __future__ import annotations

import importlib.util
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


def quantized(x: Any) -> tuple[Any, Any]:
    """Activations [.., K] (K a multiple of 128) as E4M3 codes [M, K] and scales [M, K / 128]."""
    import torch

    parts = x.reshape(-1, x.shape[-1]).float().unflatten(-1, (-1, 128))
    scale = parts.abs().amax(-1).clamp(min=1e-12) / 448
    return (parts / scale[..., None]).flatten(1).to(torch.float8_e4m3fn), scale


def block_scales(scale: Any) -> Any:
    """A weight's scales [N / 128, K / 128] as cuBLASLt wants them: [K / 128, N / 128] f32, a column's values next to
    each other and padded to a whole number of four."""
    import torch

    return torch.nn.functional.pad(scale.float(), (0, -scale.shape[1] % 4)).t()


def scaled_mm() -> Peer:
    """cuBLASLt's 1x128 by 128x128 scaling modes (sm_90) through torch; activations quantized beforehand."""
    import torch
    from torch.nn.functional import ScalingType

    operands: dict[int, tuple[Any, ...]] = {}

    def prepare(x: dict[str, Any]) -> tuple[Any, ...]:
        codes, scale = quantized(x["x"])
        scale = scale.t().contiguous().t()  # the values of neighbouring tokens next to each other
        return codes, x["weight"].view(torch.float8_e4m3fn).t(), scale, block_scales(x["weight_scale_inv"])

    def call(buffers: CudaBuffers) -> Any:
        if id(buffers) not in operands:
            operands[id(buffers)] = prepare(buffers.tensors)
        a, b, scale_a, scale_b = operands[id(buffers)]
        return torch.nn.functional.scaled_mm(
            a,
            b,
            scale_a,
            ScalingType.BlockWise1x128,
            scale_b,
            ScalingType.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )

    return call


def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def triton_gemv() -> Peer:
    """Our own plain Triton kernel for one token, tuned; activations as they are."""
    import torch

    from bench.kernels import triton_linear

    kernel, _ = triton_linear.tuned()

    def call(buffers: CudaBuffers) -> Any:
        x = buffers.tensors
        triton_linear.gemv(x["x"], x["weight"].view(torch.float8_e4m3fn), x["weight_scale_inv"], x["y"], kernel)
        return x["y"]

    return call


def triton_gemm() -> Peer:
    """Our own plain Triton kernel for many tokens, tuned; activations quantized beforehand."""
    import torch

    from bench.kernels import triton_linear

    _, kernel = triton_linear.tuned()
    operands: dict[int, tuple[Any, Any]] = {}

    def call(buffers: CudaBuffers) -> Any:
        x = buffers.tensors
        if id(buffers) not in operands:
            operands[id(buffers)] = quantized(x["x"])
        weight, y = x["weight"].view(torch.float8_e4m3fn), x["y"]
        triton_linear.gemm(*operands[id(buffers)], weight, x["weight_scale_inv"], y.view(-1, y.shape[-1]), kernel)
        return y

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
