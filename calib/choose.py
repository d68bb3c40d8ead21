"""Which candidate a weight takes: by the output error on text that no candidate was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deltart.calib.scales import Quantized, joined, one_thread, stripe_rows
from deltart.dtypes import E4M3_MAX
from deltart.plugins.fp8_linear.reference import BLOCK

Source = Callable[[slice, Tensor], Quantized]  # rows and their float32 weights -> the candidate's


@dataclass(frozen=True)
class Choice:
    """How candidates did on validation inputs.

    Attributes:
        errors: energy of the output's error over the output's, by candidate; of `chosen` what was taken.
        picks: for each candidate as the last one allowed, the number of the candidate that each 128 rows take.
    """

    errors: dict[str, float]
    picks: dict[str, str]


def choose(weight: Tensor, sources: Mapping[str, Source], X: Tensor) -> tuple[Quantized, Choice]:
    """The best candidate of every 128 rows of a weight [N, K], which have scales of their own.

    Args:
        sources: candidates, plainest first; the plainest of equals is taken.
        X: validation inputs [tokens, K].
    """
    X, parts, errors, energies = X.float(), [], [], []
    for rows, stripe in row_stripes(weight):
        with one_thread():
            candidates = [source(rows, stripe) for source in sources.values()]
            unit = float(torch.stack([c.scale.float().max() for c in candidates]).max()) * E4M3_MAX
            stripe.div_(unit)  # squares in this unit neither over- nor underflow
            deltas = [c.over(unit).dequantized().sub_(stripe) for c in candidates]
        own = torch.stack([_energies(delta, X) for delta in deltas])  # [candidates, blocks of rows]
        parts.append(_taken(candidates, own.argmin(0).tolist()))
        errors.append(own * unit**2)
        energies.append(_energies(stripe, X) * unit**2)
    return joined(parts), _summary(list(sources), torch.cat(errors, dim=1), float(torch.cat(energies).sum()))


def take(weight: Tensor, sources: Mapping[str, Source], picks: str) -> Quantized:
    """The weight that `picks` describes."""
    parts = []
    for rows, stripe in row_stripes(weight):
        candidates = [source(rows, stripe) for source in sources.values()]
        numbers = picks[rows.start // BLOCK : rows.stop // BLOCK]
        parts.append(_taken(candidates, [int(number) for number in numbers]))
    return joined(parts)


def row_stripes(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Whole blocks of rows, with float32 copies of them."""
    height = stripe_rows(weight)
    for first in range(0, len(weight), height):
        rows = slice(first, min(first + height, len(weight)))
        yield rows, weight[rows].to(torch.float32, copy=True)


def _taken(candidates: list[Quantized], numbers: list[int]) -> Quantized:
    rows = [slice(first, first + BLOCK) for first in range(0, len(numbers) * BLOCK, BLOCK)]
    parts = [candidates[number].rows(own) for number, own in zip(numbers, rows, strict=True)]
    return joined(parts)


def _energies(rows: Tensor, X: Tensor) -> Tensor:
    """Summed squares of what each 128 rows make of the inputs, float64."""
    return (rows @ X.T).square_().view(len(rows) // BLOCK, -1).sum(1).double()


def _summary(names: list[str], errors: Tensor, energy: float) -> Choice:
    """errors [candidates, blocks of rows] -> Choice."""
    best = {name: errors[: number + 1].argmin(0) for number, name in enumerate(names)}
    taken = errors.gather(0, best[names[-1]][None]).sum()
    sums = dict(zip([*names, "chosen"], [*errors.sum(1).tolist(), float(taken)], strict=True))
    relative = {name: value / energy if energy else 0.0 for name, value in sums.items()}
    return Choice(relative, {name: "".join(map(str, own.tolist())) for name, own in best.items()})
