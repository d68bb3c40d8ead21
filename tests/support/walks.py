"""Replies drawn at random under a constraint, without a model."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deltart.runtime.sampling.constraint import Constraint
from deltart.runtime.text.tokenizer import Tokenizer


def members(mask: npt.NDArray[np.int32], limit: int) -> list[int]:
    """The tokens that a mask allows, read bit by bit as the sampler's contract says."""
    words = mask.view(np.uint32)
    return [token for token in range(limit) if words[token >> 5] >> (token & 31) & 1]


class Walker:
    """Draws tokens that a constraint allows, the ones that close something rather often.

    Args:
        closing: characters that tokens which close something are made of.
    """

    def __init__(self, tokenizer: Tokenizer, closing: str = '"}]\n,') -> None:
        self.tokenizer, self.limit = tokenizer, tokenizer.vocab_limit
        self._pieces = tokenizer.pieces()
        self._closing = {
            token for token, piece in enumerate(self._pieces) if piece and set(piece) <= set(closing.encode())
        }
        self._close = tokenizer.encode_plain("\n</parameter>\n")
        self._clean = {token for token, piece in enumerate(self._pieces) if _is_text(piece)}

    def allowed(self, constraint: Constraint) -> list[int]:
        """The tokens that may come."""
        mask = constraint.allowed()
        return list(range(self.limit)) if mask is None else members(mask, self.limit)

    def reply(self, constraint: Constraint, rng: random.Random, most: int = 400) -> tuple[list[int], bool]:
        """Tokens of a reply without the one that ends it, and whether it was ended rather than cut."""
        tokens: list[int] = []
        while len(tokens) < most:
            if rng.random() < 0.1 and constraint.permits(self._close) == len(self._close):
                for token in self._close:
                    constraint.accept(token)
                tokens += self._close
            allowed = self.allowed(constraint)
            assert allowed, "nothing may come"
            token = self._draw(allowed, rng)
            constraint.accept(token)
            if token in self.tokenizer.eos_ids:
                return tokens, True
            tokens.append(token)
        return tokens, False

    def _draw(self, allowed: Sequence[int], rng: random.Random) -> int:
        ends = [token for token in allowed if token in self.tokenizer.eos_ids]
        if ends and (len(allowed) == len(ends) or rng.random() < 0.5):
            return ends[0]
        closing = [token for token in allowed if token in self._closing]
        if closing and rng.random() < 0.4:
            return rng.choice(closing)
        # Bytes that only together are a character would mostly be drawn in an order that is none.
        clean = [token for token in allowed if token in self._clean]
        return rng.choice(clean or [token for token in allowed if token not in ends])


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
