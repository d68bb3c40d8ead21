"""Bodies of the gated delta rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltart.plugins.bodies import Bodies, integers
from deltart.plugins.gated_delta_rule.reference import EPSILON

CHUNK = 64  # tokens that `fast` solves at a time


# Token t of row b is real where t < n_tokens[b], committed where t < n_commit[b]: [B, T].
REAL = """
  length = Shape <start = 1, end = 2> ({x})
  scalar = Constant <value_ints: ints = [0]> ()
  zero = Constant <value_int: int = 0> ()
  one = Constant <value_int: int = 1> ()
  length_0d = Squeeze (length, scalar)
  steps_64 = Range (zero, length_0d, one)
  steps = Cast <to = 6> (steps_64)
  last_axis = Constant <value_ints: ints = [-1]> ()
  counts = Unsqueeze (n_tokens, last_axis)
  real = Less (steps, counts)
"""


def unit_heads(x: str, y: str) -> str:
    """The nodes that normalise each key head of `x` and repeat it for its value heads: y [B, T, Hv, Dk]."""
    return f"""
  {x}_5d = Reshape ({x}, k_shape)
  {x}_sum = ReduceSumSquare <keepdims = 1> ({x}_5d, last_axis)
  {x}_eps = Add ({x}_sum, epsilon)
  {x}_norm = Sqrt ({x}_eps)
  {x}_unit = Div ({x}_5d, {x}_norm)
  {x}_tiled = Tile ({x}_unit, group)
  {y} = Reshape ({x}_tiled, head_shape)
"""


def portable(attributes: Mapping[str, Any]) -> str:
    """The token recurrence as a Scan over T; beside the running state it carries the one that drafts don't touch."""
    k_heads, v_heads = attributes["num_k_heads"], attributes["num_v_heads"]
    k_dim, v_dim = attributes["head_k_dim"], attributes["head_v_dim"]
    return (
        """
GatedDeltaRule <num_k_heads, num_v_heads, head_k_dim, head_v_dim>
  (qkv, a, b, A_log, dt_bias, S, n_tokens, n_commit) => (o, S_out) {"""
        + REAL.format(x="qkv")
        + f"""
  real_3d = Unsqueeze (real, last_axis)
  mask = Cast <to = 1> (real_3d)
  A_log_f = Cast <to = 1> (A_log)
  dt_bias_f = Cast <to = 1> (dt_bias)
  A = Exp (A_log_f)
  shifted = Add (a, dt_bias_f)
  rate = Softplus (shifted)
  decay = Mul (A, rate)
  decay_neg = Neg (decay)
  g = Mul (decay_neg, mask)
  beta_all = Sigmoid (b)
  beta = Mul (beta_all, mask)
  sizes = {integers(k_heads * k_dim, k_heads * k_dim, v_heads * v_dim)}
  q_flat, k_flat, v_flat = Split <axis = -1> (qkv, sizes)
  k_shape = {integers(0, 0, k_heads, 1, k_dim)}
  group = {integers(1, 1, 1, v_heads // k_heads, 1)}
  head_shape = {integers(0, 0, v_heads, k_dim)}
  v_shape = {integers(0, 0, v_heads, v_dim)}
  epsilon = Constant <value_float: float = 1e-6> ()
  scale = Constant <value_float: float = {k_dim**-0.5!r}> ()
  {unit_heads("q_flat", "q_unit")}
  q = Mul (q_unit, scale)
  {unit_heads("k_flat", "k")}
  v = Reshape (v_flat, v_shape)
  commits = Unsqueeze (n_commit, last_axis)
  committed = Less (steps, commits)
  S_last, S_out, o_4d = Scan <num_scan_inputs = 6, scan_input_axes = [1, 1, 1, 1, 1, 1], scan_output_axes = [1],
    body = token (S_t, S_kept, q_t, k_t, v_t, g_t, beta_t, committed_t) => (S_next, S_kept_next, o_t) {{
      matrix_axes = Constant <value_ints: ints = [-2, -1]> ()
      row_axis = Constant <value_ints: ints = [-2]> ()
      column_axis = Constant <value_ints: ints = [-1]> ()
      alpha = Exp (g_t)
      alpha_4d = Unsqueeze (alpha, matrix_axes)
      decayed = Mul (S_t, alpha_4d)
      k_row = Unsqueeze (k_t, row_axis)
      k_column = Unsqueeze (k_t, column_axis)
      recalled_row = MatMul (k_row, decayed)
      recalled = Squeeze (recalled_row, row_axis)
      error = Sub (v_t, recalled)
      beta_3d = Unsqueeze (beta_t, column_axis)
      d = Mul (error, beta_3d)
      d_row = Unsqueeze (d, row_axis)
      update = Mul (k_column, d_row)
      S_next = Add (decayed, update)
      state_axes = Constant <value_ints: ints = [1, 2, 3]> ()
      advances = Unsqueeze (committed_t, state_axes)
      S_kept_next = Where (advances, S_next, S_kept)
      q_row = Unsqueeze (q_t, row_axis)
      o_row = MatMul (q_row, S_next)
      o_t = Squeeze (o_row, row_axis)
    }}> (S, S, q, k, v, g, beta, committed)
  flat = {integers(0, 0, v_heads * v_dim)}
  o = Reshape (o_4d, flat)
}}
"""
    )


