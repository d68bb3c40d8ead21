"""Launches of several linears of one x: int4 ones and, in their midst, bf16 ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deltart.plugins.fp8_linear.launch import RING_BYTES
from deltart.plugins.fp8_linear.projections import Projection
from deltart.plugins.int4_linear.inputs import Shape
from deltart.plugins.int4_linear.launch import MAX_WARPS, ROWS, Split, check, layout, scale_type, split
from deltart.plugins.int4_linear.prefill import prefill as tiles
from deltart.plugins.launch import Arguments, Launch, ints, pointers, require

MAX_INT4, MAX_PLAIN = 3, 2


def decode(shape: Shape, members: Sequence[Projection], at: dict[str, int]) -> Launch:
    """Any number of tokens, meant for 1 to 64. `shape.n` is of no account. `at`: x, and what `members` name."""
    int4, plain = ([m for m in members if (not m.scale) == bare] for bare in (False, True))
    found = f"{len(int4)} int4 weights and {len(plain)} others"
    require(len(int4) <= MAX_INT4 and len(plain) <= MAX_PLAIN, found, f"up to {MAX_INT4} and {MAX_PLAIN}")
    check(replace(shape, n=min(m.n for m in members)))
    by = _split(shape, members)
    args: Arguments = (*pointers(at, "x"), *scale_type(shape))
    none = Projection(0, "none", "none", "none")
    for member in [*int4, *[none] * (MAX_INT4 - len(int4))]:
        args += (*pointers({"none": 0} | at, member.weight, str(member.scale), member.y), *ints(member.n))
    for member in [*plain, *[none] * (MAX_PLAIN - len(plain))]:
        args += (*pointers({"none": 0} | at, member.weight, member.y), *ints(member.n))
    args += (*ints(shape.rows, shape.k), *layout(shape), *ints(by.row_groups))
    blocks = sum(-(-m.n // ROWS) for m in plain) + sum(-(-m.n // (ROWS * by.row_groups)) for m in int4)
    grid = (-(-shape.rows // (8 * by.tiles)), blocks, 1)
    name = f"int4_linear_projections_{shape.dtype}_m{by.tiles}"
    return Launch(name, grid, 32 * by.warps, by.shared_bytes, args)


def prefill(shape: Shape, members: Sequence[Projection], at: dict[str, int]) -> list[Launch]:
    """Any number of bf16 tokens, meant for more than 64: the tile kernel on each int4 weight, and one launch for the
    others. `at`: as `decode`, and partial."""
    launches: list[Launch] = []
    for member in members:
        if member.scale:
            mine = {"weight_groups": at[member.weight], "weight_scale": at[member.scale], "y": at[member.y]}
            launches += tiles(replace(shape, n=member.n), at | mine)
    plain = [member for member in members if not member.scale]
    return [*launches, decode(shape, plain, at)] if plain else launches


def _split(shape: Shape, members: Sequence[Projection]) -> Split:
    """Blocks have all their warps whatever the tokens, and all of them share a bf16 weight's rows: the parts of K
    follow from the weights alone."""
    by = split(replace(shape, n=sum(m.n for m in members)))
    return replace(by, row_groups=MAX_WARPS // by.parts, ring_bytes=max(by.ring_bytes, RING_BYTES))
