"""How far a runner may be from the reference: relative RMS by runner."""

from __future__ import annotations

from collections.abc import Collection, Mapping

NATIVE_ON_SHIM = "native on the CPU shim"
# transformers, "portable" and "ort" compute in float32, engines in bfloat16.
EXACT, ENGINES = ("transformers", "portable", "ort"), (NATIVE_ON_SHIM, "engine", "engine by block")
TOLERANCES = dict.fromkeys(EXACT, 1e-3) | dict.fromkeys(ENGINES, 2e-2)
# A bound for gross errors only: nano's hidden states differ by up to 0.13 on random tokens,
# its logits by 0.013 on its own texts.
FP8_PREFILL, ROUNDED = "fp8 prefill", 0.3
# Of what the twin that rounds its activations too is off. An engine is not nearer to the twin than to exact ones: what
# bf16 moves across a step of E4M3 comes out as that step. But it is off as far as the twin: nano's, over 24 to 160
# tokens of held-out text or random ones, by 0.7 to 1.3 times as much, its logits once, over 100, by 3.5 times.
TWIN_SHARE = 3

# Of an engine's logits where its head is in E4M3, which alone moves them by 2 to 4 %.
FP8_HEAD = 0.1
MTP_SHARE = 2  # of a runner's tolerance: the MTP head reads hidden states that are off by as much as its own sums


def allowed(tolerance: float, point: str) -> float:
    """Relative RMS that a runner's tolerance leaves a point."""
    return tolerance * MTP_SHARE if point.startswith("mtp.") else tolerance


def tolerance_of(tolerances: Mapping[str, float], runner: str, point: str) -> float:
    """A runner's tolerance at a point: its logits may have one of their own."""
    return logits_of(tolerances, runner) if point.rpartition(".")[2] == "logits" else tolerances[runner]


def logits_of(tolerances: Mapping[str, float], runner: str) -> float:
    """What a runner's logits are allowed: where they have a bound of their own, that one."""
    return tolerances.get(_logits(runner), tolerances[runner])


def _logits(runner: str) -> str:
    return f"{runner}: logits"


INT8 = {"ort": 0.3}  # the same, where the activations of int4 linears are rounded to int8


def tolerances(
    rounding: Collection[str] = (), int4_activations: str = "exact", fp8_heads: Collection[str] = ()
) -> dict[str, float]:
    """Relative RMS allowed to each runner, with "exact" or "int8" activations of int4 linears on `ort`.

    `rounding` names the runners that round activations in prefill and have no twin, `fp8_heads` those whose LM head is
    in E4M3.
    """
    found = TOLERANCES | dict.fromkeys(rounding, ROUNDED) | (INT8 if int4_activations == "int8" else {})
    return found | {_logits(runner): max(FP8_HEAD, found[runner]) for runner in fp8_heads}
