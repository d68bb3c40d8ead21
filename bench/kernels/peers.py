"""The other implementations of the same ops, on the same inputs: flash-linear-attention (fla-core) and plain torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from bench.kernels.device import CudaBuffers
from deltart.plugins.gated_delta_rule.inputs import Shape

Tensors = dict[str, Any]
Peer = Callable[[CudaBuffers], Any]  # one call; returns o


def available() -> bool:
    """Whether fla-core can be imported."""
    return importlib.util.find_spec("fla") is not None


def unpack(x: Tensors, shape: Shape) -> tuple[Any, Any, Any]:
    """q, k [B, T, Hk, Dk] and v [B, T, Hv, Dv] as views of qkv."""
    sizes = [shape.key_heads * shape.key_dim] * 2 + [shape.value_heads * shape.value_dim]
    q, k, v = x["qkv"].split(sizes, -1)
    return tuple(
        part.unflatten(-1, (heads, -1))
        for part, heads in ((q, shape.key_heads), (k, shape.key_heads), (v, shape.value_heads))
    )


def fla(function: Callable, shape: Shape) -> Peer:
    """A gated delta rule of fla's, gates and l2norm inside. What it wants prepared (q, k and v apart, A_log and
    dt_bias in f32) is prepared once per buffers and not timed."""
    prepared: dict[int, tuple] = {}

    def call(buffers: CudaBuffers) -> Any:
        x = buffers.tensors
        if id(buffers) not in prepared:
            parts = tuple(part.contiguous() for part in unpack(x, shape))
            prepared[id(buffers)] = (*parts, x["A_log"].float(), x["dt_bias"].float())
        q, k, v, A_log, dt_bias = prepared[id(buffers)]
        return function(
            q,
            k,
            v,
            g=x["a"],
            beta=x["b"],
            initial_state=x["S"],
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
            use_gate_in_kernel=True,
            A_log=A_log,
            dt_bias=dt_bias,
            use_beta_sigmoid_in_kernel=True,
        )[0]

    return call


def fla_recurrent(shape: Shape) -> Peer:
    """fla's fused decode kernel."""
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

    return fla(fused_recurrent_gated_delta_rule, shape)


def fla_chunk(shape: Shape) -> Peer:
    """fla's chunked prefill."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return fla(chunk_gated_delta_rule, shape)


def torch_recurrent(shape: Shape) -> Peer:
    """One eager torch op after another, as a reader of the paper would write it; T = 1."""
    import torch

    def call(buffers: CudaBuffers) -> Any:
        x = buffers.tensors
        q, k, v = (part[:, 0].float() for part in unpack(x, shape))
        group = shape.value_heads // shape.key_heads
        q, k = (part * torch.rsqrt(part.square().sum(-1, keepdim=True) + 1e-6) for part in (q, k))
        q, k = (part.repeat_interleave(group, 1)[..., None] for part in (q * shape.key_dim**-0.5, k))
        gate = torch.nn.functional.softplus(x["a"][:, 0].float() + x["dt_bias"].float())
        S = x["S"] * torch.exp(-x["A_log"].float().exp() * gate)[..., None, None]
        u = (v - (S * k).sum(-2)) * x["b"][:, 0].float().sigmoid()[..., None]
        S = S + k * u[..., None, :]
        x["S"].copy_(S)
        return (S * q).sum(-2)[:, None]

    return call


def torch_conv(buffers: CudaBuffers) -> Any:
    """torch's depthwise conv1d on the transposed concatenation of state and input, then SiLU."""
    import torch

    x = buffers.tensors
    history = torch.cat([x["state"], x["x"]], 1).transpose(1, 2)
    weight = x["weight"].to(history.dtype)
    return torch.nn.functional.silu(torch.nn.functional.conv1d(history, weight, groups=weight.shape[0])).transpose(1, 2)


def fla_conv(buffers: CudaBuffers) -> Any:
    """fla's Triton conv with an initial state and SiLU."""
    from fla.modules.causal_conv1d import causal_conv1d

    x = buffers.tensors
    state = x["state"].transpose(1, 2)
    padded = state.new_zeros(*state.shape[:2], 4)
    padded[..., 1:] = state
    return causal_conv1d(
        x["x"], x["weight"][:, 0].to(state.dtype), initial_state=padded, output_final_state=True, activation="silu"
    )[0]
