"""Launch geometry of the causal conv1d."""

from __future__ import annotations

from deltart.plugins.causal_conv1d.inputs import Shape
from deltart.plugins.launch import Launch, ints, pointers, require

BLOCK = 64
RUN = 16  # tokens per thread at prefill: three extra rows are read per run


def forward(shape: Shape, at: dict[str, int]) -> Launch:
    """Any number of tokens. `at`: x weight state n_commit y."""
    lane, run = 16 // (2 if shape.dtype == "bf16" else 4), min(RUN, shape.tokens)
    require(shape.tokens > 0, "no tokens", "at least one")
    require(shape.channels % lane == 0, f"{shape.channels} channels", f"a multiple of {lane} for {shape.dtype}")
    args = (
        *pointers(at, "x", "weight"),
        *ints(shape.parameter_dtype == "bf16"),
        *pointers(at, "state", "n_commit", "y"),
        *ints(shape.tokens, shape.channels, run),
    )
    blocks = -(-shape.channels // (lane * BLOCK))
    return Launch(f"causal_conv1d_{shape.dtype}", (blocks, -(-shape.tokens // run), shape.slots), BLOCK, 0, args)
