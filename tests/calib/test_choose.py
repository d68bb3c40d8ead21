"""The choice among candidates: by the error on validation inputs, for every 128 rows, and reproducible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltart.calib.choose import choose, take
from deltart.calib.observe import InputStatistics
from deltart.calib.quantize import lower_sources, quantize
from deltart.calib.scales import Quantized, absmax, search_scale


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def statistics(x: torch.Tensor, validation: torch.Tensor, tokens: int) -> InputStatistics:
    return InputStatistics([x.T @ x], validation.bfloat16(), float(x.abs().max()), tokens)


def error(weight: torch.Tensor, found: Quantized, x: torch.Tensor) -> np.ndarray:
    """Squared output error of each 128 rows, float64."""
    delta = found.dequantized().double() - weight.double()
    return (x.double() @ delta.T).square().sum(0).view(-1, 128).sum(1).numpy()


@pytest.mark.parametrize("size", [2.0**-100, 1.0, 2.0**100])
def test_every_128_rows_take_their_best(size: float) -> None:
    weight, X = (normal(384, 256) * size).bfloat16(), normal(50, 256, seed=1)
    good = absmax(weight)
    worse = Quantized(good.weight, (good.scale.float() * torch.tensor([[1.1], [1.0], [1.2]])).bfloat16())
    other = Quantized(good.weight, (good.scale.float() * torch.tensor([[1.0], [1.1], [1.0]])).bfloat16())
    sources = {"worse": lambda rows, _: worse.rows(rows), "other": lambda rows, _: other.rows(rows)}
    chosen, choice = choose(weight, sources, X)
    assert choice.picks == {"worse": "000", "other": "101"}
    assert torch.equal(chosen.dequantized(), good.dequantized())
    again = take(weight, sources, choice.picks["other"])
    assert torch.equal(again.weight.view(torch.uint8), good.weight.view(torch.uint8))
    for name, found in {"worse": worse, "other": other, "chosen": chosen}.items():
        expected = error(weight / size, Quantized(found.weight, found.scale.float() / size), X).sum()
        output = (X.double() @ (weight / size).double().T).square().sum()
        assert choice.errors[name] == pytest.approx(expected / float(output), rel=1e-3)


def test_rounding_fitted_to_noise_is_not_taken() -> None:
    """A handful of tokens whose correlations mean nothing: what they lead to loses on others, and is left out."""
    weight, fresh = normal(256, 256).bfloat16(), normal(2000, 256, seed=2)
    few, claimed = normal(8, 256, seed=3), 10**9  # so that no shrinkage helps
    ((_, chosen, figures),) = quantize({"w": weight}, "hessian", statistics(few, fresh, claimed))
    assert figures.output["hessian"] > figures.output["absmax"] >= figures.output["chosen"]
    assert (error(weight, chosen, fresh) <= error(weight, absmax(weight), fresh) * 1.01).all()


def test_methods_below_come_out_as_they_would_alone() -> None:
    weight, x = normal(512, 256).bfloat16(), normal(600, 256, seed=4) * torch.linspace(0.01, 3, 256)
    given = statistics(x, normal(100, 256, seed=5), len(x))
    ((_, _, figures),) = quantize({"w": weight}, "hessian", given)
    ((_, alone, below),) = quantize({"w": weight}, "mse", given)
    again = take(weight, lower_sources(search_scale(weight, given.importance)), figures.picks["mse"])
    assert figures.picks["mse"] == below.picks["mse"]
    assert torch.equal(again.weight.view(torch.uint8), alone.weight.view(torch.uint8))
    assert torch.equal(again.scale, alone.scale)
