"""How far a runner may be from the reference: relative RMS by runner."""

from __future__ import annotations

NATIVE_ON_SHIM = "native on the CPU shim"
# transformers, "portable" and "ort" compute in float32, engines in bfloat16.
EXACT, ENGINES = ("transformers", "portable", "ort"), (NATIVE_ON_SHIM, "engine", "engine by block")
TOLERANCES = dict.fromkeys(EXACT, 1e-3) | dict.fromkeys(ENGINES, 2e-2)
# A bound for gross errors only: nano's hidden states differ by up to 0.13 on random tokens,
# its logits by 0.013 on its own texts.
FP8_PREFILL = dict.fromkeys(("fp8 prefill", *ENGINES), 0.3)


MTP_SHARE = 2  # of a runner's tolerance: the MTP head reads hidden states that are off by as much as its own sums


def allowed(tolerance: float, point: str) -> float:
    """Relative RMS that a runner's tolerance leaves a point."""
    return tolerance * MTP_SHARE if point.startswith("mtp.") else tolerance


INT8 = {"ort": 0.3}  # the same, where the activations of int4 linears are rounded to int8


def tolerances(prefill_activations: str, int4_activations: str = "exact") -> dict[str, float]:
    """Relative RMS allowed to each runner, with "bf16" or "fp8" activations in prefill, "exact" or "int8" on `ort`."""
    fp8, int8 = prefill_activations == "fp8", int4_activations == "int8"
    return TOLERANCES | (FP8_PREFILL if fp8 else {}) | (INT8 if int8 else {})
