"""Rounding that makes up for its own errors (Frantar et al., "GPTQ", 2022), then coordinate descent on what is left.

With H = X^T X of a linear's inputs X, the output error of rounding W to Q is tr((Q - W) H (Q - W)^T). Rows are
independent; within a row each rounding error is spread over the columns that are still free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltart.calib.grid import FP8_BLOCKS, Grid
from deltart.calib.scales import Quantized, one_thread
from deltart.plugins.fp8_linear.reference import BLOCK

RIDGE = 0.003  # share of the mean second moment that is always added
TOKEN_WORTH = 0.5  # neighbouring tokens are not independent samples: what one counts for in the shrinkage
SWEEPS = 2
ROWS = 1024  # of a weight at a time


def compensate(
    weights: Sequence[Tensor], scales: Sequence[Tensor], moments: Sequence[Tensor], tokens: int,
    grid: Grid = FP8_BLOCKS,
) -> list[Quantized]:  # fmt: skip
    """Round weights [N, K] that read the same inputs, for the least output error with the given scales.

    Args:
        scales: one a tile of each weight, as stored.
        moments: X^T X of consecutive column ranges of the inputs, float32 [w, w] each, the widths adding up to K.
        tokens: how many rows X had.
    """
    values = [torch.empty_like(weight, dtype=grid.encode(torch.zeros(1)).dtype) for weight in weights]
    begin = 0
    for H in moments:
        columns = slice(begin, begin + len(H))
        begin = columns.stop
        system = _System.of(H, tokens, grid)
        for weight, scale, target in zip(weights, scales, values, strict=True):
            for first in range(0, len(weight), ROWS):
                rows = slice(first, first + ROWS)
                W = weight[rows, columns].float().T[system.order]  # [w, n]: a column of the weight is a contiguous row
                S = _of_columns(scale, rows, columns, grid)[system.order // grid.tile[1]]
                target[rows, columns] = grid.encode(system.solve(W, S) / S)[system.place].T
    return [Quantized(target, scale, grid) for target, scale in zip(values, scales, strict=True)]


def _of_columns(scale: Tensor, rows: slice, columns: slice, grid: Grid) -> Tensor:
    """Float32 scales [w / tile width, n] of each tile of columns and each row."""
    height, width = grid.tile
    part = scale[grid.scale_rows(rows), columns.start // width : columns.stop // width]
    return part.float().repeat_interleave(height, 0).T


@dataclass(frozen=True)
class _System:
    """Damped second moments H [w, w] of the columns in `order` (falling), with H = R R^T and R U = 1, both upper."""

    order: Tensor
    place: Tensor
    H: Tensor
    R: Tensor
    U: Tensor
    grid: Grid

    @classmethod
    def of(cls, moments: Tensor, tokens: int, grid: Grid) -> _System:
        order = moments.diagonal().argsort(descending=True, stable=True)
        H = _damped(moments, tokens)[order[:, None], order]
        flipped = H.flip(0, 1).double()
        R = torch.linalg.cholesky(flipped, out=flipped).float().flip(0, 1)
        del flipped
        return cls(order, order.argsort(), H, R, torch.linalg.solve_triangular(R, torch.eye(len(R)), upper=True), grid)

    def solve(self, W: Tensor, S: Tensor) -> Tensor:
        """Rounded values Q [w, n] of W with the scales S."""
        Q, E = self._spread(W, S)
        for begin in range(0, len(E), BLOCK):  # E becomes the gradient H (Q - W) = -R E
            E[begin : begin + BLOCK] = self.R[begin : begin + BLOCK, begin:] @ E[begin:]
        return self._descend(Q, E.neg_(), S)

    def _spread(self, W: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        """GPTQ; changes W. Returns Q and E [w, n] with Q - W = -U^T E."""
        U, Q, E = self.U, torch.empty_like(W), torch.empty_like(W)
        for begin in range(0, len(W), BLOCK):
            end = min(begin + BLOCK, len(W))
            with one_thread():
                for i in range(begin, end):
                    Q[i] = self.grid.round(W[i], S[i])
                    E[i] = (W[i] - Q[i]) / U[i, i]
                    W[i + 1 : end].addcmul_(U[i, i + 1 : end, None], E[i], value=-1)
            W[end:].addmm_(U[begin:end, end:].T, E[begin:end], alpha=-1)
        return Q, E

    def _descend(self, Q: Tensor, G: Tensor, S: Tensor) -> Tensor:
        """Re-round one column at a time to the least error given all others, SWEEPS times; G is half the gradient."""
        H = self.H
        for sweep in range(SWEEPS):
            for begin in range(0, len(Q), BLOCK):
                end = min(begin + BLOCK, len(Q))
                before, here = Q[begin:end].clone(), G[begin:end].clone()
                with one_thread():
                    for i in range(begin, end):
                        value = self.grid.round(Q[i] - here[i - begin] / H[i, i], S[i])
                        here[i + 1 - begin :].addcmul_(H[i, i + 1 : end, None], value - Q[i])
                        Q[i] = value
                first = end if sweep == SWEEPS - 1 else 0  # nothing reads the gradient of what is done with
                G[first:].addmm_(H[first:, begin:end], Q[begin:end] - before)
        return Q


def _damped(H: Tensor, tokens: int) -> Tensor:
    """H shrunk towards the identity as far as its sample is small (OAS; Chen et al., 2010), and a ridge.

    Without it, rounding exploits correlations that only the calibration text has: outputs on other text get worse
    than by plain rounding where inputs are nearly uncorrelated and tokens are few against columns.
    """
    width, mean = len(H), H.diagonal().mean()
    if not float(mean) > 0:
        return torch.eye(width)
    S = H / mean  # of trace `width`
    squares = float(torch.linalg.vector_norm(S)) ** 2
    share = ((1 - 2 / width) * squares + width**2) / ((tokens + 1 - 2 / width) * max(squares - width, 1e-6))
    share = min(1.0, share / TOKEN_WORTH)
    S *= 1 - share
    S.diagonal().add_(share + RIDGE)
    return S
