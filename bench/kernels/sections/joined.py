"""What native plans run in one launch where TensorRT has several, beside the sum of the parts' own."""

from __future__ import annotations

from collections.abc import Iterator

from bench.kernels.run import Run, checked_and_timed
from bench.kernels.table import Row
from deltart.plugins.gated_attention import cases as attention
from deltart.plugins.gated_delta_rule import cases as delta_rule
from deltart.plugins.moe_experts import cases as routed

# Parts by the start of a case, as (section, start of a case); all of them timed by the sections before this one.
PARTS = {
    "delta rule, norm B=1 T=1": (("decode", "B=1 T=1"), ("norm", "T=1")),
    "delta rule, norm B=64 T=1": (("decode", "B=64 T=1"), ("norm", "T=64")),
    "conv, delta rule, norm B=1 T=1": (("conv", "B=1 T=1"), ("decode", "B=1 T=1"), ("norm", "T=1")),
    "conv, delta rule, norm B=64 T=1": (("conv", "B=64 T=1"), ("decode", "B=64 T=1"), ("norm", "T=64")),
    "rope, attention B=1 T=1 past=1024": (("rope", "T=1"), ("attention", "B=1 T=1 past=1024 bf16")),
    "rope, attention B=1 T=1 past=32768": (("rope", "T=1"), ("attention", "B=1 T=1 past=32768 bf16")),
    "experts, norm e4m3 B=1 T=1": (("experts", "e4m3 256 x 512 B=1 T=1"), ("residual", "T=1")),  # that of the 27B
}


def joined(run: Run) -> Iterator[Row]:
    """The gated delta rule with the norm behind it, and with the convolution in front as well; attention from the
    projections on; the routed experts with the norm behind them."""
    cases = (
        *delta_rule.timed_joined(run.small),
        *attention.timed_joined(run.small),
        *routed.timed_joined(run.small),
    )
    for row in checked_and_timed(run, "joined", cases):
        parts = [part for part in PARTS.get(row.case, ()) if _time(run, *part)]
        if row.us and parts and len(parts) == len(PARTS[row.case]):
            apart = sum(_time(run, *part) for part in parts)
            row.notes.append(f"apart {apart:.1f} us")
        yield row


def _time(run: Run, section: str, start: str) -> float:
    """Microseconds of the first such case; 0 if it was not timed."""
    found = [r.us for r in run.rows if r.section == section and f"{r.case} ".startswith(f"{start} ") and r.us]
    return found[0] if found else 0.0
