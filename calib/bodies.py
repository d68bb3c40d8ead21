"""Float32 torch bodies of the composite ops, fast enough to run calibration text through a block.

Each computes what the op's reference in `plugins/` computes, for sequences that start from an empty cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from deltart.export import ops  # noqa: F401  registers the ops that this module gives bodies to
from deltart.plugins.fp8_block_linear.reference import BLOCK
from deltart.plugins.gated_delta_rule.reference import EPSILON

CHUNK = 64


class FastBodies(TorchDispatchMode):
    """Within this context the composite ops run the bodies of this module instead of their references."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return BODIES.get(func, func)(*args, **(kwargs or {}))


def causal_conv1d(x: Tensor, weight: Tensor, state: Tensor, n_commit: Tensor) -> tuple[Tensor, Tensor]:
    """See plugins/causal_conv1d."""
    width = weight.shape[-1]
    padded = torch.cat([state, x], dim=1)  # [B, W-1+T, C]
    y = F.conv1d(padded.mT, weight.to(x.dtype), groups=weight.shape[0]).mT
    kept = (n_commit[:, None] + torch.arange(width - 1)).long()  # [B, W-1]
    return F.silu(y).contiguous(), padded.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))


def gated_rms_norm(x: Tensor, weight: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """See plugins/gated_rms_norm."""
    heads = x.unflatten(-1, (-1, weight.shape[0]))
    return F.rms_norm(heads, weight.shape, weight.to(x.dtype), epsilon).flatten(-2) * F.silu(z)


def moe_experts(
    x: Tensor, logits: Tensor, n_tokens: Tensor, gate_up: Tensor, down: Tensor,
    num_experts_per_tok: int, hidden_size: int, intermediate_size: int,
) -> Tensor:  # fmt: skip
    """See plugins/moe_experts."""

    def weights(slot: int) -> tuple[Tensor, Tensor]:
        return gate_up[slot].to(x.dtype), down[slot].to(x.dtype)

    return _routed(x, logits, n_tokens, num_experts_per_tok, range(len(down)), weights)


def fp8_moe_experts(
    x: Tensor, logits: Tensor, n_tokens: Tensor, experts: Tensor, experts_scale: Tensor, slot_expert: Tensor,
    num_experts_per_tok: int, hidden_size: int, intermediate_size: int,
) -> Tensor:  # fmt: skip
    """See plugins/moe_experts."""
    rows, columns = -(-hidden_size // BLOCK), -(-intermediate_size // BLOCK)

    def expanded(slot: int, part: int, shape: tuple[int, int], blocks: tuple[int, int]) -> Tensor:
        scale = experts_scale[slot, part].view(blocks)
        return _dequantized(experts[slot, part].view(shape), scale, x.dtype)

    def weights(slot: int) -> tuple[Tensor, Tensor]:
        across = (intermediate_size, hidden_size)
        gate, up = (expanded(slot, part, across, (columns, rows)) for part in (1, 2))
        return torch.cat([gate, up]), expanded(slot, 0, (hidden_size, intermediate_size), (rows, columns))

    return _routed(x, logits, n_tokens, num_experts_per_tok, slot_expert.tolist(), weights)


def _routed(
    x: Tensor, logits: Tensor, n_tokens: Tensor, count: int, numbers: Sequence[int],
    weights: Callable[[int], tuple[Tensor, Tensor]],
) -> Tensor:  # fmt: skip
    """The experts `numbers` over the tokens that chose them; weights(slot) is (gate above up, down)."""
    rows, real = x.flatten(0, 1), (torch.arange(x.shape[1]) < n_tokens[:, None]).flatten()
    best, chosen = (values[:, :count] for values in logits.flatten(0, 1).sort(descending=True, stable=True))
    share, chosen = best.softmax(-1), chosen.masked_fill(~real[:, None], -1)
    y = torch.zeros_like(rows)
    for slot, number in enumerate(numbers):
        token, rank = (chosen == number).nonzero(as_tuple=True)
        if len(token):
            gate_up, down = weights(slot)
            gate, up = F.linear(rows[token], gate_up).chunk(2, -1)
            y.index_add_(0, token, share[token, rank, None] * F.linear(F.silu(gate) * up, down))
    return y.view_as(x)


def fp8_block_linear(x: Tensor, weight: Tensor, weight_scale_inv: Tensor, quantize_activations: int) -> Tensor:
    """See plugins/fp8_block_linear; activations as they are."""
    if quantize_activations:
        raise ValueError("calibration runs on activations as they are")
    return F.linear(x, _dequantized(weight, weight_scale_inv, x.dtype))


def _dequantized(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    scale = scale.to(dtype).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return weight.to(dtype) * scale[: weight.shape[0], : weight.shape[1]]


def gated_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, k_cache: Tensor, v_cache: Tensor,
    past_len: Tensor, n_tokens: Tensor, num_heads: int, num_kv_heads: int, head_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See plugins/gated_attention; only from an empty cache (past_len = 0)."""
    if bool(past_len.any()):
        raise ValueError("calibration runs whole rows from an empty cache")
    q, k, v = (x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (q, k, v))  # [B, heads, T, D]
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(-2)
    real = torch.arange(o.shape[1]) < n_tokens[:, None]  # [B, T]
    caches = (_written(k, k_cache, real), _written(v, v_cache, real))
    return torch.where(real[..., None], o, 0.0) * gate.sigmoid(), *caches


def _written(rows: Tensor, cache: Tensor, real: Tensor) -> Tensor:
    """The cache [B, Hkv, capacity, D] with its first rows replaced by the real ones of [B, Hkv, T, D]."""
    length = rows.shape[2]
    kept = torch.where(real[:, None, :, None], rows, cache[:, :, :length])
    return torch.cat([kept, cache[:, :, length:]], dim=2)


def gated_delta_rule(
    qkv: Tensor, a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, S: Tensor, n_tokens: Tensor,
    n_commit: Tensor, num_k_heads: int, num_v_heads: int, head_k_dim: int, head_v_dim: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See plugins/gated_delta_rule; the chunked form, its triangular system solved by substitution. No drafts."""
    if bool((n_commit != n_tokens).any()):
        raise ValueError("calibration text has no drafts: n_commit is n_tokens")
    real = torch.arange(qkv.shape[1]) < n_tokens[:, None]  # [B, T]
    q, k, v = (qkv * real[..., None]).split([num_k_heads * head_k_dim] * 2 + [num_v_heads * head_v_dim], dim=-1)
    group = num_v_heads // num_k_heads
    q, k = (_unit(x.unflatten(-1, (-1, head_k_dim))).repeat_interleave(group, 2).transpose(1, 2) for x in (q, k))
    v = v.unflatten(-1, (-1, head_v_dim)).transpose(1, 2)  # [B, Hv, T, Dv]
    g = (-A_log.float().exp() * F.softplus(a.float() + dt_bias.float())).mT * real[:, None]  # [B, Hv, T]
    beta = b.float().sigmoid().mT * real[:, None]
    outputs = []
    for begin in range(0, q.shape[2], CHUNK):
        chunk = slice(begin, begin + CHUNK)
        qc, kc, vc, gc, bc = (x[:, :, chunk] for x in (q, k, v, g, beta))
        o, S = _chunk(qc * head_k_dim**-0.5, kc, vc, gc, bc, S)
        outputs.append(o)
    return torch.cat(outputs, dim=2).transpose(1, 2).flatten(-2).contiguous(), S


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPSILON)


def _chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Up to CHUNK tokens: q, k, v [B, H, C, D], g, beta [B, H, C], S [B, H, Dk, Dv] -> o [B, H, C, Dv], S'."""
    G = g.cumsum(-1)
    future = torch.ones(G.shape[-1], G.shape[-1], dtype=torch.bool).triu(1)
    D = (G[..., :, None] - G[..., None, :]).masked_fill(future, -torch.inf).exp()
    carried = G.exp()[..., None]  # [B, H, C, 1]
    system = k @ k.mT * D * beta[..., None]  # the solver reads it as unit lower triangular
    wanted = (v - carried * (k @ S)) * beta[..., None]
    u = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    o = carried * (q @ S) + (q @ k.mT * D) @ u
    last = G[..., -1:]
    return o, last.exp()[..., None] * S + (k * (last - G).exp()[..., None]).mT @ u


BODIES: dict[Any, Callable[..., Any]] = {
    torch.ops.deltart.CausalConv1d.default: causal_conv1d,
    torch.ops.deltart.GatedRMSNorm.default: gated_rms_norm,
    torch.ops.deltart.Fp8BlockLinear.default: fp8_block_linear,
    torch.ops.deltart.MoeExperts.default: moe_experts,
    torch.ops.deltart.Fp8MoeExperts.default: fp8_moe_experts,
    torch.ops.deltart.GatedAttention.default: gated_attention,
    torch.ops.deltart.GatedDeltaRule.default: gated_delta_rule,
}
