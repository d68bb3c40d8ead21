"""Embeddings of pictures and videos: made when a prompt comes to them, and kept for prompts that show them again."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deltart.manifest import VisionEntry
from deltart.runtime.vision.medium import Medium, Span
from deltart.runtime.vision.patches import patches
from deltart.runtime.vision.tower import grid_inputs

CALL_PATCHES = 4096  # of several frames in one call: a call holds up the sequences that are being written

_Key = tuple[str, bytes, int]  # salt, digest, group of frames
RunTower = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # inputs of the graph -> embeds [F, S / merge^2, out]


class VisionEncoder:
    """Embeddings by the content of what they are of, up to `budget` bytes of them. One thread uses it at a time.

    They are found under the salt they were made for and no other, as kept prefixes are.

    Args:
        run: one call of the tower's graph.
        entry: how pictures are read.
        budget: bytes that are kept.

    Attributes:
        calls: of the graph so far.
    """

    def __init__(self, run: RunTower, entry: VisionEntry, budget: int) -> None:
        self._run, self._entry, self._budget = run, entry, budget
        self._kept: OrderedDict[_Key, np.ndarray] = OrderedDict()
        self._bytes = 0
        self.calls = 0

    def chunk(self, spans: Sequence[Span], begin: int, end: int, salt: str = "") -> tuple[np.ndarray, np.ndarray]:
        """What tokens [begin, end) of a prompt take: rows f32 [M, out], and which each token is, int32 [end - begin].

        Text is -1; M is at least 1.
        """
        index = np.full(end - begin, -1, np.int32)
        rows: list[np.ndarray] = []
        count = 0
        for span in spans:
            first, last = max(span.start, begin), min(span.end, end)
            if first < last:
                rows.append(self.rows(span.medium, span.frame, salt)[first - span.start : last - span.start])
                index[first - begin : last - begin] = count + np.arange(last - first)
                count += last - first
        return np.concatenate(rows) if rows else np.zeros((1, self._entry.out), np.float32), index

    def rows(self, medium: Medium, frame: int, salt: str = "") -> np.ndarray:
        """f32 [tokens of a frame, out]: the embeddings of temporal patch `frame`."""
        together = self._frames_a_call(medium)
        key = (salt, medium.digest, frame // together)
        if key not in self._kept:
            self._keep(key, self._encode(medium, key[2] * together, together))
        self._kept.move_to_end(key)
        found: np.ndarray = self._kept[key][frame % together]
        return found

    def _frames_a_call(self, medium: Medium) -> int:
        most = min(self._entry.max_patches, CALL_PATCHES)
        return max(most // math.prod(medium.grid[1:]), 1)

    def _encode(self, medium: Medium, first: int, count: int) -> np.ndarray:
        temporal = self._entry.temporal_patch
        frames = medium.frames[first * temporal : (first + count) * temporal]
        grid = grid_inputs(medium.grid[1], medium.grid[2], self._entry)
        self.calls += 1
        return self._run({"patches": patches(frames, self._entry), **grid})

    def _keep(self, key: _Key, rows: np.ndarray) -> None:
        """The newest stays whatever its size."""
        self._kept[key] = rows
        self._bytes += rows.nbytes
        while self._bytes > self._budget and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
