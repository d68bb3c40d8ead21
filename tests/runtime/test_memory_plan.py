"""How memory is divided where a model sees, and where it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import deltart
from deltart.errors import GenerationError
from deltart.runtime import memory_plan
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.slots import Limits
from deltart.runtime.engine import EngineOptions
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


def test_weights_that_are_in_memory_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "spare_memory", lambda: 3 * GB)
    with pytest.raises(GenerationError, match=r"3\.0 GB of memory for weights of 20\.0 GB"):
        plan_memory(LIMITS, 20 * GB, None, None)
    plan = plan_memory(LIMITS, 20 * GB, None, None, held=19 * GB)
    assert plan.available == 22 * GB and 0 < plan.tokens * plan.token_bytes + plan.cache <= 2 * GB
    assert plan_memory(LIMITS, 2 * GB, 12 * GB, None, held=2 * GB).available == 12 * GB  # what was said is all there is


def test_an_engine_counts_the_sessions_that_it_opened(nano_artifact: Path) -> None:
    with deltart.load(str(nano_artifact), threads=1, options=EngineOptions(slots=1, draft_tokens=0)) as engine:
        backend = engine.backend
        assert isinstance(backend, OrtBackend) and 0 < backend.held_bytes < backend.weight_bytes  # no MTP graph
