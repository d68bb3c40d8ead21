"""Which kernels serve a call of the gated delta rule: decode up to 8 tokens, chunked prefill beyond."""

from __future__ import annotations

from pathlib import Path

from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.launch import CHUNKS, DECODE_TOKENS, chunking, decode, prefill
from deltart.plugins.gated_delta_rule.norm import Norm, decode_norm
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require

KEY_DIM = 128  # of the kernels as they are compiled for GPUs
ANY_SHARED = 1 << 30  # bytes: leaves the choice of chunk open, for a bound that holds on every GPU


def _shape(call: Call) -> Shape:
    sizes, dtypes = call.sizes, call.dtypes
    require(sizes["head_k_dim"] == KEY_DIM, f"key heads of {sizes['head_k_dim']}", f"{KEY_DIM}")
    return Shape(
        slots=sizes["B"], tokens=sizes["T"], key_heads=sizes["num_k_heads"], value_heads=sizes["num_v_heads"],
        key_dim=sizes["head_k_dim"], value_dim=sizes["head_v_dim"],
        dtype=dtypes["qkv"], A_log_dtype=dtypes["A_log"], dt_bias_dtype=dtypes["dt_bias"],
    )  # fmt: skip


def workspace_bytes(call: Call) -> int:
    """Scratch memory of prefill, whichever chunk the device allows; decode needs none."""
    shape = _shape(call)
    if shape.tokens <= DECODE_TOKENS:
        return 0
    return max(chunking(shape, ANY_SHARED, chunk).workspace_bytes() for chunk in CHUNKS[shape.dtype])


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call; `call.at` holds every tensor and the workspace."""
    shape = _shape(call)
    if shape.tokens <= DECODE_TOKENS:
        return "decode.cu", [decode(shape, call.at)]
    return "prefill.cu", prefill(chunking(shape, call.shared_limit), call.at)


def normed(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call with the norm behind it."""
    norm = Norm(call.dtypes["norm_weight"], call.sizes["epsilon"])
    return "norm.cu", [decode_norm(_shape(call), norm, call.at)]


FOLDER = Path(__file__).resolve().parent
KERNELS = {
    "GatedDeltaRule": Kernel(FOLDER, ("decode.cu", "prefill.cu"), workspace_bytes, launches),
    "GatedDeltaNorm": Kernel(FOLDER, ("norm.cu",), lambda call: 0, normed),
}
