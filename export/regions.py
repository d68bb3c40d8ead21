"""Places of a file that are bound as another tensor than the header names, without copying one.

Experts stored one by one that lie one after the other are one region; so are the int32 words of a packed weight, as
the bytes of its groups.

A safetensors writer orders tensors by the width of their elements, then by name. So a layer's experts come in the
order of their numbers as text (0, 1, 10, 100, ...), each as down, gate, up: all their scales, then all their weights.
Any order of the experts will do; the order inside one has to be that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from deltart.dtypes import I32, U8
from deltart.safetensors import TensorInfo

PARTS = ("down_proj", "gate_proj", "up_proj")  # of an expert, as they lie
KINDS = ("weight", "weight_scale_inv")
PACKED, PACKED_SCALE, PACKED_SHAPE = "weight_packed", "weight_scale", "weight_shape"  # of compressed-tensors
GROUPS = "weight_groups"  # the region of a packed weight
# What a tensor of an expert is, by what formats call it.
LEAVES = {KINDS[0]: KINDS[0], PACKED: KINDS[0], KINDS[1]: KINDS[1], PACKED_SCALE: KINDS[1]}
PACKED_KINDS = (GROUPS, PACKED_SCALE)  # KINDS of packed experts
NAME = re.compile(rf"(.+\.experts)\.(\d+)\.({'|'.join(PARTS)})\.({'|'.join(LEAVES)})")

Expert = dict[str, TensorInfo]  # by name from the expert on: "down_proj.weight"


@dataclass(frozen=True)
class Region(TensorInfo):
    """Tensors that lie one after the other, seen as one.

    `members` are their names in order; of experts the shape is [slots, 3, elements of one matrix] (bytes of a packed
    one), and `experts` the expert in each slot.
    """

    members: tuple[str, ...]
    experts: tuple[int, ...] = ()


def packed_regions(tensors: Mapping[str, TensorInfo]) -> Iterator[Region]:
    """`<module>.weight_groups`, bytes [out, groups, group / 2], of every int4 weight that falls into whole groups."""
    for name, packed in tensors.items():
        module, _, leaf = name.rpartition(".")
        scale = tensors.get(f"{module}.{PACKED_SCALE}")
        if leaf != PACKED or scale is None or packed.dtype != I32.stored or len(packed.shape) != 2:
            continue
        width = packed.shape[1] * I32.itemsize
        if (
            len(scale.shape) == 2
            and scale.shape[0] == packed.shape[0]
            and scale.shape[1]
            and not width % scale.shape[1]
        ):
            shape = (*scale.shape, width // scale.shape[1])
            yield Region(f"{module}.{GROUPS}", packed.file, packed.offset, packed.nbytes, U8.stored, shape, (name,))


def expert_regions(tensors: Iterable[TensorInfo]) -> Iterator[Region]:
    """Runs of whole experts, as many as there are gaps: `<experts>.runs.<n>.weight` and `.weight_scale_inv`, whatever
    the scales are called; of packed ones `.weight_groups`, bytes, and `.weight_scale`."""
    layers: dict[str, dict[int, Expert]] = {}
    for tensor in tensors:
        found = NAME.fullmatch(tensor.name)
        if found:
            experts, number, part, leaf = found.groups()
            layers.setdefault(experts, {}).setdefault(int(number), {})[f"{part}.{LEAVES[leaf]}"] = tensor
    for experts, members in layers.items():
        for number, run in enumerate(_runs(members)):
            is_packed = members[run[0]][f"{PARTS[0]}.{KINDS[0]}"].dtype == I32.stored
            for kind, name in zip(KINDS, PACKED_KINDS if is_packed else KINDS, strict=True):
                yield _region(f"{experts}.runs.{number}.{name}", run, members, kind)


def _runs(experts: Mapping[int, Expert]) -> list[list[int]]:
    """Whole experts in the order of the file, cut where one does not begin where the other ends."""
    runs: list[list[int]] = []
    whole = [n for n, expert in experts.items() if all(_in_one_piece(_in_order(expert, kind)) for kind in KINDS)]
    for number in sorted(whole, key=lambda n: _place(experts[n]["down_proj.weight"])):
        if runs and _follows(experts[runs[-1][-1]], experts[number]):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _place(tensor: TensorInfo) -> tuple[str, int]:
    return tensor.file, tensor.offset


def _follows(first: Expert, second: Expert) -> bool:
    return all(_adjacent(_in_order(first, kind)[-1], _in_order(second, kind)[0]) for kind in KINDS)


def _in_order(expert: Expert, kind: str) -> list[TensorInfo]:
    return [expert[f"{part}.{kind}"] for part in PARTS if f"{part}.{kind}" in expert]


def _in_one_piece(tensors: list[TensorInfo]) -> bool:
    return len(tensors) == len(PARTS) and all(_adjacent(a, b) for a, b in pairwise(tensors))


def _adjacent(first: TensorInfo, second: TensorInfo) -> bool:
    same = (first.file, first.dtype, first.nbytes) == (second.file, second.dtype, second.nbytes)
    return same and first.offset + first.nbytes == second.offset


def _region(name: str, run: list[int], experts: Mapping[int, Expert], kind: str) -> Region:
    tensors = [tensor for number in run for tensor in _in_order(experts[number], kind)]
    first, names = tensors[0], tuple(tensor.name for tensor in tensors)
    is_packed = first.dtype == I32.stored
    dtype, size = (U8.stored, first.nbytes) if is_packed else (first.dtype, math.prod(first.shape))
    nbytes = len(tensors) * first.nbytes
    return Region(name, first.file, first.offset, nbytes, dtype, (len(run), len(PARTS), size), names, tuple(run))
