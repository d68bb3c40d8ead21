"""Which kernels serve a TensorRT call of the Gated DeltaNet layer's projections; they are those of fp8_block_linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltart.plugins.fp8_block_linear.projections import Projection, Projections


def members(sizes: Mapping[str, Any]) -> tuple[Projection, ...]:
    """The projections of a call of these sizes."""
    return (
        Projection(sizes["Nqkv"], "qkv_weight", "qkv", "qkv_scale_inv"),
        Projection(sizes["Nz"], "z_weight", "z", "z_scale_inv"),
        Projection(sizes["Ha"], "a_weight", "a"),
        Projection(sizes["Hb"], "b_weight", "b"),
    )


KERNEL = Projections(members).kernel
