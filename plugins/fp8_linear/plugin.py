"""Which kernels serve a TensorRT call of each op: decode's or prefill's, activations as they are or in E4M3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltart.plugins.fp8_linear import gate_up
from deltart.plugins.fp8_linear import norm as joined
from deltart.plugins.fp8_linear import prefill as tiles
from deltart.plugins.fp8_linear import projections as several
from deltart.plugins.fp8_linear.call import (
    is_decode,
    is_quantized,
    needs_scratch,
    scratch,
    scratch_bytes,
    shape_of,
    tile_kernel,
)
from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.fp8_linear.launch import decode_gate_up, forward
from deltart.plugins.fp8_linear.projections import Projection
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require

FOLDER = Path(__file__).resolve().parent
SOURCES = ("decode.cu", "prefill.cu", "prefill_wgmma.cu")
PROJECTION_SOURCES = ("projections.cu", "prefill.cu", "prefill_wgmma.cu")


def linear_workspace(call: Call) -> int:
    """See call.scratch_bytes."""
    return scratch_bytes(call, shape_of(call))


def linear(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call; `call.at` holds every tensor and the workspace."""
    shape = shape_of(call)
    if not is_quantized(call):
        return forward(shape, scratch(call, shape))
    kernel = tile_kernel(call)
    return kernel.source, tiles.prefill_w8a8(shape, kernel, scratch(call, shape), call.multiprocessors)


def _pair_shape(call: Call) -> Shape:
    kinds = (call.dtypes["weight_scale_inv"], call.dtypes["up_weight_scale_inv"])
    require(kinds[0] == kinds[1], f"scales stored as {kinds[0]} and {kinds[1]}", "one type for both")
    return shape_of(call)


def pair_workspace(call: Call) -> int:
    """What a linear takes, and the gate; nothing in decode."""
    shape = _pair_shape(call)
    return scratch_bytes(call, shape) + gate_up.gate_bytes(shape) if needs_scratch(call, shape) else 0


def pair(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call: decode takes one launch, a prompt the tile kernel twice and a product."""
    shape = _pair_shape(call)
    if is_decode(call, shape):
        return "decode.cu", [decode_gate_up(shape, call.at)]
    at, kernel = scratch(call, shape), tile_kernel(call)
    return kernel.source, gate_up.prefill(shape, kernel, at | {"gate": at["end"]}, call.multiprocessors)


@dataclass(frozen=True)
class Projections:
    """How an op of several projections runs: `members` says which they are for the sizes of a call."""

    members: Callable[[Mapping[str, Any]], Sequence[Projection]]

    def workspace_bytes(self, call: Call) -> int:
        """What the widest of the linears takes."""
        return scratch_bytes(call, self._shape(call))

    def launches(self, call: Call) -> tuple[str, list[Launch]]:
        """The source and launches of one call: decode takes one launch."""
        shape, members = self._shape(call), self.members(call.sizes)
        if is_decode(call, shape):
            return "projections.cu", [several.decode(shape, members, call.at)]
        kernel = tile_kernel(call)
        return kernel.source, several.prefill(shape, members, kernel, scratch(call, shape), call.multiprocessors)

    def _shape(self, call: Call) -> Shape:
        members = self.members(call.sizes)
        kinds = sorted({call.dtypes[m.scale] for m in members if m.scale})
        plain = sorted({call.dtypes[m.weight] for m in members if not m.scale})
        require(len(kinds) == 1, f"scales stored as {' and '.join(kinds)}", "one type for all")
        require(plain in ([], ["bf16"]), f"weights stored as {' and '.join(plain)}", "bf16")
        widest = max(m.n for m in members if m.scale)
        return Shape(call.sizes["B"], call.sizes["T"], widest, call.sizes["K"], call.dtypes["x"], kinds[0])


def attention_members(sizes: Mapping[str, Any]) -> tuple[Projection, ...]:
    """The projections of an attention layer."""
    return (
        Projection(sizes["Nq"], "q_weight", "q", "q_scale_inv"),
        Projection(sizes["Nk"], "k_weight", "k", "k_scale_inv"),
        Projection(sizes["Nv"], "v_weight", "v", "v_scale_inv"),
    )


def delta_net_members(sizes: Mapping[str, Any]) -> tuple[Projection, ...]:
    """The projections of a Gated DeltaNet layer."""
    return (
        Projection(sizes["Nqkv"], "qkv_weight", "qkv", "qkv_scale_inv"),
        Projection(sizes["Nz"], "z_weight", "z", "z_scale_inv"),
        Projection(sizes["Ha"], "a_weight", "a"),
        Projection(sizes["Hb"], "b_weight", "b"),
    )


ATTENTION, DELTA_NET = Projections(attention_members), Projections(delta_net_members)
KERNELS = {
    "Fp8BlockLinear": Kernel(FOLDER, SOURCES, linear_workspace, linear),
    "Fp8BlockGateUp": Kernel(FOLDER, SOURCES, pair_workspace, pair),
    "AttentionProjections": Kernel(FOLDER, PROJECTION_SOURCES, ATTENTION.workspace_bytes, ATTENTION.launches),
    "Fp8LinearNorm": Kernel(FOLDER, ("norm.cu",), joined.product_bytes, joined.launches),
    "DeltaNetProjections": Kernel(FOLDER, PROJECTION_SOURCES, DELTA_NET.workspace_bytes, DELTA_NET.launches),
}
