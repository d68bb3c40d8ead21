"""The tokens of a checkpoint as structured output sees them: their bytes, and sets of them as bit masks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from deltart.errors import GenerationError, MissingDependencyError
from deltart.runtime.text.tokenizer import Tokenizer

Mask = npt.NDArray[np.int32]


class Vocabulary:
    """Tokens below `limit`.

    Attributes:
        limit: ids from here on are never allowed.
        pieces: bytes of each token; of an added token, its text.
        end_ids: the model's end-of-sequence tokens.

    Args:
        tokenizer: the checkpoint's.
        limit: as the attribute, at most tokenizer.vocab_limit.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int) -> None:
        self.limit, self._tokenizer = limit, tokenizer
        self.pieces = tokenizer.pieces()[:limit]
        self._added = {token: special for token, special in tokenizer.added().items() if token < limit}
        self.end_ids = frozenset(token for token in tokenizer.eos_ids if token < limit)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text` as it stands: the names of added tokens in it are text like any other."""
        return self._tokenizer.encode_plain(text)

    def tag(self, text: str) -> int:
        """The one token of a tag such as <tool_call>.

        Raises:
            GenerationError: the tokenizer has none.
        """
        token = self._tokenizer.id_of(text)
        if token is None or token >= self.limit:
            raise GenerationError(
                f"the tokenizer has no token {text}",
                "a checkpoint that was trained to think and call tools in this form",
                "ask for a structure without thinking or tools",
            )
        return token

    def mask(self, ids: Collection[int]) -> Mask:
        """int32 [ceil(limit / 32)], bit i % 32 of word i // 32 set for each of `ids`."""
        words = np.zeros(-(-self.limit // 32), np.uint32)
        given = np.fromiter(ids, np.int64, len(ids))
        np.bitwise_or.at(words, given >> 5, np.uint32(1) << (given & 31).astype(np.uint32))
        return words.view(np.int32)

    def members(self, mask: Mask) -> list[int]:
        """The tokens that a mask allows."""
        found: list[int] = np.flatnonzero(
            np.unpackbits(mask.view(np.uint8), count=self.limit, bitorder="little")
        ).tolist()
        return found

    @cached_property
    def end_mask(self) -> Mask:
        """The tokens that end a reply."""
        return self.mask(self.end_ids)

    @cached_property
    def going_mask(self) -> Mask:
        """All tokens but those that end a reply."""
        return self._all & ~self.end_mask

    @cached_property
    def text_mask(self) -> Mask:
        """Tokens that stand for text: all but those marked special, those that end a reply and the empty ones."""
        special = {token for token, special in self._added.items() if special}
        empty = {token for token, piece in enumerate(self.pieces) if not piece}
        return self._all & ~self.mask(special | empty | self.end_ids)

    @cached_property
    def _all(self) -> Mask:
        return self.mask(range(self.limit))

    @cached_property
    def matcher_tokenizer(self) -> Any:
        """llguidance's view of these tokens; seconds at 248k tokens, so not on the way of a step.

        Added tokens stand for themselves there, never for their text.

        Raises:
            MissingDependencyError: llguidance is not installed.
        """
        llguidance = load_llguidance()
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Pieces(self, sorted(self._added))), eos_token=sorted(self.end_ids)
        )


class _Pieces:
    """What llguidance.TokenizerWrapper asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, added: Iterable[int]) -> None:
        self.eos_token_id = min(vocabulary.end_ids)
        self.tokens = vocabulary.pieces
        self.special_token_ids = list(added)
        self._encode = vocabulary.encode

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokens of text that the grammar leaves no choice about."""
        return self._encode(text.decode("utf-8") if isinstance(text, bytes) else text)


def load_llguidance() -> Any:
    """The module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError(
            "structured output needs llguidance, which is not installed",
            "llguidance 1.9 or later",
            "pip install 'deltart[structured]'",
        ) from error
    return llguidance
