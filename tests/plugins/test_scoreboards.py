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


@pytest.mark.slow
@pytest.mark.parametrize("target", ["89", "90a", "120a"])
@pytest.mark.parametrize("source", RINGS)
def test_no_load_outlives_its_round(source: str, target: str, tmp_path: Path) -> None:
    found = loops(PLUGINS / f"{source}.cu", target, tmp_path)
    assert len(found) >= 2
    for name, bodies in found.items():
        assert sum("LDGSTS" in one.text for one in bodies[-1]) >= 4, name
        for body in bodies:
            assert not [load for load in sass.waited_a_round_later(body) if ".128" in load], name


@pytest.mark.slow
def test_loads_ahead_into_registers_are_seen(tmp_path: Path) -> None:
    (tmp_path / "ahead.cu").write_text(AHEAD.replace("PLUGINS", str(PLUGINS)))
    found = loops(tmp_path / "ahead.cu", "90a", tmp_path)
    assert any(sass.waited_a_round_later(body) for bodies in found.values() for body in bodies)
