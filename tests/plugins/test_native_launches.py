"""The C++ launches against Python's: every launch of every case, argument by argument, and every refusal."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltart.errors import BuildError
from deltart.plugins.cases import OpCall, calls_of
from deltart.plugins.kernel_call import kernel_of
from deltart.plugins.registry import OPS
from support.native import Host, given_of, host, planted, text_of

BY_NAME = {spec.name: spec for spec in OPS}
# One constant of each op's launch.hpp, and another value of it.
PLANTED = {
    "AttentionProjections": ("fp8_linear/projections.hpp", ('"Nk"), "k_weight"', '"Nv"), "k_weight"')),
    "CausalConv1d": ("causal_conv1d/launch.hpp", ("RUN = 16", "RUN = 17")),
    "DeltaNetProjections": ("fp8_linear/projections.hpp", ("MAX_PLAIN = 2", "MAX_PLAIN = 3")),
    "Fp8BlockGateUp": ("fp8_linear/gate_up.hpp", ("SHARE = 8 * 256", "SHARE = 8 * 128")),
    "Fp8MoeExperts": ("moe_experts/launch.hpp", ("TILE_STRIDE = 20", "TILE_STRIDE = 24")),
    "Fp8SparseMoe": ("moe_experts/launch.hpp", ("ALIGNMENT = 256", "ALIGNMENT = 512")),
    "Fp8BlockLinear": ("fp8_linear/linear.hpp", ("ENOUGH_WARPS = 1700", "ENOUGH_WARPS = 600")),
    "GatedAttention": ("gated_attention/launch.hpp", ("BLOCKS = 264", "BLOCKS = 263")),
    "GatedDeltaRule": (
        "gated_delta_rule/launch.hpp",
        ("chunk * chunk * 2 + 16 * chunk", "chunk * chunk * 2 + 8 * chunk"),
    ),
    "GatedRMSNorm": ("gated_rms_norm/launch.hpp", ("MAX_CHANNELS = 512", "MAX_CHANNELS = 516")),
    "Int4AttentionProjections": ("int4_linear/launch.hpp", ("MAX_WARPS / by.parts", "MAX_WARPS")),
    "Int4DeltaNetProjections": (
        "int4_linear/launch.hpp",
        ("MAX_INT4 = 3, MAX_PLAIN = 2", "MAX_INT4 = 4, MAX_PLAIN = 2"),
    ),
    "Int4GroupGateUp": ("int4_linear/launch.hpp", ("SHARE = 8 * 256", "SHARE = 8 * 128")),
    "Int4GroupLinear": ("int4_linear/launch.hpp", ("ENOUGH_WARPS = 2048", "ENOUGH_WARPS = 2047")),
    "Int4LmHead": ("int4_linear/launch.hpp", ("PIECE = 32", "PIECE = 16")),
    "LmHead": ("lm_head/launch.hpp", ("DECODE_TILES = 1", "DECODE_TILES = 2")),
    "MoeExperts": ("moe_experts/launch.hpp", ("HALF_ROWS = 8", "HALF_ROWS = 16")),
    "QkNormRope": ("qk_norm_rope/launch.hpp", ("MAX_CHANNELS = 256", "MAX_CHANNELS = 264")),
    "SparseMoe": ("moe_experts/launch.hpp", ("GATE_UP_WARPS = 4,", "GATE_UP_WARPS = 5,")),
}


@pytest.fixture(scope="module")
def native() -> Host:
    return host()


def outcome(answer: Callable[..., str], *arguments: Any) -> str:
    """What `answer` returns, or what it refuses."""
    try:
        return answer(*arguments)
    except BuildError as error:
        return f"refused: {error.found} / {error.expected} / {error.hint}"


def launches(case: OpCall) -> str:
    source, made = kernel_of(case.spec).launches(case.call())
    return text_of(source, made)


def workspace(case: OpCall) -> str:
    return str(kernel_of(case.spec).workspace_bytes(case.call()))


def differences(native: Host, name: str) -> Iterator[tuple[OpCall, str, str]]:
    """The cases of an op whose launches or workspace differ, with what Python and C++ say."""
    for case in calls_of(BY_NAME[name]):
        given = ctypes.byref(given_of(case))
        for function in (launches, workspace):
            python, cpp = outcome(function, case), outcome(native.ask, function.__name__, given)
            if python != cpp:
                yield case, python, cpp


def test_every_op_is_in_the_library_and_in_the_cases(native: Host) -> None:
    names = [spec.name for spec in OPS]
    assert native.ask("ops").split() == names
    assert set(PLANTED) == set(names)


@pytest.mark.parametrize("name", BY_NAME)
def test_launches_and_workspaces_are_pythons(native: Host, name: str) -> None:
    assert next(differences(native, name), None) is None


def test_one_other_constant_is_seen(tmp_path: Path) -> None:
    changed = planted(tmp_path, PLANTED.values())
    for name in PLANTED:
        assert next(differences(changed, name), None) is not None, name
