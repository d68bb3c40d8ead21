"""Error-compensated rounding: better outputs on fresh inputs, valid values, and nothing lost without correlation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltart.calib import compensate as module_of_compensate
from deltart.calib.compensate import compensate
from deltart.calib.scales import Quantized, absmax, search


def correlated(tokens: int, width: int, seed: int) -> torch.Tensor:
    """Inputs with a decaying spectrum: the same mixing for every seed."""
    mixing = np.random.default_rng(99).standard_normal((width, width)) * (np.arange(1, width + 1) ** -0.7)[:, None]
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((tokens, width)) @ mixing).float()


def alone(weight: torch.Tensor, moments: list[torch.Tensor], tokens: int) -> Quantized:
    """One weight, with the scales that the method gives it."""
    scale = search(weight, torch.cat([H.diagonal() for H in moments])).scale
    return compensate([weight], [scale], moments, tokens)[0]


def output_error(weight: torch.Tensor, restored: torch.Tensor, x: torch.Tensor) -> float:
    return float((x.double() @ (restored.double() - weight.double()).T).square().mean())


@pytest.mark.parametrize("tokens", [256, 4096])
@pytest.mark.parametrize("heavy", [False, True])
def test_output_error_on_fresh_inputs(tokens: int, heavy: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_t(2, (256, 384)) if heavy else rng.standard_normal((256, 384))
    weight = torch.from_numpy(values).to(torch.bfloat16)
    x, fresh = correlated(tokens, 384, 0), correlated(2000, 384, 1)
    ours = output_error(weight, alone(weight, [x.T @ x], tokens).dequantized(), fresh)
    assert ours <= 0.5 * output_error(weight, absmax(weight).dequantized(), fresh)
    assert ours <= 0.5 * output_error(weight, search(weight, None).dequantized(), fresh)


def test_column_ranges_are_independent() -> None:
    weight = torch.from_numpy(np.random.default_rng(2).standard_normal((128, 384))).to(torch.bfloat16)
    x = correlated(1000, 384, 0)
    left, right = x[:, :256], x[:, 256:]
    both = alone(weight, [left.T @ left, right.T @ right], 1000)
    for part, columns in ((left, slice(0, 256)), (right, slice(256, 384))):
        own = alone(weight[:, columns].contiguous(), [part.T @ part], 1000)
        assert torch.equal(both.weight[:, columns].view(torch.uint8), own.weight.view(torch.uint8))


def test_rows_and_weights_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several weights at once, in pieces of rows, against each alone; up to ties that the order of sums decides."""
    weights = [torch.from_numpy(np.random.default_rng(n).standard_normal((256, 256))).bfloat16() for n in (4, 5)]
    x = correlated(1000, 256, 0)
    scales = [search(weight, None).scale for weight in weights]
    monkeypatch.setattr(module_of_compensate, "ROWS", 128)
    together = compensate(weights, scales, [x.T @ x], 1000)
    monkeypatch.undo()
    for weight, scale, found in zip(weights, scales, together, strict=True):
        own = compensate([weight], [scale], [x.T @ x], 1000)[0]
        same = (own.weight.view(torch.uint8) == found.weight.view(torch.uint8)).float().mean()
        assert float(same) > 0.999


def share_to_gain(weight: torch.Tensor, found: Quantized, H: torch.Tensor) -> float:
    """Share of values that lower the output error in float64 when they alone move to a neighbouring value."""
    gradient, codes = (found.dequantized().double() - weight.double()) @ H, found.weight.view(torch.uint8).short()
    gains = []
    for step in (-1, 1):
        moved = (codes + step).clamp(0, 254).to(torch.uint8).view(torch.float8_e4m3fn)
        delta = Quantized(moved, found.scale).dequantized().double() - found.dequantized().double()
        gains.append((2 * delta * gradient + delta.square() * H.diagonal()).nan_to_num(0.0, 0.0, 0.0))
    return float((torch.minimum(*gains) < -1e-9 * H.diagonal()).double().mean())


def test_few_single_changes_would_still_help() -> None:
    weight = torch.from_numpy(np.random.default_rng(6).standard_normal((128, 256))).bfloat16()
    x = correlated(1000, 256, 0)
    H = module_of_compensate._damped(x.T @ x, 1000).double()
    assert share_to_gain(weight, absmax(weight), H) > 0.3
    assert share_to_gain(weight, alone(weight, [x.T @ x], 1000), H) < 0.1


@pytest.mark.parametrize("case", ["dead", "dead columns", "zero weight", "one token"])
def test_degenerate_statistics(case: str) -> None:
    weight = torch.from_numpy(np.random.default_rng(3).standard_normal((128, 256))).to(torch.bfloat16)
    x = correlated(1 if case == "one token" else 500, 256, 0)
    if case.startswith("dead"):
        x[:, 0 if case == "dead" else 100 :] = 0
    if case == "zero weight":
        weight = torch.zeros_like(weight)
    restored = alone(weight, [x.T @ x], len(x)).dequantized()
    assert bool(restored.isfinite().all())
    assert float((restored - weight.float()).abs().max()) <= 0.75 * float(weight.float().abs().max())
    if case == "dead":
        assert torch.equal(restored, search(weight, torch.zeros(256)).dequantized())


def test_not_finite_is_refused() -> None:
    weight = torch.full((128, 128), torch.nan)
    with pytest.raises(ValueError, match="inf or NaN"):
        alone(weight, [torch.eye(128)], 10)
