"""Positions of a prompt with pictures (multimodal RoPE): time, row and column for every token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltart.runtime.vision.medium import Span


def positions(length: int, spans: Sequence[Span]) -> np.ndarray:
    """int64 [3, length]: time, row and column of the tokens of a prompt.

    Text counts up in all three. The rows of a picture, or of one temporal patch of a video, share one time, are
    numbered by their own row and column from there, and take as many positions as the longer side has blocks.

    Args:
        spans: where pictures lie, in order.
    """
    result = np.empty((3, length), np.int64)
    at = position = 0
    for span in spans:
        text = span.start - at
        result[:, at : span.start] = position + np.arange(text)
        position += text
        rows, columns = span.medium.block_rows, span.medium.block_columns
        result[0, span.start : span.end] = position
        result[1, span.start : span.end] = position + np.repeat(np.arange(rows), columns)
        result[2, span.start : span.end] = position + np.tile(np.arange(columns), rows)
        position += max(rows, columns)
        at = span.end
    result[:, at:] = position + np.arange(length - at)
    return result


def shift(length: int, spans: Sequence[Span]) -> int:
    """What the position of the token after a prompt is ahead of the number of tokens before it: 0 or less."""
    return sum(max(s.medium.block_rows, s.medium.block_columns) - s.medium.frame_tokens for s in spans)
