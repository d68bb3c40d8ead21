"""What stands for a prompt's tokens where prefixes are compared: placeholders are all one token, pictures are not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from deltart.runtime.vision.medium import Span

_SIGN = np.uint64(1 << 63)


def prompt_keys(ids: Sequence[int], spans: Sequence[Span]) -> tuple[int, ...]:
    """The ids of a prompt, with the content of its pictures in the place of their placeholders.

    A picture's rows are numbers below 0 that are made of its SHA-256: two prompts whose keys are equal so far show the
    same pictures, of the same size, at the same places.
    """
    if not spans:
        return tuple(ids)
    keys = np.array(ids, np.int64)
    for span in spans:
        digest = hashlib.sha256(span.medium.digest + span.frame.to_bytes(4, "big")).digest()
        words = (np.frombuffer(digest, np.uint64) | _SIGN).view(np.int64)
        keys[span.start : span.end] = np.resize(words, span.end - span.start)
    return tuple(keys.tolist())
