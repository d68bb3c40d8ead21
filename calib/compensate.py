"""Rounding that makes up for its own errors (Frantar et al., "GPTQ", 2022), then coordinate descent on what is left.

With H = X^T X of a linear's inputs X, the output error of rounding W to Q is tr((Q - W) H (Q - W)^T). Rows are
independent; within a row each rounding error is spread over the columns that are still free.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltart.calib.scales import E4M3_MAX, Quantized, search
from deltart.plugins.fp8_block_linear.reference import BLOCK

RIDGE = 0.003  # share of the mean second moment that is always added
TOKEN_WORTH = 0.5  # neighbouring tokens are not independent samples: what one counts for in the shrinkage
SWEEPS = 2


def compensate(
    weight: Tensor, moments: Sequence[Tensor], tokens: int, scale_dtype: torch.dtype = torch.bfloat16
) -> Quantized:
    """Quantize weight [N, K] for the inputs whose second moments are `moments`.

    Args:
        moments: X^T X of consecutive column ranges, float32 [w, w] each, the widths adding up to K.
        tokens: how many rows X had.

    Raises:
        ValueError: the weight holds inf or NaN.
    """
    start = search(weight, torch.cat([H.diagonal() for H in moments]), scale_dtype)
    column, parts = 0, []
    for H in moments:
        columns = slice(column, column + len(H))
        column = columns.stop
        scale = start.scale[:, columns.start // BLOCK : columns.stop // BLOCK].float()
        S = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1).T.contiguous()  # [w, N]
        W = weight[:, columns].float().T.contiguous()  # [w, N]: a column of the weight is a contiguous row
        Hd = _damped(H, tokens)
        Q = _descend(W, _spread(W, S, Hd), S, Hd)
        parts.append((Q / S).to(torch.float8_e4m3fn).T)
    return Quantized(torch.cat(parts, dim=1).contiguous(), start.scale)


def _damped(H: Tensor, tokens: int) -> Tensor:
    """H shrunk towards the identity as far as its sample is small (OAS; Chen et al., 2010), and a ridge.

    Without it, rounding exploits correlations that only the calibration text has: outputs on other text get worse
    than by plain rounding where inputs are nearly uncorrelated and tokens are few against columns.
    """
    width, mean = len(H), H.diagonal().mean()
    if not float(mean) > 0:
        return torch.eye(width)
    S = H / mean  # of trace `width`
    squares = float(S.square().sum())
    share = ((1 - 2 / width) * squares + width**2) / ((tokens + 1 - 2 / width) * max(squares - width, 1e-6))
    share = min(1.0, share / TOKEN_WORTH)
    return (1 - share) * S + (share + RIDGE) * torch.eye(width)


def _spread(W: Tensor, S: Tensor, H: Tensor) -> Tensor:
    """GPTQ over W [K, N] in order of falling second moment: rounded values Q [K, N]."""
    order = H.diagonal().argsort(descending=True, stable=True)
    U = H[order][:, order].double()  # 8 bytes an element, so it is worked on in place
    torch.linalg.cholesky(U, out=U)
    torch.cholesky_inverse(U, out=U)
    U = torch.linalg.cholesky(U, upper=True).float()
    W, S, Q = W[order], S[order], torch.empty_like(W)
    for begin in range(0, len(W), BLOCK):
        end = min(begin + BLOCK, len(W))
        errors = torch.empty(end - begin, W.shape[1])
        for i in range(begin, end):
            Q[i] = _round(W[i], S[i])
            errors[i - begin] = (W[i] - Q[i]) / U[i, i]
            W[i + 1 : end] -= U[i, i + 1 : end, None] * errors[i - begin]
        W[end:] -= U[begin:end, end:].T @ errors
    result = torch.empty_like(Q)
    result[order] = Q
    return result


def _descend(W: Tensor, Q: Tensor, S: Tensor, H: Tensor) -> Tensor:
    """Re-round one column of the weight at a time to the least error given all others, SWEEPS times."""
    for _ in range(SWEEPS):
        G = H @ (Q - W)  # [K, N], half the gradient
        for begin in range(0, len(W), BLOCK):
            end = min(begin + BLOCK, len(W))
            before = Q[begin:end].clone()
            here = G[begin:end].clone()
            for i in range(begin, end):
                value = _round(Q[i] - here[i - begin] / H[i, i], S[i])
                here += H[begin:end, i, None] * (value - Q[i])
                Q[i] = value
            G += H[:, begin:end] @ (Q[begin:end] - before)
    return Q


def _round(w: Tensor, s: Tensor) -> Tensor:
    return (w / s).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float().mul_(s)
