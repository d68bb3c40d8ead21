"""Bodies of the gated attention.

`ort` needs past_len + T <= capacity: GroupQueryAttention also writes the rows of padding tokens, which later calls
overwrite and no call reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltart.plugins.bodies import Bodies, integers


def portable(attributes: Mapping[str, Any]) -> str:
    """Writes the new rows into the cache, then attends over the whole capacity under a mask."""
    return (
        """
GatedAttention <num_heads, num_kv_heads, head_dim>
  (q, k, v, gate, k_cache, v_cache, past_len, n_tokens) => (o, k_cache_out, v_cache_out) {"""
        + attend_over_capacity(attributes, "attended", "k_cache_out", "v_cache_out")
        + """
  opened = Sigmoid (gate)
  o = Mul (attended, opened)
}
"""
    )


def appended(x: str, cache: str) -> str:
    """The nodes that write the call's rows of `x` (k or v) into its cache."""
    return f"""
  {x}_rows = GatherND <batch_dims = 1> ({x}, source_index)
  {x}_rows_4d = Reshape ({x}_rows, kv_shape)
  {x}_new = Transpose <perm = [0, 2, 1, 3]> ({x}_rows_4d)
  {cache} = Where (written_4d, {x}_new, {x}_cache)
"""


def attend_over_capacity(attributes: Mapping[str, Any], o: str, k_out: str, v_out: str) -> str:
    """The nodes that compute ungated attention `o` and the new caches, for any batch, length and past."""
    kv_heads, dim = attributes["num_kv_heads"], attributes["head_dim"]
    group = attributes["num_heads"] // kv_heads
    return f"""
  first = Constant <value_ints: ints = [0]> ()
  last = Constant <value_ints: ints = [-1]> ()
  from_0 = Constant <value_int: int = 0> ()
  by_1 = Constant <value_int: int = 1> ()
  t_size = Shape <start = 1, end = 2> (q)
  t_size_0d = Squeeze (t_size, first)
  capacity = Shape <start = 2, end = 3> (k_cache)
  capacity_0d = Squeeze (capacity, first)
  rows = Range (from_0, capacity_0d, by_1)
  tokens = Range (from_0, t_size_0d, by_1)
  past_64 = Cast <to = 7> (past_len)
  past_2d = Unsqueeze (past_64, last)
  new_64 = Cast <to = 7> (n_tokens)
  new_2d = Unsqueeze (new_64, last)
  source = Sub (rows, past_2d)
  is_new = GreaterOrEqual (source, from_0)
  is_real = Less (source, new_2d)
  written = And (is_new, is_real)
  cache_axes = Constant <value_ints: ints = [1, 3]> ()
  written_4d = Unsqueeze (written, cache_axes)
  last_token = Sub (t_size_0d, by_1)
  source_clipped = Clip (source, from_0, last_token)
  source_index = Unsqueeze (source_clipped, last)
  kv_shape = {integers(0, 0, kv_heads, dim)}
  {appended("k", k_out)}
  {appended("v", v_out)}
  q_shape = {integers(0, 0, kv_heads, group, dim)}
  q_5d = Reshape (q, q_shape)
  q_heads = Transpose <perm = [0, 2, 3, 1, 4]> (q_5d)
  group_axis = Constant <value_ints: ints = [2]> ()
  k_t = Transpose <perm = [0, 1, 3, 2]> ({k_out})
  k_5d = Unsqueeze (k_t, group_axis)
  v_5d = Unsqueeze ({v_out}, group_axis)
  products = MatMul (q_heads, k_5d)
  scale = Constant <value_float: float = {dim**-0.5!r}> ()
  scores = Mul (products, scale)
  ends = Add (past_2d, tokens)
  ends_3d = Unsqueeze (ends, last)
  visible = LessOrEqual (rows, ends_3d)
  head_axes = Constant <value_ints: ints = [1, 2]> ()
  visible_5d = Unsqueeze (visible, head_axes)
  hidden = Constant <value_float: float = -3.0e38> ()
  masked = Where (visible_5d, scores, hidden)
  weights = Softmax <axis = -1> (masked)
  mixed = MatMul (weights, v_5d)
  mixed_t = Transpose <perm = [0, 3, 1, 2, 4]> (mixed)
  flat = {integers(0, 0, kv_heads * group * dim)}
  {o} = Reshape (mixed_t, flat)
"""


def ort(attributes: Mapping[str, Any]) -> str:
    """GroupQueryAttention where its kernel serves the call: it refuses several rows of several tokens with a past."""
    return (
        """
GatedAttention <num_heads, num_kv_heads, head_dim>
  (q, k, v, gate, k_cache, v_cache, past_len, n_tokens) => (o, k_cache_out, v_cache_out) {
  B = Shape <start = 0, end = 1> (q)
  T = Shape <start = 1, end = 2> (q)
  one_64 = Constant <value_ints: ints = [1]> ()
  one_32 = Constant <value = int32 {1}> ()
  zero_32 = Constant <value = int32 {0}> ()
  T_32 = Cast <to = 6> (T)
  totals = Add (past_len, T_32)
  seqlens_k = Sub (totals, one_32)
  longest = ReduceMax <keepdims = 0> (totals)
  longest_past = ReduceMax <keepdims = 0> (past_len)
  one_row = Equal (B, one_64)
  one_token = Equal (T, one_64)
  no_past = Equal (longest_past, zero_32)
  single = Or (one_row, one_token)
  fused = Or (single, no_past)
  attended, k_cache_out, v_cache_out = If (fused) <
    then_branch = grouped () => (grouped_o, grouped_k, grouped_v) {
      grouped_o, grouped_k, grouped_v = com.microsoft.GroupQueryAttention
        <num_heads: int = @num_heads, kv_num_heads: int = @num_kv_heads> (q, k, v, k_cache, v_cache, seqlens_k, longest)
    },
    else_branch = general () => (general_o, general_k, general_v) {"""
        + attend_over_capacity(attributes, "general_o", "general_k", "general_v")
        + """
    }>
  opened = Sigmoid (gate)
  o = Mul (attended, opened)
}
"""
    )


def fast(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, k_cache: Tensor, v_cache: Tensor,
    past_len: Tensor, n_tokens: Tensor, num_heads: int, num_kv_heads: int, head_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """torch's attention; only from an empty cache (past_len = 0)."""
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


BODIES = {"GatedAttention": Bodies(portable, ort, ort_in_place=True, torch=fast)}
