"""Weights that read one input in, quantized weights and figures out.

The methods form a ladder: with text, each may take for every 128 rows what a lower one found, where that does better
on text that none was fitted to (see choose).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from torch import Tensor

from deltart.calib.choose import Source, choose
from deltart.calib.compensate import compensate
from deltart.calib.figures import WeightFigures, measure
from deltart.calib.grid import FP8_BLOCKS, Grid
from deltart.calib.observe import InputStatistics
from deltart.calib.scales import Quantized, absmax, one_thread, rounded, search, search_scale
from deltart.errors import CheckpointError

Method = Literal["absmax", "mse", "hessian"]
LADDER: tuple[Method, ...] = ("absmax", "mse", "hessian")
Result = tuple[str, Quantized, WeightFigures]


def quantize(
    weights: Mapping[str, Tensor], method: Method, inputs: InputStatistics | None, grid: Grid = FP8_BLOCKS
) -> Iterator[Result]:
    """Quantize weights [N, K] that read the same inputs; `weights` by module name.

    Without `inputs` "hessian" has nothing to go by, and is "mse".

    Raises:
        CheckpointError: a weight holds inf or NaN.
    """
    if inputs is not None:
        yield from _with_text(weights, method, inputs, grid)
        return
    for module, weight in weights.items():
        with _naming(module), one_thread():
            result = absmax(weight, grid=grid) if method == "absmax" else search(weight, None, grid=grid)
            figures = measure(weight, result)
        yield module, result, figures


def lower_sources(scale: Tensor | None, grid: Grid = FP8_BLOCKS) -> dict[str, Source]:
    """The candidates that can be had again at any time: absmax and, given its scales, mse."""
    sources: dict[str, Source] = {"absmax": lambda rows, stripe: absmax(stripe, grid=grid)}
    if scale is not None:

        def mse(rows: slice, stripe: Tensor) -> Quantized:
            return rounded(stripe, scale[grid.scale_rows(rows)], grid)

        sources["mse"] = mse
    return sources


def _with_text(weights: Mapping[str, Tensor], method: Method, inputs: InputStatistics, grid: Grid) -> Iterator[Result]:
    scales: dict[str, Tensor] = {}
    if method != "absmax":
        for module, weight in weights.items():
            with _naming(module), one_thread():
                scales[module] = search_scale(weight, inputs.importance, grid=grid)
    compensated: dict[str, Quantized] = {}
    if method == "hessian":
        results = compensate(list(weights.values()), list(scales.values()), inputs.moments, inputs.tokens, grid)
        compensated = dict(zip(weights, results, strict=True))
    for module, weight in weights.items():
        sources = lower_sources(scales.get(module), grid)
        if module in compensated:
            sources["hessian"] = lambda rows, stripe, own=compensated[module]: own.rows(rows)  # type: ignore[misc]
        with _naming(module):
            result, choice = choose(weight, sources, inputs.validation)
        with one_thread():
            figures = replace(measure(weight, result), output=choice.errors, picks=choice.picks)
        yield module, result, figures


@contextmanager
def _naming(module: str) -> Iterator[None]:
    """Turn the scales' complaint about a weight into an error that names it."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(
            f"tensor '{module}.weight' {error}", "finite weights", "the checkpoint is damaged: get it again"
        ) from None
