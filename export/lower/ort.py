"""ONNX Runtime bodies: composite ops as its contrib kernels, in float32, with states updated in place.

`GatedAttention` needs past_len + T <= capacity: GroupQueryAttention also writes the rows of padding tokens, which
later calls overwrite and no call reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltart.export.lower import portable, portable_linear
from deltart.plugins.moe_experts import bodies as moe


def causal_conv1d(attributes: Mapping[str, Any]) -> str:
    """The contrib convolution; the state is gathered by count, since the kernel always keeps the last rows."""
    return (
        """
CausalConv1d (x, weight, state, n_commit) => (y, state_out) {
  kernel = Cast <to = 1> (weight)
  y, _last_rows = com.microsoft.CausalConvWithState <channels_last = 1, activation = "silu"> (x, kernel, , state)
  padded = Concat <axis = 1> (state, x)"""
        + portable.CONV_STATE
    )


def gated_delta_rule(attributes: Mapping[str, Any]) -> str:
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
  sizes = Constant <value_ints: ints = [{2 * k_heads * k_dim}, {v_size}]> ()
  qk_raw, v = Split <axis = -1> (qkv, sizes)
  qk_shape = Constant <value_ints: ints = [0, 0, {2 * k_heads}, {k_dim}]> ()
  qk_heads = Reshape (qk_raw, qk_shape)
  unit = Constant <value = float[{k_dim}] {{{", ".join([repr(k_dim**-0.5)] * k_dim)}}}> ()
  qk_unit = RMSNormalization <axis = -1, epsilon = {1e-6 / k_dim!r}> (qk_heads, unit)
  qk_flat_shape = Constant <value_ints: ints = [0, 0, {2 * k_heads * k_dim}]> ()
  qk = Reshape (qk_unit, qk_flat_shape)
  halves = Constant <value_ints: ints = [{k_heads * k_dim}, {k_heads * k_dim}]> ()
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
    portable.REAL.format(x="qkv")
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


def gated_rms_norm(attributes: Mapping[str, Any]) -> str:
    """The contrib gated norm."""
    return """
GatedRMSNorm <epsilon> (x, weight, z) => (y) {
  scale = Cast <to = 1> (weight)
  y = com.microsoft.GatedRMSNorm <epsilon: float = @epsilon, activation = "silu"> (x, scale, z)
}
"""


def gated_attention(attributes: Mapping[str, Any]) -> str:
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
        + portable.attend_over_capacity(attributes, "general_o", "general_k", "general_v")
        + """
    }>
  opened = Sigmoid (gate)
  o = Mul (attended, opened)
}
"""
    )


BODIES: portable.Lowering = {
    "CausalConv1d": causal_conv1d,
    "GatedDeltaRule": gated_delta_rule,
    "GatedRMSNorm": gated_rms_norm,
    "GatedAttention": gated_attention,
    "Fp8BlockLinear": portable_linear.fp8_block_linear,
    "MoeExperts": moe.moe_experts,
    "Fp8MoeExperts": moe.fp8_moe_experts,
}
