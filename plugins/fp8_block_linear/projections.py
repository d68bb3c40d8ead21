"""Several linears of one x: the launch for few tokens, the launches for many, and the plugin seam they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltart.plugins.fp8_block_linear import plugin as linear
from deltart.plugins.fp8_block_linear import prefill as tiles
from deltart.plugins.fp8_block_linear.inputs import Shape
from deltart.plugins.fp8_block_linear.launch import ROWS, split
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Arguments, Launch, ints, pointers, require

MOST_FP8, MOST_PLAIN = 3, 2
SOURCES = ("projections.cu", "prefill.cu", "prefill_wgmma.cu")


@dataclass(frozen=True)
class Projection:
    """One weight [n, K] and the names in `at` of itself, its scales (block FP8; none for a bf16 weight) and its y."""

    n: int
    weight: str
    y: str
    scale: str | None = None


def few(shape: Shape, members: Sequence[Projection], at: dict[str, int]) -> Launch:
    """Any number of tokens, meant for 1 to 64. `shape.n` is of no account. `at`: x, and what `members` name."""
    fp8, plain = ([m for m in members if (not m.scale) == bare] for bare in (False, True))
    found = f"{len(fp8)} block-FP8 weights and {len(plain)} others"
    require(len(fp8) <= MOST_FP8 and len(plain) <= MOST_PLAIN, found, f"up to {MOST_FP8} and {MOST_PLAIN}")
    by = split(replace(shape, n=sum(m.n for m in members)))
    tiles.check(replace(shape, n=min(m.n for m in members)))
    args: Arguments = (*pointers(at, "x"), *ints(shape.scale_dtype == "bf16"))
    none = Projection(0, "none", "none", "none")
    for member in [*fp8, *[none] * (MOST_FP8 - len(fp8))]:
        args += (*pointers({"none": 0} | at, member.weight, str(member.scale), member.y), *ints(member.n))
    for member in [*plain, *[none] * (MOST_PLAIN - len(plain))]:
        args += (*pointers({"none": 0} | at, member.weight, member.y), *ints(member.n))
    args += ints(shape.rows, shape.k, by.row_groups)
    blocks = sum(-(-m.n // (ROWS * by.row_groups)) for m in members)
    grid = (-(-shape.rows // (8 * by.tiles)), blocks, 1)
    name = f"fp8_block_linear_projections_{shape.dtype}_m{by.tiles}"
    return Launch(name, grid, 32 * by.warps, by.shared_bytes, args)


def many(
    shape: Shape, members: Sequence[Projection], kernel: tiles.Kernel, at: dict[str, int], multiprocessors: int
) -> list[Launch]:
    """Any number of bf16 tokens, meant for more than 64: the tile kernel on each block-FP8 weight, and one launch for
    the others. `at`: as `few`, and the scratch arrays of `kernel`."""
    launches: list[Launch] = []
    for member in members:
        if not member.scale:
            continue
        # Codes and scales of the first weight's x serve the others.
        run = tiles.prefill if launches or kernel is tiles.W8A16 else tiles.prefill_w8a8
        mine = at | {"weight": at[member.weight], "weight_scale_inv": at[member.scale], "y": at[member.y]}
        launches += run(replace(shape, n=member.n), kernel, mine, multiprocessors)
    plain = [member for member in members if not member.scale]
    return [*launches, few(shape, plain, at)] if plain else launches


@dataclass(frozen=True)
class Projections:
    """How an op of several projections runs: `members` says which they are for the sizes of a call."""

    members: Callable[[Mapping[str, Any]], Sequence[Projection]]

    @property
    def kernel(self) -> Kernel:
        """The op's entry for TensorRT."""
        return Kernel(Path(__file__).resolve().parent, SOURCES, self.workspace_bytes, self.launches)

    def workspace_bytes(self, call: Call) -> int:
        """What the widest of the linears takes."""
        return linear.scratch_bytes(call, self._shape(call))

    def launches(self, call: Call) -> tuple[str, list[Launch]]:
        """The source and launches of one call: few tokens take one launch."""
        shape, members = self._shape(call), self.members(call.sizes)
        if linear.is_few(call, shape):
            return "projections.cu", [few(shape, members, call.at)]
        kernel = linear.tile_kernel(call)
        return kernel.source, many(shape, members, kernel, linear.scratch(call, shape), call.multiprocessors)

    def _shape(self, call: Call) -> Shape:
        members = self.members(call.sizes)
        kinds = sorted({call.dtypes[m.scale] for m in members if m.scale})
        plain = sorted({call.dtypes[m.weight] for m in members if not m.scale})
        require(len(kinds) == 1, f"scales stored as {' and '.join(kinds)}", "one type for all")
        require(plain in ([], ["bf16"]), f"weights stored as {' and '.join(plain)}", "bf16")
        widest = max(m.n for m in members if m.scale)
        return Shape(call.sizes["B"], call.sizes["T"], widest, call.sizes["K"], call.dtypes["x"], kinds[0])
