"""A picture or video that is ready for the tower, and where its rows come to lie in a prompt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

Kind = Literal["image", "video"]


@dataclass(frozen=True, eq=False)
class Medium:
    """Resized frames, two of them or more for a video.

    Attributes:
        kind: what it is; which placeholder stands for it.
        frames: uint8 [n, height, width, 3].
        grid: (temporal patches, rows, columns) of patches.
        merge: patches on a side of a merged block, which makes one row of embeddings.
        times: seconds into a video of each temporal patch; empty for a picture.
    """

    kind: Kind
    frames: np.ndarray = field(repr=False)
    grid: tuple[int, int, int]
    merge: int
    times: tuple[float, ...] = ()

    @property
    def block_rows(self) -> int:
        return self.grid[1] // self.merge

    @property
    def block_columns(self) -> int:
        return self.grid[2] // self.merge

    @property
    def frame_tokens(self) -> int:
        """Rows of embeddings of one temporal patch."""
        return self.block_rows * self.block_columns

    @property
    def tokens(self) -> int:
        """Rows of embeddings of all of it."""
        return self.grid[0] * self.frame_tokens

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of what the tower is shown: the frames and their shape."""
        shape = repr((self.kind, self.frames.shape)).encode()
        return hashlib.sha256(shape + b"\n" + np.ascontiguousarray(self.frames).tobytes()).digest()


@dataclass(frozen=True)
class Span:
    """A run of placeholders of a prompt: from `start` on, the rows of temporal patch `frame` of a medium."""

    start: int
    medium: Medium
    frame: int = 0

    @property
    def end(self) -> int:
        return self.start + self.medium.frame_tokens
