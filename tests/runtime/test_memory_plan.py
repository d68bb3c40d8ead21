"""How memory is divided where a model sees, and where it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deltart.errors import GenerationError
from deltart.runtime.backends.slots import Limits
from deltart.runtime.memory_plan import plan_memory
from support.vision import ENTRY

LIMITS = Limits(slots=2, capacity=100_000, prefill_tokens=512, draft_tokens=4, slot_bytes=10**6, token_bytes=10**4)
GB = 10**9


def test_pictures_take_their_share_of_what_is_left() -> None:
    blind, sighted = (plan_memory(LIMITS, 2 * GB, 12 * GB, None, vision) for vision in (None, ENTRY))
    assert blind.vision == 0 and "pictures" not in str(blind)
    assert 1.4 * GB < sighted.vision < 1.6 * GB  # one call of 4096 patches, and as much for embeddings
    assert "pictures 1.5 GB" in str(sighted)
    for plan in (blind, sighted):
        used = plan.weights + plan.states + plan.vision + plan.cache + plan.tokens * plan.token_bytes
        assert used <= plan.available


def test_little_memory_is_shared_all_the_same() -> None:
    plan = plan_memory(LIMITS, 0, 100_000_000, None, ENTRY)
    assert plan.tokens > 0
    assert plan.vision < 25_000_000
    with pytest.raises(GenerationError, match="memory for weights"):
        plan_memory(replace(LIMITS, slots=200), 0, 100_000_000, None, ENTRY)
