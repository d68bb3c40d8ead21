"""Which kernels serve a TensorRT call of each op of the routed experts, with the shared expert and without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deltart.plugins.fp8_linear.prefill import HOPPER
from deltart.plugins.kernel_call import Call, Kernel
from deltart.plugins.launch import Launch, require
from deltart.plugins.moe_experts import norm
from deltart.plugins.moe_experts.inputs import Shape
from deltart.plugins.moe_experts.launch import ALIGNMENT, check, experts, source, workspace

FOLDER = Path(__file__).resolve().parent
SOURCES = ("decode.cu", "prefill.cu", "prefill_wgmma.cu")
SCALES = ("experts_scale", "shared_gate_scale_inv", "shared_up_scale_inv", "shared_down_scale_inv")
PLAIN = ("gate_up", "down", "shared_gate", "shared_up", "shared_down", "shared_expert_gate")


def is_quantized(call: Call) -> bool:
    """Whether activations may be rounded to E4M3."""
    return bool(call.sizes.get("quantize_activations", 0))


def multiplies_e4m3(capability: int) -> bool:
    """Whether there is a product of E4M3 for a GPU by its compute capability times ten: `mma` of sm_89 and sm_120, and
    that of sm_90's warpgroups. sm_100 widens `mma`'s operands first, and there activations stay as they are."""
    return capability in (89, HOPPER) or capability >= 120


def shape_of(call: Call, quantizes: bool | None = None) -> Shape:
    """The call's sizes and types; `quantizes` is what it does on this GPU where it is None.

    Raises:
        BuildError: for types that no kernel takes.
    """
    sizes, dtypes = call.sizes, call.dtypes
    is_fp8 = "experts" in dtypes
    if quantizes is None:
        quantizes = is_quantized(call) and multiplies_e4m3(call.capability)
    kinds = sorted({dtypes[name] for name in SCALES if name in dtypes})
    require(len(kinds) <= 1, f"scales stored as {' and '.join(kinds)}", "one type for all")
    plain = sorted({dtypes[name] for name in PLAIN if dtypes.get(name) not in (None, "i8")} - {"bf16"})
    require(not plain, f"weights stored as {' and '.join(plain)}", "bf16")
    return Shape(
        slots=sizes["B"],
        tokens=sizes["T"],
        hidden=sizes["hidden_size"],
        experts=sizes["E"],
        chosen=sizes["num_experts_per_tok"],
        width=sizes["intermediate_size"],
        shared=sizes.get("shared_size", 0),
        present=sizes["S"] if is_fp8 else sizes["E"],
        dtype=dtypes["x"],
        stored="e4m3" if is_fp8 else "bf16",
        scale_dtype=kinds[0] if kinds else "f32",
        quantized=quantizes,
    )


def workspace_bytes(call: Call) -> int:
    """Of all scratch arrays, on the GPUs that take the most."""
    return sum(_aligned(size) for size in workspace(shape_of(call, is_quantized(call))).values())


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call."""
    shape = shape_of(call)
    check(shape)
    at = _placed(call, workspace(shape))
    return source(shape, call.capability), experts(shape, at, call.capability, call.multiprocessors)


def joined_workspace_bytes(call: Call) -> int:
    """Of all scratch arrays of the experts with the norm behind them."""
    return sum(_aligned(size) for size in norm.workspace(shape_of(call)).values())


def joined_launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launches of one call of the experts with the norm behind them."""
    shape = shape_of(call)
    at = _placed(call, norm.workspace(shape))
    return "decode.cu", norm.experts_norm(shape, call.dtypes["norm_weight"], call.sizes["epsilon"], at)


def _placed(call: Call, arrays: Mapping[str, int]) -> dict[str, int]:
    """The call's addresses, and those of `arrays`, of so many bytes, one behind the other in its workspace."""
    at, end = dict(call.at), call.at["workspace"]
    for name, size in arrays.items():
        at[name] = end
        end += _aligned(size)
    return at


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


NAMES = ("MoeExperts", "Fp8MoeExperts", "SparseMoe", "Fp8SparseMoe")
KERNELS = {name: Kernel(FOLDER, SOURCES, workspace_bytes, launches) for name in NAMES}
KERNELS |= {f"{name}Norm": Kernel(FOLDER, ("decode.cu",), joined_workspace_bytes, joined_launches) for name in NAMES}
