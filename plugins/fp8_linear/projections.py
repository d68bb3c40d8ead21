"""Launches of several linears of one x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltart.plugins.fp8_linear import prefill as tiles
from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.fp8_linear.launch import ROWS, split
from deltart.plugins.launch import Arguments, Launch, ints, pointers, require

MAX_FP8, MAX_PLAIN = 3, 2


@dataclass(frozen=True)
class Projection:
    """One weight [n, K] and the names in `at` of itself, its scales (block FP8; none for a bf16 weight) and its y."""

    n: int
    weight: str
    y: str
    scale: str | None = None


def decode(shape: Shape, members: Sequence[Projection], at: dict[str, int]) -> Launch:
    """Any number of tokens, meant for 1 to 64. `shape.n` is of no account. `at`: x, and what `members` name."""
    fp8, plain = ([m for m in members if (not m.scale) == bare] for bare in (False, True))
    found = f"{len(fp8)} block-FP8 weights and {len(plain)} others"
    require(len(fp8) <= MAX_FP8 and len(plain) <= MAX_PLAIN, found, f"up to {MAX_FP8} and {MAX_PLAIN}")
    by = split(replace(shape, n=sum(m.n for m in members)))
    tiles.check(replace(shape, n=min(m.n for m in members)))
    args: Arguments = (*pointers(at, "x"), *ints(shape.scale_dtype == "bf16"))
    none = Projection(0, "none", "none", "none")
    for member in [*fp8, *[none] * (MAX_FP8 - len(fp8))]:
        args += (*pointers({"none": 0} | at, member.weight, str(member.scale), member.y), *ints(member.n))
    for member in [*plain, *[none] * (MAX_PLAIN - len(plain))]:
        args += (*pointers({"none": 0} | at, member.weight, member.y), *ints(member.n))
    args += ints(shape.rows, shape.k, by.row_groups)
    blocks = sum(-(-m.n // (ROWS * by.row_groups)) for m in members)
    grid = (-(-shape.rows // (8 * by.tiles)), blocks, 1)
    name = f"fp8_block_linear_projections_{shape.dtype}_m{by.tiles}"
    return Launch(name, grid, 32 * by.warps, by.shared_bytes, args)


def prefill(
    shape: Shape, members: Sequence[Projection], kernel: tiles.TileKernel, at: dict[str, int], multiprocessors: int
) -> list[Launch]:
    """Any number of bf16 tokens, meant for more than 64: the tile kernel on each block-FP8 weight, and one launch for
    the others. `at`: as `decode`, and the scratch arrays of `kernel`."""
    launches: list[Launch] = []
    for member in members:
        if not member.scale:
            continue
        # Codes and scales of the first weight's x serve the others.
        run = tiles.prefill if launches or kernel is tiles.W8A16 else tiles.prefill_w8a8
        mine = at | {"weight": at[member.weight], "weight_scale_inv": at[member.scale], "y": at[member.y]}
        launches += run(replace(shape, n=member.n), kernel, mine, multiprocessors)
    plain = [member for member in members if not member.scale]
    return [*launches, decode(shape, plain, at)] if plain else launches
