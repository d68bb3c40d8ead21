"""What the engine may use of the machine's memory, settled before anything is allocated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deltart.errors import GenerationError
from deltart.manifest import VisionEntry
from deltart.runtime.backends.slots import Limits
from deltart.runtime.vision.encoder import CALL_PATCHES

MAX_CACHE_SHARE = 0.25  # of the memory left after the weights, for kept prefixes
MAX_VISION_SHARE = 0.25  # of the same, for pictures
TOWER_BYTES = 160  # that ONNX Runtime works in, a patch and unit of width: 0.73 GB at 4096 patches of 1152
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by use, and how many tokens they hold.

    Attributes:
        available: bytes that the engine may use.
        weights: of the checkpoint, as they are held.
        states: recurrent state of all slots.
        tokens: K/V tokens of all slots together; sequences beyond it are preempted.
        token_bytes: K/V of one token.
        cache: for kept prefixes.
        vision: for pictures: what the tower works in, and embeddings that are kept.
        slots: sequences at once.
        capacity: tokens of one sequence.
    """

    available: int
    weights: int
    states: int
    tokens: int
    token_bytes: int
    cache: int
    slots: int
    capacity: int
    vision: int = 0

    def __str__(self) -> str:
        kv = self.tokens * self.token_bytes
        return (
            f"memory {gigabytes(self.available)}: weights {gigabytes(self.weights)}, "
            f"{self.slots} slots {gigabytes(self.states)}, {self.tokens} tokens of K/V {gigabytes(kv)} "
            f"(up to {self.capacity} a sequence), kept prefixes {gigabytes(self.cache)}"
            + (f", pictures {gigabytes(self.vision)}" if self.vision else "")
        )


def plan_memory(
    limits: Limits, weights: int, memory: int | None, cache: int | None, vision: VisionEntry | None = None,
    held: int = 0,
) -> MemoryPlan:  # fmt: skip
    """Divide `memory` bytes among its uses; when None, what the machine has to spare and the weights already hold.

    Args:
        held: bytes of the weights that are in memory by now.

    Raises:
        GenerationError: what must be there does not fit.
    """
    available = spare_memory() + held if memory is None else memory
    states = limits.slots * limits.slot_bytes
    left = available - weights - states
    pictures = min(_vision_bytes(vision), max(int(left * MAX_VISION_SHARE), 0)) if vision else 0
    left -= pictures
    kept = max(int(left * MAX_CACHE_SHARE), 0) if cache is None else cache
    tokens = min((left - kept) // max(limits.token_bytes, 1), limits.slots * limits.capacity)
    if tokens < 1:
        raise GenerationError(
            f"{gigabytes(available)} of memory for weights of {gigabytes(weights)}, {limits.slots} slots of "
            f"{gigabytes(limits.slot_bytes)} and kept prefixes of {gigabytes(kept)}",
            "memory for at least one token besides",
            "use fewer slots or a smaller prefix cache, or weights 'mapped'",
        )
    return MemoryPlan(
        available, weights, states, tokens, limits.token_bytes, kept, limits.slots, limits.capacity, pictures
    )


def _vision_bytes(vision: VisionEntry) -> int:
    """One call of the tower, and as much again for embeddings."""
    return 2 * CALL_PATCHES * vision.hidden * TOWER_BYTES


def spare_memory() -> int:
    """Bytes that a process may still use here: of the machine, or of its control group where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else total
    limit, used = (_read(_CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def gigabytes(nbytes: int) -> str:
    """In GB, or MB below one."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no control groups, or "max"
        return None
