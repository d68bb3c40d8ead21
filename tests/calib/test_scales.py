"""Scales and rounding against transformers' quantizer, ml_dtypes and hand-made blocks."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from deltart.calib.grid import decode_e4m3 as decode
from deltart.calib.scales import absmax, search
from deltart.dtypes import E4M3_MAX

BF16_MAX = 255 * 2.0**120


def heavy(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_t(2, (rows, columns))).to(torch.bfloat16)


def blockwise(weight: torch.Tensor) -> np.ndarray:
    rows, columns = weight.shape
    return weight.double().numpy().reshape(rows // 128, 128, columns // 128, 128)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_absmax_equals_transformers_bit_for_bit(dtype: torch.dtype) -> None:
    weight = torch.cat([heavy(1280, 512), torch.zeros(128, 512), heavy(128, 512) * 1e-5]).to(dtype)
    config = SimpleNamespace(weight_block_size=[128, 128], scale_fmt=None)
    theirs = Fp8Quantize(SimpleNamespace(quantization_config=config)).convert({"a.weight": weight})
    exact, stored = absmax(weight, torch.float32), absmax(weight)
    assert torch.equal(exact.weight.view(torch.uint8), theirs["a.weight"].view(torch.uint8))
    assert torch.equal(exact.scale, theirs["a.weight_scale_inv"])
    assert torch.equal(stored.weight.view(torch.uint8), exact.weight.view(torch.uint8))
    assert torch.equal(stored.scale, exact.scale.to(torch.bfloat16))


@pytest.mark.parametrize("quantize", [absmax, lambda w: search(w, None)], ids=["absmax", "mse"])
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-38, 1e-30, 1.0, 1e30, BF16_MAX])
def test_any_magnitude_stays_finite_and_close(quantize, size: float) -> None:  # type: ignore[no-untyped-def]
    weight = heavy(128, 256)
    weight = (weight / weight.abs().max() * size).to(torch.bfloat16)
    result = quantize(weight)
    restored = result.dequantized()
    assert bool((result.scale > 0).all()) and bool(restored.to(torch.bfloat16).isfinite().all())
    error = (restored.double() - weight.double()).abs().max()
    # An E4M3 step is 1/16 of the value near the top; below 2^-117 only the least normal scale is left.
    assert float(error) <= max(size / 14, 2.0**-126 * 2.0**-9)


def test_zero_blocks_become_zeros_of_scale_one() -> None:
    weight = torch.zeros(128, 256, dtype=torch.bfloat16)
    weight[:, 128:] = 448
    for result in (absmax(weight), search(weight, None)):
        assert result.scale[0, 0] == 1 and not bool(result.weight[:, :128].float().any())
        assert torch.equal(result.dequantized()[:, 128:], torch.full((128, 128), 448.0))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_is_refused(bad: float) -> None:
    weight = heavy(256, 256)
    weight[200, 3] = bad
    for quantize in (absmax, lambda w: search(w, None)):
        with pytest.raises(ValueError, match="inf or NaN"):
            quantize(weight)


def test_ties_go_to_even_and_the_top_saturates() -> None:
    # Against the scale 1 that amax = 448 gives: halves between neighbours 16, 18, 20 and 2^-9 steps near zero.
    weight = torch.zeros(128, 128)
    weight[0, :8] = torch.tensor([448.0, 17.0, 19.0, -17.0, 2.0**-10, 1.5 * 2.0**-9, -(2.0**-10), 447.0])
    expected = torch.tensor([448.0, 16.0, 20.0, -16.0, 0.0, 2.0**-8, 0.0, 448.0])
    assert torch.equal(absmax(weight, torch.float32).dequantized()[0, :8], expected)


def test_search_is_the_least_error_of_its_candidates() -> None:
    weight, importance = heavy(256, 384).float(), torch.rand(384) ** 4
    for given in (None, importance):
        found = search(weight, given)
        factor = (given if given is not None else torch.ones(384)).double().numpy().reshape(-1, 128)[None, None]

        def error(scale: np.ndarray, factor: np.ndarray = factor) -> np.ndarray:
            s = scale[:, None, :, None]
            rounded = np.clip(blockwise(weight) / s, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(float) * s
            return ((rounded - blockwise(weight)) ** 2 * factor).sum((1, 3))

        own = error(found.scale.double().numpy())
        assert np.allclose(((blockwise(found.dequantized()) - blockwise(weight)) ** 2 * factor).sum((1, 3)), own)
        start = np.abs(blockwise(weight)).max((1, 3)) / E4M3_MAX
        for step in range(24):
            other = (start * 2 ** (step / 24)).astype(ml_dtypes.bfloat16).astype(float)
            assert (own <= error(other) * (1 + 1e-5)).all()
        assert own.sum() < error(absmax(weight).scale.double().numpy()).sum()


def test_decode_equals_ml_dtypes() -> None:
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    found = decode(torch.from_numpy(codes).view(torch.float8_e4m3fn)).numpy()
    assert (found.view(np.uint32) == expected.view(np.uint32)).all()
