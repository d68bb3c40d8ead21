"""What quantizing weights costs, in numbers for the report: by weight and by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltart.calib.choose import row_stripes
from deltart.calib.grid import Grid
from deltart.calib.scales import Quantized, tile_amax, tiles
from deltart.dtypes import E4M3_MAX

OUTLIER = 8.0  # peak over RMS that makes a tile one with outliers; 4 is usual for 128 x 128 normal weights


@dataclass(frozen=True)
class WeightFigures:
    """Of one weight.

    Attributes:
        size: number of values.
        energy: sum of w^2; `noise`: sum of the squared error.
        sqnr_db: 10 log10 of energy over noise; None where nothing was lost.
        peak: largest |w| over the RMS of w.
        outliers: share of tiles (of one scale each) whose largest |w| is beyond OUTLIER times the tile's RMS.
        saturated: share of values stored as the smallest or largest code. With absmax scales every tile has one.
        underflow: share of values that are stored as zero and were not.
        output: energy of the output's error over the output's on validation text, by candidate, and of what was
            `chosen` among them; empty without text.
        picks: see choose.Choice.
    """

    size: int
    energy: float
    noise: float
    sqnr_db: float | None
    peak: float
    outliers: float
    saturated: float
    underflow: float
    output: dict[str, float] = field(default_factory=dict)
    picks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerFigures:
    """Of a layer's quantized weights together; fields as in WeightFigures."""

    sqnr_db: float | None
    outliers: float
    saturated: float
    underflow: float


def measure(weight: Tensor, quantized: Quantized) -> WeightFigures:
    """Figures of a weight [N, K] and what it became, without those of its output."""
    unit = float(quantized.scale.float().max()) * E4M3_MAX  # squares in this unit neither over- nor underflow
    grid = quantized.grid
    energy, noise, outliers, saturated, underflow, peak = 0.0, 0.0, 0, 0, 0, 0.0
    for rows, stripe in row_stripes(weight):
        part = quantized.rows(rows)
        codes = grid.decode(part.weight)
        saturated += sum(int(torch.count_nonzero(codes == end)) for end in grid.ends)
        underflow += int(torch.count_nonzero(stripe)) - int(torch.count_nonzero(codes))  # zeros stay zeros
        stripe.div_(unit)
        amax, squares = tile_amax(stripe, grid), _tile_squares(stripe, grid)
        energy += float(squares.sum())
        peak = max(peak, float(amax.max()))
        outliers += int((amax.square() * math.prod(grid.tile) > OUTLIER**2 * squares).sum())
        noise += _squares(part.over(unit).dequantized().sub_(stripe))
    rms = math.sqrt(energy / weight.numel())
    return WeightFigures(
        size=weight.numel(),
        energy=energy * unit**2,
        noise=noise * unit**2,
        sqnr_db=sqnr_db(energy, noise),
        peak=peak / rms if rms else 0.0,
        outliers=outliers / quantized.scale.numel(),
        saturated=saturated / weight.numel(),
        underflow=underflow / weight.numel(),
    )


def by_layer(weights: Mapping[str, WeightFigures], layers: Mapping[str, Sequence[str]]) -> dict[str, LayerFigures]:
    """Figures of each layer; `layers` names the modules of each."""
    found = {}
    for key, modules in layers.items():
        own = [weights[module] for module in modules]
        size = sum(w.size for w in own)
        shares = (sum(getattr(w, name) * w.size for w in own) / size for name in ("outliers", "saturated", "underflow"))
        found[key] = LayerFigures(sqnr_db(sum(w.energy for w in own), sum(w.noise for w in own)), *shares)
    return found


def sqnr_db(energy: float, noise: float) -> float | None:
    """Signal to quantization noise in decibels; None without noise."""
    return 10 * math.log10(energy / noise) if noise and energy else None


def _squares(x: Tensor) -> float:
    return float(torch.dot(x.flatten(), x.flatten()))


def _tile_squares(stripe: Tensor, grid: Grid) -> Tensor:
    segments = torch.linalg.vector_norm(tiles(stripe, grid), dim=-1)  # fast because contiguous
    return segments.square_().sum(1)
