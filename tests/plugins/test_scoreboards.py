"""Weights of the decode products come by copies that are waited for in order, not by loads that share a scoreboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltart.plugins import toolchain
from support import sass

PLUGINS = Path(toolchain.__file__).parent
RINGS = (
    "fp8_linear/decode",
    "fp8_linear/projections",
    "int4_linear/decode",
    "linear/kernel",
    "lm_head/kernel",
    "moe_experts/decode",
)
AHEAD = """#include "PLUGINS/common/tensor_core.cuh"

extern "C" __global__ void ahead_bf16(const uint4* weight, float* y, int blocks) {
  float sum[4] = {};
  uint4 w[3][2];
  auto fetch = [&](int block, uint4 (&to)[2]) {
    for (int i = 0; i < 2; ++i) to[i] = weight[block * 64 + i * 32 + threadIdx.x];
  };
  for (int i = 0; i < 3; ++i) fetch(i, w[i]);
  for (int block = 0; block < blocks; block += 3) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const BfPair a[4] = {w[i][0].x, w[i][0].y, w[i][0].z, w[i][0].w}, b[2] = {w[i][1].x, w[i][1].y};
      mma(sum, a, b);
      fetch(block + i + 3, w[i]);
    }
  }
  for (int i = 0; i < 4; ++i) y[threadIdx.x * 4 + i] = sum[i];
}
"""


def loops(source: Path, target: str, folder: Path) -> dict[str, list[list[sass.Instruction]]]:
    """The loops with products of each kernel with bf16 activations, the longest last: those over K."""
    tool = sass.nvdisasm()
    if tool is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    found = sass.kernels(source, target, tool, folder)
    bodies = {name: sorted(sass.loops(code), key=len) for name, code in found.items()}
    return {name: body for name, body in bodies.items() if body and "f32" not in name}


def asks_ahead(source: str, name: str) -> bool:
    """Whether the kernel loads x a block ahead: of up to eight tokens, in the tile of linear_tile.cuh."""
    return name.endswith("_m1") and "int4" not in source and "moe" not in source


@pytest.mark.slow
@pytest.mark.parametrize("target", ["89", "90a", "120a"])
@pytest.mark.parametrize("source", RINGS)
def test_no_load_outlives_its_round(source: str, target: str, tmp_path: Path) -> None:
    found = loops(PLUGINS / f"{source}.cu", target, tmp_path)
    assert len(found) >= 2
    for name, bodies in found.items():
        assert sum("LDGSTS" in one.text for one in bodies[-1]) >= 4, name
        if not asks_ahead(source, name):
            for body in bodies:
                assert not [load for load in sass.waited_a_round_later(body) if ".128" in load], name


@pytest.mark.slow
@pytest.mark.parametrize("target", ["89", "90a", "120a"])
@pytest.mark.parametrize("source", [source for source in RINGS if "int4" not in source and "moe" not in source])
def test_x_of_few_tokens_is_asked_for_a_block_ahead(source: str, target: str, tmp_path: Path) -> None:
    """In one of two rounds at least: the assembler may give both rounds' loads one scoreboard."""
    every = loops(PLUGINS / f"{source}.cu", target, tmp_path)
    found = {name: bodies for name, bodies in every.items() if asks_ahead(source, name)}
    assert found
    for name, bodies in found.items():
        pair = next(body for body in bodies if sum("LDGSTS" in one.text for one in body) == 8)
        counts, products = sass.products_before_wait(pair), sum("HMMA" in one.text for one in pair)
        assert "e4m3" in name or sum(count >= products // 2 for count in counts) >= len(counts) // 2 > 0, (name, counts)


@pytest.mark.slow
def test_loads_ahead_into_registers_are_seen(tmp_path: Path) -> None:
    (tmp_path / "ahead.cu").write_text(AHEAD.replace("PLUGINS", str(PLUGINS)))
    found = loops(tmp_path / "ahead.cu", "90a", tmp_path)
    assert any(sass.waited_a_round_later(body) for bodies in found.values() for body in bodies)
