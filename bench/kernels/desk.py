"""`python -m bench.kernels.desk`: what a decoded token should take, of the 27B in packed int4 or block FP8, or of the
35B-A3B in block FP8.

A model of events: a launch's blocks are placed as a GPU places them, each warp keeps two stages of its ring on their
way, one queue stands for the memory, instructions take the schedulers' slots. Instruction counts are of the SASS (nvcc
13.0); what else a token launches takes a fixed time each. README.md says what the numbers are worth.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deltart.planner.devices import DEVICES
from deltart.planner.predict import FITTED
from deltart.plugins.fp8_linear import launch as fp8
from deltart.plugins.fp8_linear.inputs import Shape as Fp8Shape
from deltart.plugins.int4_linear import launch as int4
from deltart.plugins.int4_linear.inputs import Shape as Int4Shape
from deltart.plugins.launch import Launch
from deltart.plugins.moe_experts import launch as experts
from deltart.plugins.moe_experts.inputs import Shape as ExpertsShape

VOCABULARY = 248320
SETUP, END = 500.0, 400.0  # cycles of a block before its first load and behind its last product
DRIVER = 1024  # bytes of a block's shared memory
PLAIN_STEP = 0.45e-6  # seconds of 2 KiB of a plain weight: one load on its way at a time
NORM = 3.3e-6  # of an H200's timeline (bench/results); no launch: the last block before it does it
GAP = 0.8e-6  # from the end of a launch to the next one's begin, in a captured graph


@dataclass(frozen=True)
class Gpu:
    """What the planner's row does not say: multiprocessors, Hz, shared bytes of one, seconds of a read."""

    multiprocessors: int
    clock: float
    shared: int
    latency: float
    published: float | None = None  # tok/s of llama.cpp's Q4 of the 27B


GPUS = {
    "rtx-4090": Gpu(128, 2.52e9, 100 << 10, 0.60e-6, 44.7),
    "rtx-5090": Gpu(170, 2.41e9, 100 << 10, 0.75e-6, 76.5),
    "rtx-pro-6000": Gpu(188, 2.40e9, 100 << 10, 0.75e-6),
    "h100": Gpu(132, 1.755e9, 228 << 10, 0.65e-6),
    "h200": Gpu(132, 1.755e9, 228 << 10, 0.65e-6),
}


@dataclass(frozen=True)
class Format:
    """How a packed weight is multiplied.

    Args:
        block: values of K of a stage, 16 rows each; `ahead`: stages on their way while one is multiplied.
        slots: of a scheduler, for a stage of a warp: two for each of its integer instructions, or one for each of all.
        chain: cycles from a stage's arrival to its end, where nobody waits.
        warps: that a multiprocessor's registers have room for.
        value: bytes of a value, its scales besides.
        scales: bytes of a scale, of which a group of values has one.
    """

    block: int
    ahead: int
    slots: float
    chain: float
    warps: int
    value: float
    scales: float
    split: Callable[[int, int, int], fp8.Split | int4.Split]  # of n, k and weights


FORMATS = {
    "int4": Format(256, 2, 406, 900, 16, 0.5, 2, lambda n, k, weights: int4.split(Int4Shape(n=n, k=k), weights)),
    "fp8": Format(128, 3, 210, 600, 24, 1.0, 0, lambda n, k, weights: fp8.split(Fp8Shape(n=n, k=k), weights)),
}


@dataclass(frozen=True)
class Linear:
    """A launch: rows of its packed weights and, where it has some, of plain ones, how often a token takes it.

    bytes_each: of a value, where the weight isn't packed as the others are.
    """

    name: str
    calls: int
    n: int
    k: int
    weights: int = 1
    plain: int = 0
    bytes_each: float = 0.0

    def nbytes(self, group: int, form: Format = FORMATS["int4"]) -> float:
        """Read by a call."""
        if self.bytes_each:
            return self.bytes_each * self.n * self.k
        return self.weights * self.n * self.k * (form.value + form.scales / group) + 2.0 * self.plain * self.k


HEADS = {"int4": 0.0, "fp8": 1 + 2 / 128, "bf16": 2.0}  # bytes of a value, 0 for what the group says


@dataclass(frozen=True)
class Routed:
    """A launch over the chosen experts of a token, all of different ones: its blocks, their warps and shared bytes, and
    stages of a warp, of 16 rows and 128 of K each."""

    name: str
    calls: int
    blocks: int
    warps: int
    shared: int
    stages: int

    def nbytes(self, group: int, form: Format) -> float:
        """Read by a call."""
        return float(self.blocks * self.warps * self.stages * experts.ROWS * form.block)


