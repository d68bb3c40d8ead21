"""When a linear rounds its activations to E4M3: what the attribute `quantize_activations` of a call says."""

from __future__ import annotations

ATTRIBUTE = "quantize_activations"  # of the composite ops that can
AS_STORED, ROUNDED, WHERE_MULTIPLIED = 0, 1, 2
MULTIPLIES = 89  # the compute capability, times ten, from which GPUs multiply E4M3


def rounds(mode: int, capability: int) -> bool:
    """Whether a call of this mode rounds them on a GPU of this compute capability, times ten."""
    return mode == ROUNDED or (mode == WHERE_MULTIPLIED and capability >= MULTIPLIES)
