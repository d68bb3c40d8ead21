"""Which kernels serve a call of each op of the int4 linears: decode's or prefill's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltart.plugins.fp8_linear.call import ALIGNMENT
from deltart.plugins.fp8_linear.launch import MAX_DECODE
from deltart.plugins.fp8_linear.projections import Projection
from deltart.plugins.int4_linear import prefill as tiles
from deltart.plugins.int4_linear import projections as several
from deltart.plugins.int4_linear.inputs import Shape
from deltart.plugins.int4_linear.launch import decode, decode_gate_up, logits
from deltart.plugins.int4_linear.norm import linear_norm
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require

FOLDER = Path(__file__).resolve().parent
SOURCES = ("decode.cu", "prefill.cu")
PROJECTION_SOURCES = ("projections.cu", "prefill.cu")


def _shape(call: Call, n: int, scale_dtype: str, tokens: str = "T") -> Shape:
    sizes, group = call.sizes, call.sizes["group_size"]
    found = f"{sizes['groups']} groups of {group} values, {sizes['group_bytes']} bytes each"
    fits = sizes["groups"] * group == sizes["K"] and sizes["group_bytes"] * 2 == group
    require(fits, found, f"those of K = {sizes['K']}")
    return Shape(sizes["B"], sizes[tokens], n, sizes["K"], group, call.dtypes["x"], scale_dtype)


def _is_decode(shape: Shape) -> bool:
    """Whether the call takes a decode kernel, which needs no workspace."""
    return shape.rows <= MAX_DECODE or shape.dtype == "f32"


def _partial_bytes(shape: Shape) -> int:
    """Bytes of the sums of a split K, of the widest weight's `shape`."""
    return 0 if _is_decode(shape) else -(-tiles.max_partial_bytes(shape) // ALIGNMENT) * ALIGNMENT


def _scratch(call: Call) -> dict[str, int]:
    return call.at | {"partial": call.at["workspace"]}


def _linear_shape(call: Call) -> Shape:
    return _shape(call, call.sizes["N"], call.dtypes["weight_scale"])


def linear_workspace(call: Call) -> int:
    """The sums of a split K."""
    return _partial_bytes(_linear_shape(call))


def linear(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call."""
    shape = _linear_shape(call)
    if _is_decode(shape):
        return "decode.cu", [decode(shape, call.at)]
    return "prefill.cu", tiles.prefill(shape, _scratch(call))


def _pair_shape(call: Call) -> Shape:
    kinds = (call.dtypes["weight_scale"], call.dtypes["up_scale"])
    require(kinds[0] == kinds[1], f"scales stored as {kinds[0]} and {kinds[1]}", "one type for both")
    return _linear_shape(call)


def pair_workspace(call: Call) -> int:
    """What a linear takes, and the gate; nothing in decode."""
    shape = _pair_shape(call)
    return 0 if _is_decode(shape) else _partial_bytes(shape) + tiles.gate_bytes(shape)


def pair(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call: decode takes one launch, a prompt the tiles twice and a product."""
    shape = _pair_shape(call)
    if _is_decode(shape):
        return "decode.cu", [decode_gate_up(shape, call.at)]
    gate = call.at["workspace"] + _partial_bytes(shape)
    return "prefill.cu", tiles.gate_up(shape, _scratch(call) | {"gate": gate})


def product_bytes(call: Call) -> int:
    """The product, before it is added."""
    return 4 * call.sizes["B"] * call.sizes["T"] * call.sizes["N"]


def linear_and_norm(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    at = call.at | {"y": call.at["workspace"]}
    return "norm.cu", [linear_norm(_linear_shape(call), call.dtypes["norm_weight"], call.sizes["epsilon"], at)]


def head_workspace(call: Call) -> int:
    """None."""
    return 0


def head(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    shape = _shape(call, call.sizes["V"], call.dtypes["weight_scale"], "L")
    return "decode.cu", [logits(shape, call.at | {"y": call.at["logits"]})]


@dataclass(frozen=True)
class Projections:
    """How an op of several projections runs: `members` says which they are for the sizes of a call."""

    members: Callable[[Mapping[str, Any]], Sequence[Projection]]

    def workspace_bytes(self, call: Call) -> int:
        """What the widest of the linears takes."""
        return _partial_bytes(self._widest(call))

    def launches(self, call: Call) -> tuple[str, list[Launch]]:
        """The source and launches of one call: decode takes one launch."""
        shape, members = self._widest(call), self.members(call.sizes)
        if _is_decode(shape):
            return "projections.cu", [several.decode(shape, members, call.at)]
        return "prefill.cu", several.prefill(shape, members, _scratch(call))

    def _widest(self, call: Call) -> Shape:
        members = self.members(call.sizes)
        kinds = sorted({call.dtypes[m.scale] for m in members if m.scale})
        plain = sorted({call.dtypes[m.weight] for m in members if not m.scale})
        require(len(kinds) == 1, f"scales stored as {' and '.join(kinds)}", "one type for all")
        require(plain in ([], ["bf16"]), f"weights stored as {' and '.join(plain)}", "bf16")
        return _shape(call, max(m.n for m in members if m.scale), kinds[0])


def attention_members(sizes: Mapping[str, Any]) -> tuple[Projection, ...]:
    """The projections of an attention layer."""
    return (
        Projection(sizes["Nq"], "q_groups", "q", "q_scale"),
        Projection(sizes["Nk"], "k_groups", "k", "k_scale"),
        Projection(sizes["Nv"], "v_groups", "v", "v_scale"),
    )


def delta_net_members(sizes: Mapping[str, Any]) -> tuple[Projection, ...]:
    """The projections of a Gated DeltaNet layer."""
    return (
        Projection(sizes["Nqkv"], "qkv_groups", "qkv", "qkv_scale"),
        Projection(sizes["Nz"], "z_groups", "z", "z_scale"),
        Projection(sizes["Ha"], "a_weight", "a"),
        Projection(sizes["Hb"], "b_weight", "b"),
    )


ATTENTION, DELTA_NET = Projections(attention_members), Projections(delta_net_members)
KERNELS = {
    "Int4GroupLinear": Kernel(FOLDER, SOURCES, linear_workspace, linear),
    "Int4GroupGateUp": Kernel(FOLDER, SOURCES, pair_workspace, pair),
    "Int4LinearNorm": Kernel(FOLDER, ("norm.cu",), product_bytes, linear_and_norm),
    "Int4LmHead": Kernel(FOLDER, ("decode.cu",), head_workspace, head),
    "Int4AttentionProjections": Kernel(FOLDER, PROJECTION_SOURCES, ATTENTION.workspace_bytes, ATTENTION.launches),
    "Int4DeltaNetProjections": Kernel(FOLDER, PROJECTION_SOURCES, DELTA_NET.workspace_bytes, DELTA_NET.launches),
}
