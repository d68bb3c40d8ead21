"""The fast bodies against the ops' float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltart.calib.bodies import FastBodies
from deltart.export import ops

LENGTHS = (1, 5, 63, 65, 150)


def random(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape)).float()


def assert_same(op: object, *arguments: object) -> None:
    """Run `op` by its reference, then by its fast body."""
    expected = op(*arguments)  # type: ignore[operator]
    with FastBodies():
        found = op(*arguments)  # type: ignore[operator]
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    for x, y in pairs:
        assert x.shape == y.shape and x.dtype == y.dtype
        assert float((x - y).square().mean().sqrt()) <= 2e-6 * max(float(y.square().mean().sqrt()), 1e-3)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("correlated", [False, True])
def test_gated_delta_rule(length: int, correlated: bool) -> None:
    rng, sizes = np.random.default_rng(length), (2, 4, 16, 24)
    qkv = random(rng, 2, length, 2 * 2 * 16 + 4 * 24) + (3.0 if correlated else 0.0)
    a, b, S = random(rng, 2, length, 4), random(rng, 2, length, 4), random(rng, 2, 4, 16, 24)
    A_log, dt_bias = random(rng, 4).bfloat16(), random(rng, 4)
    n_tokens = torch.tensor([length, length // 2], dtype=torch.int32)
    assert_same(ops.gated_delta_rule, qkv, a, b, A_log, dt_bias, S, n_tokens, n_tokens, *sizes)
    with pytest.raises(ValueError), FastBodies():
        ops.gated_delta_rule(qkv, a, b, A_log, dt_bias, S, n_tokens, n_tokens - 1, *sizes)


@pytest.mark.parametrize("length", LENGTHS)
def test_convolution_and_norm(length: int) -> None:
    rng = np.random.default_rng(length)
    n_commit = torch.tensor([length, length // 2], dtype=torch.int32)
    assert_same(
        ops.causal_conv1d, random(rng, 2, length, 6), random(rng, 6, 1, 4).bfloat16(), random(rng, 2, 3, 6), n_commit
    )
    assert_same(ops.gated_rms_norm, random(rng, 2, length, 24), random(rng, 8), random(rng, 2, length, 24), 1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_attention(length: int) -> None:
    rng = np.random.default_rng(length)
    q, k, v, gate = (random(rng, 2, length, heads * 16) for heads in (4, 2, 2, 4))
    caches = [random(rng, 2, 2, length + 3, 16) for _ in range(2)]
    past, n_tokens = torch.zeros(2, dtype=torch.int32), torch.tensor([length, (length + 1) // 2], dtype=torch.int32)
    assert_same(ops.gated_attention, q, k, v, gate, *caches, past, n_tokens, 4, 2, 16)
    with pytest.raises(ValueError), FastBodies():
        ops.gated_attention(q, k, v, gate, *caches, past + 1, n_tokens, 4, 2, 16)


def test_fp8_linear() -> None:
    rng = np.random.default_rng(0)
    weight = random(rng, 200, 300).to(torch.float8_e4m3fn)
    arguments = (random(rng, 2, 5, 300), weight, random(rng, 2, 3).abs().bfloat16())
    assert_same(ops.fp8_block_linear, *arguments, 0)
    with pytest.raises(ValueError), FastBodies():
        ops.fp8_block_linear(*arguments, 1)


@pytest.mark.parametrize("length", (1, 9))
def test_moe_experts(length: int) -> None:
    rng = np.random.default_rng(length)
    x, logits = random(rng, 2, length, 200), random(rng, 2, length, 7)
    n_tokens = torch.tensor([length, length // 2], dtype=torch.int32)
    sizes = (3, 200, 160)
    assert_same(ops.moe_experts, x, logits, n_tokens, random(rng, 7, 320, 200), random(rng, 7, 200, 160), *sizes)
    codes, scale = random(rng, 5, 3, 200 * 160).to(torch.float8_e4m3fn), random(rng, 5, 3, 4).abs().bfloat16()
    slot_expert = torch.tensor([4, 0, 6, 1, 3], dtype=torch.int32)
    assert_same(ops.fp8_moe_experts, x, logits, n_tokens, codes, scale, slot_expert, *sizes, 0)
