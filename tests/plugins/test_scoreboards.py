"""Weights of the decode products come by copies that are waited for in order, not by loads that share a scoreboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltart.plugins import toolchain
from support import sass

PLUGINS = Path(toolchain.__file__).parent
RINGS = ("fp8_linear/decode", "fp8_linear/projections", "int4_linear/decode", "linear/kernel", "lm_head/kernel")


def loops(source: str, target: str, folder: Path) -> dict[str, list[list[sass.Instruction]]]:
    """The loops with products of each kernel with bf16 activations, the longest last: those over K."""
    tool = sass.nvdisasm()
    if tool is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    found = sass.kernels(PLUGINS / f"{source}.cu", target, tool, folder)
    bodies = {name: sorted(sass.loops(code), key=len) for name, code in found.items()}
    return {name: body for name, body in bodies.items() if body and "f32" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["89", "90a", "120a"])
@pytest.mark.parametrize("source", RINGS)
def test_no_load_outlives_its_round(source: str, target: str, tmp_path: Path) -> None:
    found = loops(source, target, tmp_path)
    assert len(found) >= 2
    for name, bodies in found.items():
        assert sum("LDGSTS" in one.text for one in bodies[-1]) >= 4, name
        for body in bodies:
            assert not sass.waited_a_round_later(body), name


@pytest.mark.slow
def test_loads_ahead_into_registers_are_seen(tmp_path: Path) -> None:
    """The experts' products still load so."""
    found = loops("moe_experts/decode", "90a", tmp_path)
    assert any(sass.waited_a_round_later(body) for bodies in found.values() for body in bodies)
