"""What quantizing one weight costs, in numbers for the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deltart.calib.observe import InputStatistics
from deltart.calib.scales import E4M3_MAX, Quantized, absmax, block_amax, blocks, stripe_rows, stripes
from deltart.plugins.fp8_block_linear.reference import BLOCK

OUTLIER = 8.0  # peak over RMS that makes a block one with outliers; 4 is usual for 128 x 128 normal weights
ROUNDED_SCALE = 1 + 2.0**-8  # a scale rounded to BF16 falls short of absmax by less than this


@dataclass(frozen=True)
class WeightFigures:
    """Of one weight.

    Attributes:
        sqnr_db: 10 log10 of weight energy over error energy; None where nothing was lost.
        peak: largest |w| over the RMS of w.
        outliers: share of blocks whose largest |w| is beyond OUTLIER times the block's RMS.
        saturated: share of blocks whose largest |w| is beyond 448 scales, and so was clipped.
        output_error: energy of the output's error over the output's, on the calibration text; None without text.
        absmax_output_error: the same for absmax scales.
    """

    sqnr_db: float | None
    peak: float
    outliers: float
    saturated: float
    output_error: float | None = None
    absmax_output_error: float | None = None


def measure(weight: Tensor, quantized: Quantized, inputs: InputStatistics | None) -> WeightFigures:
    """Figures of a weight [N, K] and what it became."""
    unit = float(quantized.scale.float().max()) * E4M3_MAX  # squares in this unit neither over- nor underflow
    energy, noise, outliers, saturated, peak = 0.0, 0.0, 0, 0, 0.0
    for stripe, part in _pairs(weight, quantized, unit):
        amax, squares = block_amax(stripe), _block_squares(stripe)
        energy += float(squares.sum())
        peak = max(peak, float(amax.max()))
        outliers += int((amax.square() * BLOCK**2 > OUTLIER**2 * squares).sum())
        saturated += int((amax > part.scale * (E4M3_MAX * ROUNDED_SCALE)).sum())
        noise += _squares(part.dequantized().sub_(stripe))
    rms = math.sqrt(energy / weight.numel())
    return WeightFigures(
        sqnr_db=10 * math.log10(energy / noise) if noise else None,
        peak=peak / rms if rms else 0.0,
        outliers=outliers / quantized.scale.numel(),
        saturated=saturated / quantized.scale.numel(),
        output_error=_output_error(weight, quantized, inputs, unit) if inputs else None,
        absmax_output_error=_output_error(weight, absmax(weight), inputs, unit) if inputs else None,
    )


def _squares(x: Tensor) -> float:
    return float(torch.dot(x.flatten(), x.flatten()))


def _block_squares(stripe: Tensor) -> Tensor:
    segments = torch.linalg.vector_norm(blocks(stripe), dim=-1)  # [n, 128, k]: fast because contiguous
    return segments.square_().sum(1)


def _output_error(weight: Tensor, quantized: Quantized, inputs: InputStatistics, unit: float) -> float:
    """tr(E H E^T) / tr(W H W^T), in stripes of rows."""
    error = energy = 0.0
    for stripe, part in _pairs(weight, quantized, unit):
        error += output_energy(part.dequantized() - stripe, inputs)
        energy += output_energy(stripe, inputs)
    return error / energy if energy else 0.0


def output_energy(rows: Tensor, inputs: InputStatistics) -> float:
    """tr(R H R^T) of weight rows [n, K]: the summed squares of what they make of the inputs."""
    parts = rows.split([len(H) for H in inputs.moments], dim=1)
    return sum(float(((part @ H) * part).sum()) for part, H in zip(parts, inputs.moments, strict=True))


def _pairs(weight: Tensor, quantized: Quantized, unit: float) -> Iterator[tuple[Tensor, Quantized]]:
    """Stripes of the weight and of what it became, both in `unit`."""
    rows = stripe_rows(weight)
    parts = zip(quantized.weight.split(rows), quantized.scale.split(rows // BLOCK), strict=True)
    for stripe, (values, scale) in zip(stripes(weight), parts, strict=True):
        yield stripe.div_(unit), Quantized(values, scale.float() / unit)
