"""States of prefixes, found by the longest prefix of a prompt that has one."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from deltart.runtime.backends.slots import Block, Snapshot

HISTORIES = 64  # prompts and replies whose ids are remembered, to see where new ones part from them
WORTH_TOKENS = 64  # a junction is worth a snapshot where it saves at least this many tokens
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64


@dataclass
class _Entry:
    """A snapshot of prefix `ids`; `hits` raises what it is worth."""

    ids: np.ndarray
    snapshot: Snapshot
    kind: str
    hits: int = 0
    used: int = 0


@dataclass
class CacheStatistics:
    """Counters since the start: queries and hits in tokens, hits by kind of place, what was thrown out."""

    queried_tokens: int = 0
    hit_tokens: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    misses: int = 0
    inserted: int = 0
    evicted: int = 0


class PrefixCache:
    """Snapshots by the ids they stand for, up to `budget` bytes of them. Thread-safe for reading statistics.

    A hit compares the ids themselves, so no collision of hashes can give another prefix's state. Snapshots are found
    under the salt they were inserted with and no other.

    Args:
        budget: bytes of snapshots; blocks that several share count once.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.statistics = CacheStatistics()
        self._entries: OrderedDict[tuple[str, int, int], _Entry] = OrderedDict()  # by salt, length, hash
        self._lengths: dict[str, Counter[int]] = {}
        self._histories: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()
        self._blocks: Counter[int] = Counter()  # references by id(block)
        self._bytes = 0
        self._clock = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ids: Sequence[int], salt: str) -> tuple[Snapshot | None, str]:
        """The longest kept prefix shorter than `ids`, with its kind; (None, "") where there is none."""
        array = np.asarray(ids, np.int64)
        hashes = prefix_hashes(array)
        with self._lock:
            self.statistics.queried_tokens += len(array)
            for length in sorted(self._lengths.get(salt, ()), reverse=True):
                if length >= len(array):
                    continue
                entry = self._entries.get((salt, length, int(hashes[length - 1])))
                if entry is not None and np.array_equal(entry.ids, array[:length]):
                    return self._hit(entry)
            self.statistics.misses += 1
            return None, ""

    def junction(self, ids: Sequence[int], salt: str, known: int) -> int:
        """Where `ids` part from the longest history they share, if that is well beyond `known` tokens; else 0."""
        array = np.asarray(ids, np.int64)
        with self._lock:
            histories = [history for (owner, *_), history in self._histories.items() if owner == salt]
        shared = min(max((_common(array, history) for history in histories), default=0), len(array) - 1)
        return shared if shared - known >= WORTH_TOKENS else 0

    def remember(self, ids: Sequence[int], salt: str) -> None:
        """Note a prompt and its reply, for `junction`."""
        array = np.asarray(ids, np.int64)
        key = (salt, len(array), int(prefix_hashes(array)[-1]))
        with self._lock:
            self._histories[key] = array
            self._histories.move_to_end(key)
            while len(self._histories) > HISTORIES:
                self._histories.popitem(last=False)

    def insert(self, ids: Sequence[int], snapshot: Snapshot, salt: str, kind: str) -> None:
        """Keep `snapshot`, the state after `ids`, and throw out what is worth least where there is no room."""
        assert snapshot.past == len(ids)
        array = np.asarray(ids, np.int64)
        key = (salt, len(array), int(prefix_hashes(array)[-1]))
        with self._lock:
            if key in self._entries:
                self._remove(key)
            self._clock += 1
            self._entries[key] = _Entry(array, snapshot, kind, used=self._clock)
            self._lengths.setdefault(salt, Counter())[len(array)] += 1
            self._bytes += snapshot.own_bytes + array.nbytes
            for block in snapshot.blocks:
                self._refer(block)
            self.statistics.inserted += 1
            while self._bytes > self.budget and self._entries:
                self._remove(self._cheapest())
                self.statistics.evicted += 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for key in list(self._entries):
                self._remove(key)
            self._histories.clear()

    def _hit(self, entry: _Entry) -> tuple[Snapshot, str]:
        self._clock += 1
        entry.hits, entry.used = entry.hits + 1, self._clock
        self.statistics.hit_tokens += len(entry.ids)
        self.statistics.hits[entry.kind] += 1
        return entry.snapshot, entry.kind

    def _cheapest(self) -> tuple[str, int, int]:
        """What saves the fewest tokens per byte and use, old ones first."""

        def worth(key: tuple[str, int, int]) -> float:
            entry = self._entries[key]
            age = self._clock - entry.used + 1
            return len(entry.ids) * (1 + entry.hits) / (entry.snapshot.own_bytes * age)

        return min(self._entries, key=worth)

    def _remove(self, key: tuple[str, int, int]) -> None:
        entry = self._entries.pop(key)
        lengths = self._lengths[key[0]]
        lengths[key[1]] -= 1
        if not lengths[key[1]]:
            del lengths[key[1]]
        if not lengths:
            del self._lengths[key[0]]
        self._bytes -= entry.snapshot.own_bytes + entry.ids.nbytes
        for block in entry.snapshot.blocks:
            self._blocks[id(block)] -= 1
            if not self._blocks[id(block)]:
                del self._blocks[id(block)]
                self._bytes -= block.nbytes

    def _refer(self, block: Block) -> None:
        if not self._blocks[id(block)]:
            self._bytes += block.nbytes
        self._blocks[id(block)] += 1


def prefix_hashes(ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: a polynomial hash of every prefix of ids int64 [n], modulo 2^64."""
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(len(ids), _MULTIPLIER))
        mixed = (ids.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
        return np.cumsum((mixed ^ (mixed >> np.uint64(29))) * powers)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix."""
    size = min(len(a), len(b))
    differing = np.flatnonzero(a[:size] != b[:size])
    return int(differing[0]) if len(differing) else size
