"""Weights that read one input in, FP8 weights and figures out.

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
from deltart.calib.observe import InputStatistics
from deltart.calib.scales import Quantized, absmax, one_thread, rounded, search, search_scale
from deltart.errors import CheckpointError
from deltart.plugins.fp8_linear.reference import BLOCK

Method = Literal["absmax", "mse", "hessian"]
LADDER: tuple[Method, ...] = ("absmax", "mse", "hessian")
Result = tuple[str, Quantized, WeightFigures]


def quantize(weights: Mapping[str, Tensor], method: Method, inputs: InputStatistics | None) -> Iterator[Result]:
    """Quantize weights [N, K] that read the same inputs; `weights` by module name.

    Without `inputs` "hessian" has nothing to go by, and is "mse".

    Raises:
        CheckpointError: a weight holds inf or NaN.
    """
    if inputs is not None:
        yield from _with_text(weights, method, inputs)
        return
    for module, weight in weights.items():
        with _naming(module), one_thread():
            result = absmax(weight) if method == "absmax" else search(weight, None)
            figures = measure(weight, result)
        yield module, result, figures


def lower_sources(scale: Tensor | None) -> dict[str, Source]:
    """The candidates that can be had again at any time: absmax and, given its scales, mse."""
    sources: dict[str, Source] = {"absmax": lambda rows, stripe: absmax(stripe)}
    if scale is not None:

        def mse(rows: slice, stripe: Tensor) -> Quantized:
            own = scale[rows.start // BLOCK : rows.stop // BLOCK]
            return Quantized(rounded(stripe, own), own)

        sources["mse"] = mse
    return sources


def _with_text(weights: Mapping[str, Tensor], method: Method, inputs: InputStatistics) -> Iterator[Result]:
    scales: dict[str, Tensor] = {}
    if method != "absmax":
        for module, weight in weights.items():
            with _naming(module), one_thread():
                scales[module] = search_scale(weight, inputs.importance)
    compensated: dict[str, Quantized] = {}
    if method == "hessian":
        results = compensate(list(weights.values()), list(scales.values()), inputs.moments, inputs.tokens)
        compensated = dict(zip(weights, results, strict=True))
    for module, weight in weights.items():
        sources = lower_sources(scales.get(module))
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
