"""What the engine bench makes of a profiler's trace."""

from __future__ import annotations

from typing import Any

import pytest

from bench.engine.trace import grouped


def event(name: str, begin: float, duration: float, grid: tuple[int, int, int] = (8, 1, 1)) -> dict[str, Any]:
    return {"cat": "kernel", "name": name, "ts": begin, "dur": duration, "args": {"grid": [*grid]}}


def test_kernels_by_name_and_grid_and_the_gaps_within_a_repetition() -> None:
    one = [event("gemv", 0, 10), event("norm", 12, 1), event("gemv", 14, 30, (16, 1, 1)), event("gemv", 44, 12)]
    again = [event(e["name"], e["ts"] + 1000, e["dur"] + 2, tuple(e["args"]["grid"])) for e in one]
    rows = {(row["kernel"], row["grid"]): row for row in grouped(again[::-1] + one, repeats=2)}
    assert [*rows] == [("gemv", "16x1x1"), ("gemv", "8x1x1"), ("norm", "8x1x1"), ("gaps", "")]
    small = rows["gemv", "8x1x1"]
    assert (small["count"], small["us"], small["total_us"]) == (2, 12, pytest.approx((10 + 12 + 12 + 14) / 2))
    gaps = rows["gaps", ""]  # 2, 1 and 0 us in the first; each kernel of the second reaches 2 us further
    assert (gaps["count"], gaps["total_us"]) == (3, pytest.approx((2 + 1 + 0 + 0 - 1 - 2) / 2))
