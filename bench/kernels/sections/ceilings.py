"""What the percentages refer to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.kernels.device import Cuda
from bench.kernels.run import Run
from bench.kernels.table import Row

BF16_CEILING, FP8_CEILING = "bf16 8192^3", "fp8 8192^3"  # cases of the ceilings


def ceilings(run: Run) -> Iterator[Row]:
    """A device-to-device copy, a bf16 matrix product and an FP8 one: what the percentages refer to."""
    if not isinstance(run.device, Cuda):
        return
    torch = run.device.torch
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copy = run.device.time([lambda stream: target.copy_(source)])
    yield Row("ceilings", "copy 1 GiB", us=copy.us, spread_us=copy.spread, gbs=2 * source.nbytes / copy.us / 1e3)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = run.device.time([lambda stream: torch.mm(a, b)])
    yield Row("ceilings", BF16_CEILING, us=product.us, spread_us=product.spread, tflops=2 * 8192**3 / product.us / 1e6)
    if run.device.capability >= 89:
        yield fp8_ceiling(run.device)


def fp8_ceiling(device: Cuda) -> Row:
    """cuBLASLt's E4M3 product with one scale per matrix, fast accumulation and no promotion: the most that it does."""
    torch = device.torch
    a, b = (torch.randn(8192, 8192, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")

    def multiply(stream: int) -> Any:
        return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    product = device.time([multiply])
    return Row("ceilings", FP8_CEILING, us=product.us, spread_us=product.spread, tflops=2 * 8192**3 / product.us / 1e6)
