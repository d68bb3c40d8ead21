"""Which kernels serve a TensorRT call of the attention layer's projections; they are those of fp8_block_linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltart.plugins.fp8_block_linear.projections import Projection, Projections


def members(sizes: Mapping[str, Any]) -> tuple[Projection, ...]:
    """The projections of a call of these sizes."""
    return (
        Projection(sizes["Nq"], "q_weight", "q", "q_scale_inv"),
        Projection(sizes["Nk"], "k_weight", "k", "k_scale_inv"),
        Projection(sizes["Nv"], "v_weight", "v", "v_scale_inv"),
    )


KERNEL = Projections(members).kernel
