"""Launch geometry of the causal conv1d."""

from __future__ import annotations

from deltart.plugins.causal_conv1d.inputs import Shape
from deltart.plugins.launch import Arguments, Launch, ints, pointers, require

BLOCK = 64
VERIFY_TOKENS = 8
RUN = 16  # tokens per thread at prefill: three extra rows are read per run


def _launch(kernel: str, shape: Shape, at: dict[str, int], run: int, capsule: Arguments) -> Launch:
    lane = 16 // (2 if shape.dtype == "bf16" else 4)
    require(shape.tokens > 0, "no tokens", "at least one")
    require(shape.channels % lane == 0, f"{shape.channels} channels", f"a multiple of {lane} for {shape.dtype}")
    args = (
        *pointers(at, "x", "weight"),
        *ints(shape.parameter_dtype == "bf16"),
        *pointers(at, "state", "n_tokens", "y"),
        *ints(shape.tokens, shape.channels, run),
        *capsule,
    )
    blocks = -(-shape.channels // (lane * BLOCK))
    return Launch(f"{kernel}_{shape.dtype}", (blocks, -(-shape.tokens // run), shape.slots), BLOCK, 0, args)


def forward(shape: Shape, at: dict[str, int]) -> Launch:
    """Any number of tokens, state updated at once. `at`: x weight state n_tokens y."""
    return _launch("causal_conv1d", shape, at, min(RUN, shape.tokens), ())


def verify(shape: Shape, capsule_tokens: int, at: dict[str, int]) -> Launch:
    """T <= 8 tokens after shifting n_commit of the previous step's inputs into the state. `at`: as forward, and
    old_x [B, Tc, C], n_commit, x_out [B, T, C]."""
    require(shape.tokens <= VERIFY_TOKENS, f"{shape.tokens} tokens", f"at most {VERIFY_TOKENS}")
    require(capsule_tokens > 0, "an empty capsule", "at least one token")
    capsule = (*pointers(at, "old_x", "n_commit", "x_out"), *ints(capsule_tokens))
    return _launch("causal_conv1d_verify", shape, at, shape.tokens, capsule)
