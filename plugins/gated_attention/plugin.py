"""Which kernels serve a TensorRT call of the gated attention: bf16 activations and cache, any number of tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deltart.plugins.gated_attention import prefill, rope
from deltart.plugins.gated_attention.inputs import Shape
from deltart.plugins.gated_attention.launch import attention, plan
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require


def _shape(call: Call, q: str = "q") -> Shape:
    sizes = call.sizes
    require(call.dtypes[q] == "bf16", f"{call.dtypes[q]} activations", "bf16")
    return Shape(
        slots=sizes["B"],
        tokens=sizes["T"],
        heads=sizes["num_heads"],
        kv_heads=sizes["num_kv_heads"],
        head_dim=sizes["head_dim"],
        capacity=sizes["capacity"],
    )


def workspace_bytes(call: Call) -> int:
    """The most that any number of tokens up to this one takes: few tokens split the keys into more parts."""
    return _workspace_bytes(_shape(call))


def _workspace_bytes(shape: Shape) -> int:
    return max(plan(replace(shape, tokens=tokens)).workspace_bytes() for tokens in range(1, shape.tokens + 1))


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call; `call.at` holds every tensor and the workspace."""
    shape = _shape(call)
    by = plan(shape)
    if prefill.serves(shape, call.capability):
        return "prefill.cu", [prefill.attention(shape, call.at)]
    return "kernel.cu", attention(by, call.at)


def turned(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call from the projections on."""
    sizes, kinds = call.sizes, {call.dtypes[name] for name in ("q_weight", "k_weight")}
    require(len(kinds) == 1, f"norm weights stored as {' and '.join(sorted(kinds))}", "one type for both")
    turn = rope.Turn(2 * sizes["P"], kinds.pop(), sizes["epsilon"])
    return "rope.cu", rope.attention(plan(_shape(call, "q_gate")), turn, call.at)


FOLDER = Path(__file__).resolve().parent
KERNELS = {
    "GatedAttention": Kernel(FOLDER, ("kernel.cu", "prefill.cu"), workspace_bytes, launches),
    "RopeGatedAttention": Kernel(FOLDER, ("rope.cu",), lambda call: _workspace_bytes(_shape(call, "q_gate")), turned),
}
