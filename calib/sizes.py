"""What each part of a checkpoint takes before and after: for the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deltart.calib.experts import experts_of, fused_experts
from deltart.export.checkpoint import Checkpoint
from deltart.export.spec import ModelSpec

QUANTIZED, KEPT, REST = "quantized linears", "linears left as they are", "everything else"


@dataclass(frozen=True)
class PartSize:
    """Bytes of a part's tensors before and after, and their stored types after, by falling size."""

    before: int
    after: int
    dtypes: list[str]


def part_sizes(
    spec: ModelSpec, before: Checkpoint, after: Checkpoint, quantized: Iterable[str], kept: Iterable[str]
) -> dict[str, PartSize]:
    """Sizes by part: QUANTIZED, KEPT, "embedding", "LM head", "vision tower", REST; those that are there.

    Args:
        quantized: modules that became smaller, each routed expert by itself.
        kept: modules that could have.
    """
    modules = {QUANTIZED: _named(quantized), KEPT: _named(kept)}
    prefixes = {
        "embedding": f"{spec.text_prefix}embed_tokens.",
        "LM head": spec.head_prefix,
        "vision tower": spec.vision_prefix,
    }

    def part_of(name: str) -> str:
        module = fused_experts(name) or name.rpartition(".")[0]
        found = (part for part, own in modules.items() if module in own)
        return next(found, None) or next((p for p, prefix in prefixes.items() if name.startswith(prefix)), REST)

    totals: dict[str, tuple[int, dict[str, int]]] = {}
    for info in before.values():
        size, dtypes = totals.get(part_of(info.name), (0, {}))
        totals[part_of(info.name)] = size + info.nbytes, dtypes
    for info in after.values():
        dtypes = totals.setdefault(part_of(info.name), (0, {}))[1]
        dtypes[info.dtype] = dtypes.get(info.dtype, 0) + info.nbytes
    return {part: PartSize(*_of(totals[part])) for part in (QUANTIZED, KEPT, *prefixes, REST) if part in totals}


def _named(modules: Iterable[str]) -> set[str]:
    """The modules, and those whose experts they are, fused."""
    own = set(modules)
    return own | {str(experts_of(module)) for module in own if experts_of(module)}


def _of(total: tuple[int, dict[str, int]]) -> tuple[int, int, list[str]]:
    before, dtypes = total
    return before, sum(dtypes.values()), sorted(dtypes, key=lambda dtype: -dtypes[dtype])