@dataclass(frozen=True)
class Model:
    """What a token of a model launches.

    Args:
        launches: that read weights, the head last.
        norms: in the last blocks of linears and experts.
        others: launches of a kind and seconds of each, of an H200's timelines (bench/results).
        state_bytes: of the delta rule, read and written.
    """

    launches: Sequence[Linear | Routed]
    norms: int
    others: Sequence[tuple[int, float]]
    state_bytes: float


def dense(hidden: int = 5120, width: int = 17408, delta_net: int = 48, attention: int = 16) -> Model:
    """The 27B."""
    layers = delta_net + attention
    return Model(
        (
            Linear("DeltaNet projections", delta_net, 16384, hidden, plain=96),
            Linear("attention projections", attention, 14336, hidden),
            Linear("out, o", layers, hidden, 6144),
            Linear("gate, up", layers, width, hidden, weights=2),
            Linear("down", layers, hidden, width),
            Linear("head", 1, VOCABULARY, hidden),
        ),
        norms=2 * layers,
        others=((delta_net, 12e-6), (attention, 9e-6), (4, 2.2e-6)),
        state_bytes=delta_net * 2 * 48 * 128 * 128 * 4.0,
    )


def sparse(hidden: int = 2048, delta_net: int = 30, attention: int = 10) -> Model:
    """The 35B-A3B, whose router and choice of experts are launches of their own."""
    layers, shape = delta_net + attention, ExpertsShape(hidden=hidden)
    *_, gate_up, down = experts.experts(shape, defaultdict(int))

    def routed(name: str, launch: Launch, k: int, parts: int) -> Routed:
        """By a launch whose warps take K, or `parts` of it."""
        warps = launch.block // 32
        return Routed(name, layers, math.prod(launch.grid), warps, launch.shared_bytes, math.ceil(k / 128 / parts))

    return Model(
        (
            Linear("DeltaNet projections", delta_net, 12288, hidden, plain=64),
            Linear("attention projections", attention, 9216, hidden),
            Linear("out, o", layers, hidden, 4096),
            routed("experts' gate, up", gate_up, hidden, experts.GATE_UP_WARPS),
            routed("experts' down", down, shape.width, 1),
            Linear("head", 1, VOCABULARY, hidden),
        ),
        norms=2 * layers,
        others=((delta_net, 10.5e-6), (attention, 9e-6), (layers, 5.5e-6), (layers, 6.3e-6), (attention + 4, 2.2e-6)),
        state_bytes=delta_net * 2 * 32 * 128 * 128 * 4.0,
    )


MODELS = {"27b": dense, "35b": sparse}


