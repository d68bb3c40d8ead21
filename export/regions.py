"""Experts stored one by one that lie one after the other in a file: bound as regions of it, without copying one.

A safetensors writer orders tensors by the width of their elements, then by name. So a layer's experts come in the
order of their numbers as text (0, 1, 10, 100, ...), each as down, gate, up: all their scales, then all their weights.
Any order of the experts will do; the order inside one has to be that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltart.export.checkpoint import TensorInfo

PARTS = ("down_proj", "gate_proj", "up_proj")  # of an expert, as they lie
KINDS = ("weight", "weight_scale_inv")
NAME = re.compile(rf"(.+\.experts)\.(\d+)\.({'|'.join(PARTS)})\.({'|'.join(KINDS)})")

Expert = dict[str, "TensorInfo"]  # by name from the expert on: "down_proj.weight"


def expert_regions(tensors: Iterable[TensorInfo]) -> Iterator[TensorInfo]:
    """Runs of whole experts, as many as there are gaps: `<experts>.runs.<n>.weight` and `.weight_scale_inv`.

    Each has shape [slots, 3, elements of one matrix] and, as `members`, the tensors it covers in their order.
    """
    layers: dict[str, dict[int, Expert]] = {}
    for tensor in tensors:
        found = NAME.fullmatch(tensor.name)
        if found:
            experts, number, part, kind = found.groups()
            layers.setdefault(experts, {}).setdefault(int(number), {})[f"{part}.{kind}"] = tensor
    for experts, members in layers.items():
        for number, run in enumerate(_runs(members)):
            for kind in KINDS:
                yield _region(f"{experts}.runs.{number}.{kind}", [t for expert in run for t in _in_order(expert, kind)])


def slots(region: TensorInfo) -> tuple[int, ...]:
    """The expert in each slot of a region."""
    numbers = (NAME.fullmatch(name) for name in region.members[:: len(PARTS)])
    return tuple(int(found[2]) for found in numbers if found)


def _runs(experts: Mapping[int, Expert]) -> list[list[Expert]]:
    """Whole experts in the order of the file, cut where one does not begin where the other ends."""
    runs: list[list[Expert]] = []
    whole = [expert for expert in experts.values() if all(_in_one_piece(_in_order(expert, kind)) for kind in KINDS)]
    for expert in sorted(whole, key=lambda e: (e["down_proj.weight"].file, e["down_proj.weight"].offset)):
        if runs and all(_adjacent(_in_order(runs[-1][-1], kind)[-1], _in_order(expert, kind)[0]) for kind in KINDS):
            runs[-1].append(expert)
        else:
            runs.append([expert])
    return runs


def _in_order(expert: Expert, kind: str) -> list[TensorInfo]:
    return [expert[f"{part}.{kind}"] for part in PARTS if f"{part}.{kind}" in expert]


def _in_one_piece(tensors: list[TensorInfo]) -> bool:
    return len(tensors) == len(PARTS) and all(_adjacent(a, b) for a, b in zip(tensors, tensors[1:], strict=False))


def _adjacent(first: TensorInfo, second: TensorInfo) -> bool:
    same = (first.file, first.dtype, first.nbytes) == (second.file, second.dtype, second.nbytes)
    return same and first.offset + first.nbytes == second.offset


def _region(name: str, tensors: list[TensorInfo]) -> TensorInfo:
    first = tensors[0]
    shape = (len(tensors) // len(PARTS), len(PARTS), math.prod(first.shape))
    nbytes = len(tensors) * first.nbytes
    return replace(first, name=name, nbytes=nbytes, shape=shape, members=tuple(t.name for t in tensors))
