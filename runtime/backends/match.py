"""Draw, then match: tokens are drawn in order as without drafts, and drafts count while they are equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltart.errors import DeltaRTError
from deltart.runtime.backends.slots import Drawn, Row, TokenLogprobs


def draw(row: Row, logits: np.ndarray, drafts: Sequence[int]) -> Drawn:
    """Draw for `row` from logits f32 [len(drafts) + 1, V], each row after the draft before it.

    The first token is drawn whatever was drafted, the next while the last one equalled its draft. What is drawn depends
    on the sequence, its parameters, seed and position alone, so the text is the same with and without drafts.
    """
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    for place, scores in enumerate(logits):
        try:
            allowed = row.constraint.allowed() if row.constraint else None
            token = row.sampler.sample(scores, allowed)
            if row.constraint and token not in row.ends:
                row.constraint.accept(token)
        except DeltaRTError as error:
            return Drawn(tuple(tokens), tuple(logprobs), len(drafts), len(tokens), error)
        tokens.append(token)
        if row.logprobs is not None:
            logprobs.append(token_logprobs(scores[: row.sampler.vocab_limit], token, row.logprobs))
        if token in row.ends or place == len(drafts) or token != drafts[place]:
            break
    return Drawn(tuple(tokens), tuple(logprobs), len(drafts), len(tokens) - 1)


def token_logprobs(scores: np.ndarray, token: int, top: int) -> TokenLogprobs:
    """Log-probabilities under logits f32 [V]: of `token`, and of the `top` likeliest tokens."""
    wide = scores.astype(np.float64)
    largest = wide.max()
    log_sum = largest + np.log(np.exp(wide - largest).sum())
    best: list[int] = []
    if top:
        found = np.argpartition(-wide, min(top, len(wide)) - 1)[:top]
        best = found[np.argsort(-wide[found], kind="stable")].tolist()
    return TokenLogprobs(token, float(wide[token] - log_sum), tuple((i, float(wide[i] - log_sum)) for i in best))
