"""Launch geometry of the gated delta rule: which kernel serves a shape, and with what grid."""

from __future__ import annotations

from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.launch import Launch, ints, pointers, require

DECODE_TOKENS = 8  # at most; beyond it the chunked kernels take over
WARP_COLUMNS = 8


def decode_warps(shape: Shape) -> int:
    """Warps (of 8 value columns) per block: few blocks of many warps once the GPU is full anyway."""
    most = shape.value_dim // WARP_COLUMNS
    return min(most, 2 if shape.slots * shape.value_heads < 256 else 8)


def _decode(kernel: str, shape: Shape, at: dict[str, int], capsule: tuple, capsule_tokens: int, warps: int) -> Launch:
    require(1 <= shape.tokens <= DECODE_TOKENS, f"{shape.tokens} tokens", f"1 to {DECODE_TOKENS} for {kernel}")
    require(shape.value_dim % WARP_COLUMNS == 0, f"value heads of {shape.value_dim}", "a multiple of 8")
    warps = warps or decode_warps(shape)
    columns = warps * WARP_COLUMNS
    floats = (2 * shape.tokens + capsule_tokens) * shape.key_dim + (shape.tokens + capsule_tokens) * columns
    shared = 4 * (floats + 4 * shape.tokens + capsule_tokens)
    args = (*pointers(at, "qkv", "a", "b", "A_log", "dt_bias"), *ints(shape.parameter_dtype == "bf16"),
            *pointers(at, "S", "n_tokens", "o"),
            *ints(shape.tokens, shape.key_heads, shape.value_heads, shape.value_dim), *capsule)
    grid = (shape.value_dim // columns, shape.value_heads, shape.slots)
    return Launch(f"{kernel}_{shape.dtype}", grid, 32 * warps, shared, args)


def decode(shape: Shape, at: dict[str, int], warps: int = 0) -> Launch:
    """T <= 8 tokens, state updated at once. `at`: qkv a b A_log dt_bias S n_tokens o."""
    return _decode("gated_delta_rule_decode", shape, at, (), 0, warps)


def verify(shape: Shape, capsule_tokens: int, at: dict[str, int], warps: int = 0) -> Launch:
    """T <= 8 tokens after replaying n_commit of the capsule's `capsule_tokens` into S. `at`: as decode, and
    k u g (the previous step's capsule), n_commit, k_out u_out g_out (this step's)."""
    require(0 < capsule_tokens <= DECODE_TOKENS, f"a capsule of {capsule_tokens} tokens", f"1 to {DECODE_TOKENS}")
    capsule = (*pointers(at, "k", "u", "g", "n_commit", "k_out", "u_out", "g_out"), *ints(capsule_tokens))
    return _decode("gated_delta_rule_verify", shape, at, capsule, capsule_tokens, warps)