def seconds(gpu: Gpu, bandwidth: float, linear: Linear | Routed, group: int, form: Format = FORMATS["int4"]) -> float:
    """Of one call, from its first block's begin to its last one's end."""
    if isinstance(linear, Routed):
        per_gpu = min(gpu.shared // (linear.shared + DRIVER), form.warps // linear.warps) * gpu.multiprocessors
        blocks = [(linear.warps, linear.stages)] * linear.blocks
        return _events(gpu, bandwidth, blocks, per_gpu, experts.ROWS * form.block, form)
    if linear.bytes_each:  # many blocks with little to do beside their loads
        return linear.nbytes(group) / bandwidth + gpu.latency + (SETUP + END) / gpu.clock
    by, rows = form.split(linear.n + linear.plain, linear.k, linear.weights), int4.ROWS
    row_groups = int4.MAX_WARPS // by.parts if linear.plain and form.block == int4.BLOCK else by.row_groups
    warps = row_groups * by.parts * by.weights
    shared = by.shared_bytes // by.warps * warps + DRIVER
    per_gpu = min(gpu.shared // shared, form.warps // warps) * gpu.multiprocessors
    stages = math.ceil(linear.k / form.block / by.parts)
    stage_bytes = rows * form.block * (form.value + form.scales / group)
    blocks = math.ceil(linear.n / (rows * row_groups))
    packed = _events(gpu, bandwidth, [(warps, stages)] * blocks, per_gpu, stage_bytes, form)
    plain = math.ceil(linear.k / 64 / warps) * PLAIN_STEP if linear.plain else 0.0  # in blocks that start first
    return max(packed, plain)


def _events(
    gpu: Gpu, bandwidth: float, blocks: Sequence[tuple[int, int]], per_gpu: int, stage: float, form: Format
) -> float:
    """Seconds until the last of `blocks`, (warps, stages of each), is done."""
    cycle, ahead = 1 / gpu.clock, form.ahead
    memory, end, order = 0.0, 0.0, 0
    schedulers = [0.0] * (4 * gpu.multiprocessors)
    placed = [0] * gpu.multiprocessors  # warps, so far
    queue: list[tuple[float, int, int, int, int, list[float]]] = []  # time, order, block, left, scheduler, arrivals
    live: dict[int, int] = {}
    waiting = iter(range(len(blocks)))

    def fetch(at: float) -> float:
        nonlocal memory
        memory = max(memory, at) + stage / bandwidth
        return memory + gpu.latency

    def start(at: float, place: int) -> None:
        nonlocal order
        block = next(waiting, None)
        if block is None:
            return
        warps, stages = blocks[block]
        live[block] = warps
        home = place % gpu.multiprocessors
        for _ in range(warps):
            arrivals = [fetch(at + SETUP * cycle) for _ in range(min(ahead, stages))]
            scheduler = 4 * home + placed[home] % 4
            placed[home] += 1
            order += 1
            heapq.heappush(queue, (arrivals[0], order, block, stages, scheduler, arrivals))

    for place in range(per_gpu):
        start(0.0, place)
    while queue:
        at, _, block, left, scheduler, arrivals = heapq.heappop(queue)
        stages = blocks[block][1]
        if stages - left + ahead < stages:
            arrivals.append(fetch(at))
        issued = max(at, schedulers[scheduler]) + form.slots * cycle
        schedulers[scheduler] = issued
        done = max(issued, at + form.chain * cycle)
        if left > 1:
            order += 1
            ready = max(done, arrivals[stages - left + 1])
            heapq.heappush(queue, (ready, order, block, left - 1, scheduler, arrivals))
            continue
        live[block] -= 1
        if not live[block]:
            end = max(end, done + END * cycle)
            start(done + END * cycle, scheduler // 4)
    return end


def main() -> None:
    """Print a table for every GPU, and one of the tokens."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels.desk", description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="27b", help="default 27b")
    parser.add_argument("--format", choices=list(FORMATS), default="int4", help="of the weights (default int4)")
    parser.add_argument("--group", type=int, choices=int4.GROUPS, default=128, help="of int4 (default 128)")
    parser.add_argument(
        "--slots", type=float, help="a scheduler's slots for a stage, in place of what the kernels take"
    )
    parser.add_argument("--device", nargs="+", choices=list(GPUS), default=list(GPUS))
    parser.add_argument("--lm-head", choices=list(HEADS), help="how it is held (default int4; bf16 beside FP8)")
    arguments = parser.parse_args()
    form = FORMATS[arguments.format]
    form = replace(form, slots=arguments.slots or form.slots)
    head = arguments.lm_head or ("int4" if arguments.format == "int4" else "bf16")
    if arguments.model == "35b" and arguments.format != "fp8":
        parser.error("the 35B's launches are known in FP8 alone: --format fp8")
    model = MODELS[arguments.model]()
    *packed, last = model.launches
    linears = [*packed, replace(last, bytes_each=HEADS[head])]
    print("| GPU | " + " | ".join(one.name for one in linears) + " | others | ms | tok/s | bound | Q4 elsewhere |")
    print("|---" * (len(linears) + 6) + "|")
    for name in arguments.device:
        gpu, peak = GPUS[name], DEVICES[name].bandwidth
        took = [seconds(gpu, peak * FITTED.bandwidth, one, arguments.group, form) for one in linears]
        launches = sum(one.calls for one in linears) + sum(count for count, _ in model.others)
        moved = sum(one.calls * one.nbytes(arguments.group, form) for one in linears) + model.state_bytes
        others = model.norms * NORM + sum(count * each for count, each in model.others) + launches * GAP
        total = sum(one.calls * each for one, each in zip(linears, took, strict=True)) + others
        cells = [
            f"{1e6 * each:.1f} us ({one.nbytes(arguments.group, form) / peak / each:.0%})"
            for one, each in zip(linears, took, strict=True)
        ]
        elsewhere = f"{gpu.published:.1f}" if gpu.published and arguments.format == "int4" else "-"
        print(
            f"| {name} | {' | '.join(cells)} | {1e3 * others:.2f} ms | {1e3 * total:.2f} | {1 / total:.1f} | "
            f"{peak / moved:.1f} | {elsewhere} |"
        )


if __name__ == "__main__":
    main()
