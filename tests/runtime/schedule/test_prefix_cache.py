"""Prefixes that are kept: the longest is found, no other's state is ever given, and the budget holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltart.runtime.backends.slots import Block, Snapshot
from deltart.runtime.schedule.positions import INTERVAL, Marks, snapshot_points
from deltart.runtime.schedule.prefix_cache import PrefixCache, prefix_hashes

START, USER, ASSISTANT = 90, 91, 92
MARKS = Marks(START, USER)


def snapshot(past: int, nbytes: int = 800, blocks: tuple[Block, ...] = ()) -> Snapshot:
    return Snapshot(past, {"S": np.zeros(nbytes, np.uint8)}, blocks, np.zeros(0, np.float32))


def test_hashes_of_prefixes_are_those_of_the_prefixes_alone() -> None:
    ids = np.random.default_rng(0).integers(0, 250_000, 500)
    whole = prefix_hashes(ids)
    for length in (1, 2, 77, 500):
        assert whole[length - 1] == prefix_hashes(ids[:length])[-1]
    assert len(set(whole.tolist())) == 500


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12),
    st.lists(st.integers(0, 2), min_size=1, max_size=10),
)
def test_the_longest_prefix_is_found(kept: list[list[int]], ids: list[int]) -> None:
    """Against a search by brute force, over so few tokens that prefixes abound."""
    cache = PrefixCache(10**9)
    for prefix in kept:
        cache.insert(prefix, snapshot(len(prefix)), "", "turn")
    fitting = [prefix for prefix in kept if len(prefix) < len(ids) and ids[: len(prefix)] == prefix]
    found, _ = cache.find(ids, "")
    assert (found.past if found else 0) == max(map(len, fitting), default=0)


def test_equal_hashes_are_not_equal_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "deltart.runtime.schedule.prefix_cache.prefix_hashes", lambda ids: np.zeros(len(ids), np.uint64)
    )
    cache = PrefixCache(10**9)
    cache.insert([1, 2, 3], snapshot(3), "", "turn")
    assert cache.find([1, 2, 4, 5], "") == (None, "")
    assert cache.find([1, 2, 3, 5], "")[0] is not None


def test_salts_do_not_share() -> None:
    cache = PrefixCache(10**9)
    cache.insert([1, 2], snapshot(2), "a", "turn")
    assert cache.find([1, 2, 3], "")[0] is None and cache.find([1, 2, 3], "b")[0] is None
    assert cache.find([1, 2, 3], "a")[0] is not None
    cache.remember(list(range(200)), "a")
    assert cache.junction([*range(150), 999, 999], "b", 0) == 0
    assert cache.junction([*range(150), 999, 999], "a", 0) == 150


def test_shared_blocks_count_once_and_the_budget_holds() -> None:
    block = Block(256, {"k": np.zeros(10_000, np.uint8)})
    cache = PrefixCache(50_000)
    for past in range(300, 310):
        cache.insert(list(range(past)), snapshot(past, 800, (block,)), "", "turn")
    assert len(cache) == 10 and 10_000 < cache.nbytes < 50_000
    for number in range(100):
        cache.insert([number, *range(300)], snapshot(301, 5_000), "", "turn")
        assert cache.nbytes <= 50_000
    assert cache.statistics.evicted
    cache.clear()
    assert cache.nbytes == 0 and len(cache) == 0


def test_what_is_used_outlives_what_is_not() -> None:
    cache = PrefixCache(12_000)
    cache.insert([7] * 50, snapshot(50, 1_000), "", "message")
    for number in range(200):
        assert cache.find([7] * 60, "")[0] is not None
        cache.insert([number] * 50, snapshot(50, 1_000), "", "turn")


def conversation(*lengths: int) -> list[int]:
    """Messages of a system, then of user and assistant in turn, with an open assistant's message last."""
    ids: list[int] = []
    for number, length in enumerate(lengths):
        ids += [START, (93, USER, ASSISTANT)[0 if not number else 1 + (number - 1) % 2], *[5] * length]
    return [*ids, START, ASSISTANT, 10, 11, 10]


def test_points_of_a_conversation() -> None:
    ids = conversation(40, 10, 30, 12)
    points = snapshot_points(ids, MARKS)
    assert {at: kind for at, kind in points.items() if kind != "end"} == {
        42: "message",  # the first user's message: what all conversations with this system prompt share
        86: "message",  # the last user's
        100: "message",  # the assistant's header
        103: "header",  # behind it: its thinking will be rendered anew
    }
    assert all(0 < at < len(ids) for at in points)


def test_points_without_marks_and_of_long_prompts() -> None:
    assert snapshot_points([1, 2, 3], None) == {2: "end"}
    assert snapshot_points([1], None) == {}
    long = snapshot_points([5] * (2 * INTERVAL + 100), None)
    assert list(long) == [INTERVAL, 2 * INTERVAL, 2 * INTERVAL + 99]
    assert snapshot_points([5] * 300, None, junction=120)[120] == "junction"
