"""What each kernel of some work takes on the device: torch's profiler over it, which needs torch and a GPU."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

KernelTimes = dict[str, Any]  # kernel, grid; count and us of each, in one repetition; total_us


def kernel_times(work: Callable[[], None], synchronize: Callable[[], None], repeats: int = 5) -> list[KernelTimes]:
    """Kernels by name and grid, the longest in all first, and last a row of the gaps between them.

    Args:
        work: enqueues the same kernels at every call.

    Returns: nothing where torch, or the GPU that it sees, is missing; one row that says why where the profiler fails.
    """
    try:
        from torch.profiler import ProfilerActivity, supported_activities
    except ImportError:
        return []
    if ProfilerActivity.CUDA not in supported_activities():
        return []
    try:
        return grouped(_kernel_events(work, synchronize, repeats), repeats)
    except Exception as error:  # whatever it was, the work was timed before
        return [_row(f"not traced: {type(error).__name__}: {error}", "", [], 1)]


def _kernel_events(work: Callable[[], None], synchronize: Callable[[], None], repeats: int) -> list[dict[str, Any]]:
    from torch.profiler import ProfilerActivity, profile

    synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            work()
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return [event for event in events if event.get("cat") == "kernel"]


def grouped(events: list[dict[str, Any]], repeats: int) -> list[KernelTimes]:
    """The rows of `kernel_times` from a Chrome trace's kernel events, times in us."""
    events = sorted(events, key=lambda event: float(event["ts"]))
    kinds = defaultdict[tuple[str, str], list[float]](list)
    for event in events:
        grid = "x".join(str(n) for n in event["args"].get("grid", []))
        kinds[event["name"], grid].append(float(event["dur"]))
    rows = [_row(name, grid, times, repeats) for (name, grid), times in kinds.items()]
    rows.sort(key=lambda row: -row["total_us"])
    each = len(events) // repeats
    gaps = [
        float(later["ts"]) - float(event["ts"]) - float(event["dur"])
        for place, (event, later) in enumerate(pairwise(events), 1)
        if each and place % each  # not from one repetition to the next
    ]
    return [*rows, _row("gaps", "", gaps, repeats)]


def _row(kernel: str, grid: str, times: list[float], repeats: int) -> KernelTimes:
    us = median(times) if times else 0.0
    return {"kernel": kernel, "grid": grid, "count": len(times) / repeats, "us": us, "total_us": sum(times) / repeats}
