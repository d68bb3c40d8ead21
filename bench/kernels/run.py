"""What every section is given, and how it times a case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.kernels.device import Buffers, Device
from bench.kernels.peers import Peer
from bench.kernels.table import Row
from deltart.plugins.cases import Arrays, KernelCase
from deltart.plugins.launch import Launch

Plan = Callable[[Buffers], list[Launch]]


@dataclass
class Run:
    """What every section gets: the device, the seed of this run's inputs, small sizes, no timing, whether the rivals
    are run, and the ceilings (GB/s of a copy, TFLOP/s of a matrix product in bf16 and in FP8) and the rows so far once
    they are measured."""

    device: Device
    seed: int
    small: bool = False
    timed: bool = True
    rivals: bool = False
    copy_gbs: float = 0.0
    matmul_tflops: float = 0.0
    fp8_tflops: float = 0.0
    rows: list[Row] = field(default_factory=list)


def measure(
    run: Run,
    row: Row,
    source: Path,
    arrays: Arrays,
    plan: Plan,
    call_bytes: int,
    flops: int,
    rivals: Mapping[str, Peer],
) -> Row:
    """Fills the timing columns of `row`: our launches and the rivals', over rotated copies of the same buffers."""
    if not run.timed:
        return row
    kernels = run.device.module(source)
    sets = [run.device.place(arrays) for _ in range(run.device.copies(call_bytes))]
    timing = run.device.time([partial(kernels, plan(one)) for one in sets])
    row.us, row.spread_us = timing.us, timing.spread
    row.gbs, row.tflops = call_bytes / timing.us / 1e3, flops / timing.us / 1e6 or None
    if run.copy_gbs:
        row.copy_percent = 100 * row.gbs / run.copy_gbs
    if run.matmul_tflops and row.tflops:
        row.matmul_percent = 100 * row.tflops / run.matmul_tflops
    for name, rival in rivals.items():
        try:
            row.peers[name] = run.device.time([lambda stream, r=rival, one=one: r(one) for one in sets]).us
        except Exception as error:  # a rival may fail in any way; our own row still counts
            row.notes.append(f"{name} could not be timed: {type(error).__name__}: {error}")
    return row


def once(run: Run, source: Path, arrays: Arrays, plan: Callable[[Buffers], list[Launch]]) -> Buffers:
    """Runs the launches once on fresh copies of the arrays."""
    buffers = run.device.place(arrays)
    run.device.module(source)(plan(buffers), 0)
    run.device.synchronize()
    return buffers


def checked_and_timed(
    run: Run, section: str, cases: Iterable[KernelCase], rivals: Mapping[str, Peer] | None = None
) -> Iterator[Row]:
    """A row for each case of an op's folder. Its first result's error, and the worst of the others'."""
    for case in cases:
        given = case.given(run.seed)
        arrays, row = given | case.outputs(), Row(section, case.name)

        def plan(buffers: Buffers, case: KernelCase = case) -> list[Launch]:
            return case.launches(buffers.at)

        errors = case.errors(given, once(run, case.source, arrays, plan).read)
        row.passed = case.passed(errors)
        row.error, *others = errors.values()
        row.state_error = max(others, default=None)
        yield measure(run, row, case.source, arrays, plan, case.moved(arrays), 0, rivals or {})
