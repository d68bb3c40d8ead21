"""Bugs planted in the kernels of the routed experts are caught by their tests' checks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import test_moe_experts as experts
from test_planted_bugs_linear import sources

from deltart.plugins.cpu_shim.runner import REVERSE
from deltart.plugins.moe_experts.cases import reference
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support.planted import is_caught

__all__ = ["sources"]  # the fixture


def mixes(op: Path, tokens: int = 5, stored: str = "e4m3", count: int = 40, present: int = 31) -> bool:
    """With as many experts as make two warps route, and the last token of all a real one."""
    shape = replace(experts.SMALL, experts=count, present=present, slots=3, tokens=tokens, hidden=272, width=144)
    shape = replace(shape, stored=stored)
    if stored == "bf16":
        shape = replace(shape, present=0)
    counts = [max(1, tokens // 2), 0, tokens]
    return all(experts.check(shape, counts, order=order, folder=op) for order in (0, REVERSE))


ROUTE, STORED, DECODE, GROUPS, ORDER = "route.cuh", "experts.cuh", "decode.cu", "prefill.cu", "order.cuh"
WGMMA = "prefill_wgmma.cu"
mix_many, mix_plain, mix_many_plain = (
    functools.partial(mixes, tokens=tokens, stored=stored)
    for tokens, stored in ((50, "e4m3"), (5, "bf16"), (50, "bf16"))
)


def orders(op: Path) -> bool:
    return all(experts.orders(order, op) for order in (0, REVERSE))


def rounds(op: Path) -> bool:
    shape = replace(experts.SMALL, slots=2, tokens=40, hidden=208, width=144, shared=48, present=5, quantized=True)
    return all(experts.by_parts(shape, [40, 9], order, op) for order in (0, REVERSE))


def by_warpgroups(op: Path) -> bool:
    """Blocks of K that go round the ring, tiles of all sizes, and widths that end within one."""
    shape = replace(experts.SMALL, slots=2, tokens=100, hidden=656, width=144, shared=272, present=5, quantized=True)
    return all(experts.by_parts(shape, [100, 51], order, op, experts.HOPPER) for order in (0, REVERSE))


def goes_round(op: Path) -> bool:
    """More blocks of K for a warp than its ring has stages."""
    shape = replace(experts.SMALL, tokens=2, hidden=2064, width=16, shared=16)
    given = experts.inputs.make(shape, 0)
    return relative_rms(experts.run(shape, given, folder=op)["y"], reference(shape, given)) <= TOLERANCE["bf16"]


def ties_across(op: Path) -> bool:
    """Experts of two groups are equal, and one of them is the last that is chosen."""
    shape = replace(experts.SMALL, tokens=3, experts=40, chosen=3)
    given = experts.inputs.make(shape, 0)
    given["logits"][..., [3, 35]], given["logits"][..., [0, 39]] = 9, 8
    return relative_rms(experts.run(shape, given, folder=op)["y"], reference(shape, given)) <= TOLERANCE["bf16"]


mix_few = functools.partial(mixes, count=7, present=5)  # among which equal logits are chosen
# What is wrong: the file, its line, what replaces it, and the check that fails.
BUGS: dict[str, tuple[str, str, str, Callable[[Path], bool]]] = {
    "gate and up exchanged": (STORED, "kDown, kGate, kUp", "kDown, kUp, kGate", mixes),
    "up rows before the gate's": (STORED, "2 + (part == kUp)", "2 + (part != kUp)", mix_plain),
    "experts by number instead of slot": (
        ROUTE,
        "slot_of[s < blockDim.x ? own : in.slot_expert[s]] = s",
        "slot_of[s] = s",
        mixes,
    ),
    "scales of the slot before": (STORED, "at * blocks)", "(at < 3 ? at : at - 3) * blocks)", mixes),
    "the upper expert of equal ones": (ROUTE, "&& first + i < e)", "&& first + i > e)", mix_few),
    "weights not renormalised": (ROUTE, "- best[0]) / sum;", "- best[0]);", mixes),
    "one expert too few": (ROUTE, "if (larger < in.chosen)", "if (larger < in.chosen - 1)", mixes),
    "padded tokens routed": (ROUTE, "in.n_tokens[row / in.tokens];", "in.tokens;", mixes),
    "the best of a group alone": (ROUTE, "if (larger < kept &&", "if (larger < 1 &&", mixes),
    "the upper group of equal ones": (ROUTE, "&& other < c))", "&& other > c))", ties_across),
    "candidates read before they are there": (ROUTE, "  __syncthreads();\n  for (int c", "  for (int c", mixes),
    "logits read before they are there": (
        ROUTE,
        "  // kept if logits are NaN\n  __syncthreads();\n",
        "  // kept if logits are NaN\n",
        mixes,
    ),
    "shared expert's gate left open": (ROUTE, "= sigmoid(gate);", "= gate;", mixes),
    "sum of the gate by one warp": (ROUTE, "partial[warp];", "partial[0];", mixes),
    "tokens of another place": (DECODE, "list[8 * m + tile.g] / places.choices", "8 * m + tile.g", mixes),
    "parts of K added too early": (
        DECODE,
        "+ row] = value; });\n  __syncthreads();\n",
        "+ row] = value; });\n",
        mixes,
    ),
    "a warp's part of K left out": (DECODE, "part = 0; part < warps;", "part = 1; part < warps;", mixes),
    "experts counted off before they are found": (
        DECODE,
        "    is_first[i] = !seen;\n  }\n  __syncthreads();\n",
        "    is_first[i] = !seen;\n  }\n",
        mixes,
    ),
    "sums read before they are there": (
        DECODE,
        "  }\n  __syncthreads();\n  const int M",
        "  }\n  const int M",
        mixes,
    ),
    "blocks read before they are there": (DECODE, "      wait_copies<kStages - 2>();\n", "", mixes),
    "blocks of the stage before": (DECODE, "multiply(block, turn, scale", "multiply(block, turn ^ 1, scale", mixes),
    "scales of the block after": (DECODE, "scales[half], turn % 32)", "scales[half], (turn + 1) % 32)", mixes),
    "one scale for both matrices": (DECODE, "scales[half], turn % 32)", "scales[0], turn % 32)", mixes),
    "a stage filled that is still to be read": (
        DECODE,
        "fetch(turn + kStages - 1, step)",
        "fetch(turn + kStages, step)",
        goes_round,
    ),
    "absent experts added": (DECODE, "if (slots[i] >= 0) sum", "if (true) sum", mixes),
    "h of the tokens instead of the places": (
        DECODE,
        "h + size_t(list[8 * m + tile.g]) * stride",
        "h + size_t(list[8 * m + tile.g] / places.choices) * stride",
        mixes,
    ),
    "weights of the next place": (
        DECODE,
        "places.weight[list[token]]",
        "places.weight[list[token] + 1]",
        mixes,
    ),
    "the last place left out": (ORDER, "i + j < in.places ?", "i + j < in.places - 1 ?", orders),
    "places of lanes on top of each other": (ORDER, "if (lane >= delta) upto += below;", "", orders),
    "stretches on top of each other": (ORDER, "before += partial[other];", "", orders),
    "turns on top of each other": (ORDER, "    before += __shfl_sync(kFullWarp, upto, 31);\n", "", orders),
    "parts of the tiles read too late": (ORDER, "  __syncthreads();  // the tiles' parts are read\n", "", orders),
    "stretches counted too early": (
        ORDER,
        "partial[warp] = found;\n  __syncthreads();\n",
        "partial[warp] = found;\n",
        orders,
    ),
    "a stretch for all": (ORDER, "lane, 32);", "lane, kOrderThreads);", orders),
    "places of absent experts left as they are": (ORDER, "in.position[i + j] = -1;", "in.position[i + j] = 0;", orders),
    "tiles of the slots before not counted": (
        ORDER,
        "(in.count[i] + in.each - 1) / in.each;\n  }",
        "in.count[i] / in.each;\n  }",
        mix_many,
    ),
    "operands read before they are there": (GROUPS, "      wait_copies<kStages - 2>();\n", "", mix_many),
    "operands overwritten too early": (
        GROUPS,
        "      __syncthreads();\n      if (step",
        "      if (step",
        mix_many,
    ),
    "last scaled block left out": (GROUPS, " || step + 1 == steps) promote", ") promote", mix_many),
    "up with the scales of the gate": (GROUPS, "Gated ? lower.scale_of", "Gated ? upper.scale_of", mix_many),
    "up with the rows of the gate": (GROUPS, "Gated ? r / 8 % 2 : 0", "0", mix_many_plain),
    "codes read as of the place before": (ORDER, "in.position ? in.position[i] : i;", "i;", rounds),
    "h rounded beyond its width": (
        ORDER,
        "== slots ? shared_width : width",
        "== slots ? width : shared_width",
        rounds,
    ),
    "scales of the tile's own rows": (
        GROUPS,
        "size_t(rows[r]) * scale_blocks + block]",
        "size_t(r) * scale_blocks + block]",
        rounds,
    ),
    "one scale for two rows": (GROUPS, "scales.token[m][i / 2]", "scales.token[m][0]", rounds),
    "scales of the first block": (GROUPS, "* scale_blocks + block] :", "* scale_blocks] :", rounds),
    "a stage read before it is full": (
        WGMMA,
        "    wait(&memory.full[step % kStages], step / kStages % 2);\n",
        "",
        by_warpgroups,
    ),
    "a stage filled before it is empty": (
        WGMMA,
        "        wait(&memory.empty[step % kStages], step / kStages % 2 ^ 1);\n",
        "",
        by_warpgroups,
    ),
    "a stage given back after the first half": (WGMMA, "if (half + 1 == halves)", "if (half == 0)", by_warpgroups),
    "operands announced on their way": (WGMMA, "        wait_copies<kLag>();\n", "", by_warpgroups),
    "operands announced a stage early": (WGMMA, "wait_copies<kLag>()", "wait_copies<kLag + 1>()", by_warpgroups),
    "the last operands never waited for": (WGMMA, "    wait_copies<0>();\n", "", by_warpgroups),
    "operands not shown to the products": (WGMMA, "    fence_async();\n    arrive(", "    arrive(", by_warpgroups),
    "sums read before the products are done": (WGMMA, "      wait_products<0>(part);\n", "", by_warpgroups),
    "products not committed": (WGMMA, "      commit_products();\n", "", by_warpgroups),
    "products not fenced": (WGMMA, "      fence_products(part);\n", "", by_warpgroups),
    "half of a tile left out": (WGMMA, "work.tokens > kHalf ? 2 : 1", "work.tokens > kTile ? 2 : 1", by_warpgroups),
    "the upper half of x again": (WGMMA, "(half * kHalf * kBlock + k)", "(k)", by_warpgroups),
    "the other warpgroup's rows": (WGMMA, "describe(stage.w[group])", "describe(stage.w[1 - group])", by_warpgroups),
    "a scale of the block before": (
        WGMMA,
        "const float2 w = next;",
        "const float2 w = scale(work, max(block - 1, 0));",
        by_warpgroups,
    ),
    "up scaled as gate": (WGMMA, "by[Gated ? i / 4 % 2 : 0]", "by[0]", by_warpgroups),
    "one scale for rows eight apart": (
        WGMMA,
        "bottom = x_scale[half * kHalf + 8]",
        "bottom = x_scale[half * kHalf]",
        by_warpgroups,
    ),
    "scales of another place": (
        WGMMA,
        "memory.x_scale[step % kStages] + own,",
        "memory.x_scale[step % kStages] + thread,",
        by_warpgroups,
    ),
    "rows of another lane": (WGMMA, "own_row, i * 4 + part % 4)", "own_row, i * 4)", by_warpgroups),
    "x of the place instead of its token": (WGMMA, "[first + r] / in.choices", "[first + r] % in.tiles", by_warpgroups),
    "up taken from the gate": (WGMMA, "part >= kApart ? work.lower", "part > kGroup ? work.lower", by_warpgroups),
    "scales of the tile's first rows": (
        WGMMA,
        "work.first_row + group * kRows, work",
        "work.first_row, work",
        by_warpgroups,
    ),
    "columns of the other warpgroup": (
        WGMMA,
        "work.first_row + group * kRows + lane",
        "work.first_row + lane",
        by_warpgroups,
    ),
    "rows weighted as of the tile": (WGMMA, "in.weight[in.order.place[at]]", "in.weight[at]", by_warpgroups),
    "rows of another place": (GROUPS, "weight[order.place[at]]", "weight[at]", mix_many),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(sources: Path, bug: str) -> None:
    name, right, wrong, passes = BUGS[bug]
    assert is_caught(sources / experts.FOLDER.name, name, right, wrong, passes)


@pytest.mark.slow
def test_an_unbroken_copy_passes(sources: Path) -> None:
    for passes in {passes for *_, passes in BUGS.values()}:
        assert passes(sources / experts.FOLDER.name)


def test_the_lines_to_break_are_there() -> None:
    counts = {bug: (experts.FOLDER / name).read_text().count(right) for bug, (name, right, *_) in BUGS.items()}
    assert set(counts.values()) == {1}, counts
    assert all(wrong != right for _, right, wrong, _ in BUGS.values())
