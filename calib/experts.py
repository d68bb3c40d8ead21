"""Fused experts as the matrices that they become: where each lies in its tensor, what it is called, how all did."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from deltart.calib.figures import WeightFigures, sqnr_db
from deltart.dtypes import BY_STORED
from deltart.export.checkpoint import Checkpoint
from deltart.safetensors import TensorInfo

FUSED = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)")  # an unquantized sparse MLP has no ".weight" here
ROUTED = re.compile(r"(.+\.experts)\.\d+\.(\w+_proj)(?:\.weight)?")


def unfused(tensors: Checkpoint) -> dict[str, TensorInfo]:
    """Every tensor by name, fused experts as their parts: each is a range of its tensor's bytes."""
    return {part.name: part for info in tensors.values() for part in parts_of(info)}


def parts_of(info: TensorInfo) -> Iterator[TensorInfo]:
    """The matrices of every expert in a fused tensor; of any other, itself."""
    found = FUSED.fullmatch(info.name)
    if found is None or len(info.shape) != 3:
        yield info
        return
    experts, rows, columns = info.shape
    names = ("gate_proj", "up_proj") if found[2] == "gate_up_proj" else ("down_proj",)
    shape = (rows // len(names), columns)
    size = math.prod(shape) * BY_STORED[info.dtype].itemsize
    for number in range(experts):
        for place, part in enumerate(names):
            offset = info.offset + (number * len(names) + place) * size
            name = f"{found[1]}.{number}.{part}.weight"
            yield replace(info, name=name, offset=offset, nbytes=size, shape=shape)


def fused_experts(name: str) -> str | None:
    """The module whose experts are fused in the tensor `name`; None for other tensors."""
    found = FUSED.fullmatch(name)
    return found[1] if found else None


def experts_of(name: str) -> str | None:
    """The module that holds the expert which a weight or its module belongs to; None for others."""
    found = ROUTED.fullmatch(name)
    return found[1] if found else None


def merged(figures: Mapping[str, WeightFigures]) -> dict[str, WeightFigures]:
    """Figures by module, those of the experts of a layer as one for each of their matrices: "mlp.experts.up_proj"."""
    groups: dict[str, list[WeightFigures]] = {}
    for module, own in figures.items():
        found = ROUTED.fullmatch(module)
        groups.setdefault(f"{found[1]}.{found[2]}" if found else module, []).append(own)
    return {module: own[0] if len(own) == 1 else _together(own) for module, own in groups.items()}


def _together(figures: list[WeightFigures]) -> WeightFigures:
    size = sum(own.size for own in figures)
    energy, noise = sum(own.energy for own in figures), sum(own.noise for own in figures)

    def share(name: str) -> float:
        return float(sum(getattr(own, name) * own.size for own in figures) / size)

    return WeightFigures(
        size=size,
        energy=energy,
        noise=noise,
        sqnr_db=sqnr_db(energy, noise),
        peak=max(own.peak for own in figures),
        outliers=share("outliers"),
        saturated=share("saturated"),
        underflow=share("underflow"),
    )