def ort(attributes: Mapping[str, Any]) -> str:
    """LinearAttentionGate into LinearAttention. q and k are normalised together.

    x / sqrt(sum x^2 + eps) is an RMS norm with epsilon eps/Dk and scale Dk^-0.5. Tokens are masked only where a row
    does not commit all T of them.
    """
    k_heads, k_dim = attributes["num_k_heads"], attributes["head_k_dim"]
    v_size = attributes["num_v_heads"] * attributes["head_v_dim"]
    return (
        f"""
GatedDeltaRule <num_k_heads, num_v_heads, head_k_dim, head_v_dim>
  (qkv, a, b, A_log, dt_bias, S, n_tokens, n_commit) => (o, S_out) {{
  A_log_f = Cast <to = 1> (A_log)
  dt_bias_f = Cast <to = 1> (dt_bias)
  A = Exp (A_log_f)
  A_neg = Neg (A)
  g, beta = com.microsoft.LinearAttentionGate (a, dt_bias_f, A_neg, b)
  sizes = {integers(2 * k_heads * k_dim, v_size)}
  qk_raw, v = Split <axis = -1> (qkv, sizes)
  qk_shape = {integers(0, 0, 2 * k_heads, k_dim)}
  qk_heads = Reshape (qk_raw, qk_shape)
  unit = Constant <value = float[{k_dim}] {{{", ".join([repr(k_dim**-0.5)] * k_dim)}}}> ()
  qk_unit = RMSNormalization <axis = -1, epsilon = {1e-6 / k_dim!r}> (qk_heads, unit)
  qk_flat_shape = {integers(0, 0, 2 * k_heads * k_dim)}
  qk = Reshape (qk_unit, qk_flat_shape)
  halves = {integers(k_heads * k_dim, k_heads * k_dim)}
  q, k = Split <axis = -1> (qk, halves)
  fed = Shape <start = 1, end = 2> (qkv)
  commits_64 = Cast <to = 7> (n_commit)
  fewest = ReduceMin (commits_64)
  masked = Less (fewest, fed)
  o, S_out = If (masked) <
    then_branch = some () => (masked_o, masked_S) {{"""
        + MASKED_TOKENS
        + f"""
    }},
    else_branch = all () => (plain_o, plain_S) {{
      plain_o, plain_S = {LINEAR_ATTENTION} (q, k, v, S, g, beta)
    }}>
}}
"""
    )


LINEAR_ATTENTION = """com.microsoft.LinearAttention <q_num_heads: int = @num_k_heads,
        kv_num_heads: int = @num_v_heads, update_rule = "gated_delta">"""


# The kernel returns the state after all tokens that are not masked: the committed ones go through it, then the drafts
# where a row has any. Nothing reads S once masked_S is written, so the two may share a buffer.
MASKED_TOKENS = (
    REAL.format(x="qkv")
    + f"""
  commits = Unsqueeze (n_commit, last_axis)
  committed = Less (steps, commits)
  committed_3d = Unsqueeze (committed, last_axis)
  mask = Cast <to = 1> (committed_3d)
  g_committed = Mul (g, mask)
  beta_committed = Mul (beta, mask)
  committed_o, masked_S = {LINEAR_ATTENTION} (q, k, v, S, g_committed, beta_committed)
  drafted = Sub (n_tokens, n_commit)
  most_drafts = ReduceMax <keepdims = 0> (drafted)
  none = Constant <value = int32 {{0}}> ()
  has_drafts = Greater (most_drafts, none)
  masked_o = If (has_drafts) <
    then_branch = drafts () => (either_o) {{
      past_committed = Not (committed)
      draft = And (real, past_committed)
      draft_3d = Unsqueeze (draft, last_axis)
      draft_mask = Cast <to = 1> (draft_3d)
      g_drafts = Mul (g, draft_mask)
      beta_drafts = Mul (beta, draft_mask)
      draft_o, S_dropped = {LINEAR_ATTENTION} (q, k, v, masked_S, g_drafts, beta_drafts)
      either_o = Where (committed_3d, committed_o, draft_o)
    }},
    else_branch = no_drafts () => (only_o) {{
      only_o = Identity (committed_o)
    }}>
"""
)


def fast(
    qkv: Tensor, a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, S: Tensor, n_tokens: Tensor,
    n_commit: Tensor, num_k_heads: int, num_v_heads: int, head_k_dim: int, head_v_dim: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The chunked form, its triangular system solved by substitution. No drafts."""
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


BODIES = {"GatedDeltaRule": Bodies(portable, ort, ort_in_place=True, torch=fast)}
