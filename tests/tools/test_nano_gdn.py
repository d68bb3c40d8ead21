"""The training form of the gated delta rule against a token-by-token loop in float64, gradients included."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5

from tools.nano import gdn
from tools.nano.gdn import gated_delta_rule


def by_token(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    """MODEL: S *= exp(g); d = (v - k^T S) * beta; S += k (x) d; o = q^T S."""
    repeats = value.shape[2] // query.shape[2]
    q, k = ((x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)).repeat_interleave(repeats, 2) for x in (query, key))
    state = torch.zeros(*value.shape[:1], value.shape[2], query.shape[3], value.shape[3], dtype=torch.float64)
    outputs = []
    for t in range(query.shape[1]):
        state = state * g[:, t, :, None, None].exp()
        delta = (value[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state)) * beta[:, t, :, None]
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], delta)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state) * query.shape[3] ** -0.5)
    return torch.stack(outputs, 1)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found.double() - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("length", [1, 63, 100])
@pytest.mark.parametrize("heads", [(1, 2), (2, 6)])
def test_matches_the_recurrence(length: int, heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(2, length, *shape, generator=generator, dtype=torch.float64)

    common = draw(heads[0], 128)  # keys that resemble each other make the triangular system hard
    exact = [draw(heads[0], 128), common + 0.3 * draw(heads[0], 128), draw(heads[1], 128)]
    exact += [-0.1 * draw(heads[1]).abs(), draw(heads[1]).sigmoid()]
    exact = [tensor.requires_grad_() for tensor in exact]
    single = [tensor.detach().float().requires_grad_() for tensor in exact]
    expected, found = by_token(*exact), gated_delta_rule(*single)[0]
    assert relative(found, expected) < 1e-5
    weight = draw(heads[1], 128)
    (expected * weight).sum().backward()
    (found * weight.float()).sum().backward()
    for name, a, b in zip(("q", "k", "v", "g", "beta"), single, exact, strict=True):
        if length > 1 or name != "g":  # with one token and no state, the decay has nothing to act on
            assert a.grad is not None and b.grad is not None
            assert relative(a.grad, b.grad) < 1e-4, name


def test_stock_layers_use_it_only_within_the_block() -> None:
    stock = modeling_qwen3_5.torch_chunk_gated_delta_rule
    with gdn.installed():
        assert modeling_qwen3_5.torch_chunk_gated_delta_rule is gdn.gated_delta_rule
    assert modeling_qwen3_5.torch_chunk_gated_delta_rule is stock
