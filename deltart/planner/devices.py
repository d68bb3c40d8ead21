"""Devices, by their makers' data sheets: memory, bandwidth, dense arithmetic, and the link to their like."""

from __future__ import annotations

from dataclasses import dataclass

from deltart.errors import PlanError


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        title: its name in full.
        memory: bytes.
        bandwidth: bytes/s of its memory, peak.
        bf16: dense BF16 products with f32 sums, FLOP/s; f32 ones for a CPU.
        fp8: the same for E4M3; None where FP8 weights are widened before the product.
        link: bytes/s to another device, one direction; 0 for none.
        link_seconds: what a reduction over several devices takes at least.
        float_weights: weights are held in float32, as ONNX Runtime's CPU kernels need them.
    """

    title: str
    memory: float
    bandwidth: float
    bf16: float
    fp8: float | None = None
    link: float = 0.0
    link_seconds: float = 20e-6
    float_weights: bool = False


NVLINK = 8e-6  # seconds of a reduction, at least; over PCIe 20e-6
GB, TB, TFLOPS = 1e9, 1e12, 1e12

# Boards of one maker's line have the dense rates of its data sheet: half of what it states "with sparsity".
DEVICES = {
    "h100": Device("H100 SXM", 80 * GB, 3.35 * TB, 989 * TFLOPS, 1979 * TFLOPS, 450 * GB, NVLINK),
    "h200": Device("H200 SXM", 141 * GB, 4.8 * TB, 989 * TFLOPS, 1979 * TFLOPS, 450 * GB, NVLINK),
    "b200": Device("B200", 180 * GB, 8.0 * TB, 2250 * TFLOPS, 4500 * TFLOPS, 900 * GB, NVLINK),
    "b300": Device("B300", 288 * GB, 8.0 * TB, 2250 * TFLOPS, 4500 * TFLOPS, 900 * GB, NVLINK),
    "a100": Device("A100 SXM 80 GB", 80 * GB, 2.039 * TB, 312 * TFLOPS, None, 300 * GB, NVLINK),
    "l40s": Device("L40S", 48 * GB, 0.864 * TB, 362 * TFLOPS, 733 * TFLOPS, 32 * GB),
    "rtx-pro-6000": Device("RTX PRO 6000 Blackwell", 96 * GB, 1.792 * TB, 504 * TFLOPS, 1007 * TFLOPS, 64 * GB),
    "rtx-5090": Device("GeForce RTX 5090", 32 * GB, 1.792 * TB, 209 * TFLOPS, 419 * TFLOPS, 64 * GB),
    "rtx-4090": Device("GeForce RTX 4090", 24 * GB, 1.008 * TB, 165 * TFLOPS, 330 * TFLOPS, 32 * GB),
    "dgx-spark": Device("DGX Spark (GB10)", 128 * GB, 0.273 * TB, 125 * TFLOPS, 250 * TFLOPS, 25 * GB),
    "thor": Device("Jetson AGX Thor", 128 * GB, 0.273 * TB, 259 * TFLOPS, 517 * TFLOPS, 0.0),
}
CPU = "cpu"  # this machine, measured by `planner.host`


def device(name: str) -> Device:
    """The device of that name, in any case and with any separators. Raises PlanError for an unknown one."""
    wanted = _plain(name)
    for known, found in DEVICES.items():
        if wanted in (_plain(known), _plain(found.title)):
            return found
    raise PlanError(f"no device '{name[:40]}' is known", f"one of {', '.join([*DEVICES, CPU])}, or all")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
