"""What is measured: each section checks its cases against float64 on fresh inputs, then times them and the peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bench.kernels import peers
from bench.kernels.device import Buffers, Cuda, Device
from bench.kernels.table import Row
from deltart.plugins import causal_conv1d, gated_delta_rule
from deltart.plugins.causal_conv1d import inputs as conv_inputs
from deltart.plugins.causal_conv1d import launch as conv_launch
from deltart.plugins.causal_conv1d import reference as conv_reference
from deltart.plugins.gated_delta_rule import inputs, launch, reference
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.launch import Launch
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from numpy.typing import NDArray

GDR = Path(gated_delta_rule.__file__).parent
CONV = Path(causal_conv1d.__file__).parent
LONG = 256  # tokens from which only one key head's outputs are compared: the reference takes every token in turn

Arrays = dict[str, NDArray]
Plan = Callable[[Buffers], list[Launch]]


@dataclass
class Run:
    """What every section gets: the device, the seed of this run's inputs, small sizes, no timing, and the ceilings
    (GB/s of a copy, TFLOP/s of a matrix product) once they are measured."""

    device: Device
    seed: int
    small: bool = False
    timed: bool = True
    copy_gbs: float = 0.0
    matmul_tflops: float = 0.0

    def shape(self, **sizes: int) -> Shape:
        """A 27B shape, or a narrow one of the same head size."""
        return Shape(**sizes, **({"key_heads": 1, "value_heads": 3} if self.small else {}))


def measure(
    run: Run,
    row: Row,
    source: Path,
    place: Callable[[], Buffers],
    plan: Plan,
    call_bytes: int,
    flops: int,
    rivals: dict[str, peers.Peer],
) -> Row:
    """Fills the timing columns of `row`: our launches and the rivals', over rotated copies of the same buffers."""
    if not run.timed:
        return row
    kernels = run.device.module(source)
    sets = [place() for _ in range(run.device.copies(call_bytes))]
    calls = [(lambda stream, launches=plan(one): kernels(launches, stream)) for one in sets]
    timing = run.device.time(calls)
    row.us, row.spread_us = timing.us, timing.spread
    row.gbs, row.tflops = call_bytes / timing.us / 1e3, flops / timing.us / 1e6 or None
    if run.copy_gbs:
        row.copy_percent = 100 * row.gbs / run.copy_gbs
    if run.matmul_tflops and row.tflops:
        row.matmul_percent = 100 * row.tflops / run.matmul_tflops
    if isinstance(run.device, Cuda):
        for name, rival in rivals.items():
            try:
                row.peers[name] = run.device.time([lambda stream, one=one: rival(one) for one in sets]).us
            except Exception as error:  # a rival's failure is a result, not ours to repair
                row.notes.append(f"{name} could not be timed: {type(error).__name__}: {error}")
    return row


def one_group(given: Arrays, shape: Shape, group: int) -> tuple[Arrays, Shape, slice]:
    """The inputs of one key head and its value heads; the slice selects those value heads."""
    ratio = shape.value_heads // shape.key_heads
    heads = slice(group * ratio, (group + 1) * ratio)
    keys, dim = shape.key_heads * shape.key_dim, shape.key_dim
    q, k, v = np.split(given["qkv"], [keys, 2 * keys], -1)
    q, k = (part[..., group * dim : (group + 1) * dim] for part in (q, k))
    v = v[..., heads.start * shape.value_dim : heads.stop * shape.value_dim]
    part = {"qkv": np.concatenate([q, k, v], -1), "S": given["S"][:, heads], "n_tokens": given["n_tokens"]}
    part |= {name: given[name][..., heads] for name in ("a", "b", "A_log", "dt_bias")}
    return part, replace(shape, key_heads=1, value_heads=ratio), heads


def check(run: Run, row: Row, shape: Shape, source: Path, given: Arrays, plan: Plan, extra: Arrays) -> None:
    """Runs the kernels once on poisoned outputs and fills the error columns."""
    buffers = run.device.place(given | inputs.outputs(shape) | extra)
    run.device.module(source)(plan(buffers), 0)
    run.device.synchronize()
    part, part_shape, heads = one_group(given, shape, run.seed % shape.key_heads)
    if shape.tokens < LONG:
        part, part_shape, heads = given, shape, slice(None)
    o, state = reference.from_inputs(part, part_shape.key_heads, part_shape.key_dim)
    live = np.arange(shape.tokens)[None] < given["n_tokens"][:, None]
    found = buffers.read("o")
    row.error = relative_rms(found[:, :, heads][live], o[live])
    row.state_error = relative_rms(buffers.read("S")[:, heads], state)
    row.passed = (
        row.error <= TOLERANCE[shape.dtype]
        and row.state_error <= TOLERANCE["state"]
        and bool(np.isfinite(found.astype(np.float32)).all())
    )


def state_bytes(shape: Shape) -> int:
    """S, read and written once."""
    return 8 * shape.slots * shape.value_heads * shape.key_dim * shape.value_dim


def token_bytes(shape: Shape) -> int:
    """qkv, a, b and o, each once."""
    return 2 * shape.slots * shape.tokens * (shape.width + 2 * shape.value_heads + shape.value_heads * shape.value_dim)


def decode(run: Run) -> Iterator[Row]:
    """One token per slot."""
    for slots in (1, 2) if run.small else (1, 4, 16, 64):
        shape = run.shape(slots=slots)
        row = Row("decode", f"B={slots} T=1")
        given = inputs.make(shape, run.seed)
        check(run, row, shape, GDR / "decode.cu", given, lambda b, s=shape: [launch.decode(s, b.at)], {})
        arrays = given | inputs.outputs(shape)
        rivals = {"torch": peers.torch_recurrent(shape)} if isinstance(run.device, Cuda) else {}
        if isinstance(run.device, Cuda) and peers.available():
            rivals["fla"] = peers.fla_recurrent(shape)
        for warps in (1, 2, 4, 8) if run.timed and not run.small else (0,):
            case = replace(row, case=row.case + (f" warps={warps}" if warps else ""), peers={}, notes=[])
            chosen = warps in (0, launch.decode_warps(shape))
            yield measure(
                run,
                case,
                GDR / "decode.cu",
                lambda a=arrays: run.device.place(a),
                lambda b, s=shape, w=warps: [launch.decode(s, b.at, w)],
                state_bytes(shape) + token_bytes(shape),
                0,
                rivals if chosen else {},
            )


def verify_arrays(shape: Shape, given: Arrays, n_commit: NDArray) -> Arrays:
    """Everything one verify call reads or writes; two capsules, the old one poisoned until a first step fills it."""
    old = inputs.capsule(shape, shape.tokens)
    new = {f"{name}_out": array for name, array in inputs.capsule(shape, shape.tokens).items()}
    return given | inputs.outputs(shape) | old | new | {"n_commit": n_commit}


def check_verify(run: Run, row: Row, shape: Shape) -> Arrays:
    """Two steps with a random acceptance between them, against a state that is really rolled back. Returns the
    arrays of the second step, capsule filled."""
    rng, kernels = np.random.default_rng(run.seed), run.device.module(GDR / "decode.cu")
    first, second = inputs.make(shape, run.seed), inputs.make(shape, run.seed + 1)
    buffers = run.device.place(verify_arrays(shape, first, np.zeros(shape.slots, np.int32)))
    kernels([launch.verify(shape, shape.tokens, buffers.at)], 0)
    run.device.synchronize()
    n_commit = rng.integers(0, shape.tokens + 1, shape.slots).astype(np.int32)
    arrays = verify_arrays(shape, second | {"S": first["S"]}, n_commit)
    arrays |= {name: buffers.read(f"{name}_out").copy() for name in ("k", "u", "g")}
    buffers = run.device.place(arrays)
    kernels([launch.verify(shape, shape.tokens, buffers.at)], 0)
    run.device.synchronize()
    drafts = reference.tokens(first, shape.key_heads, shape.key_dim)
    # The second call's gates use its own A_log and dt_bias, the first call's its own.
    state = reference.recur(reference.accept(drafts, n_commit), first["S"])[2]
    o = reference.recur(reference.tokens(second, shape.key_heads, shape.key_dim), state)[0]
    row.error, row.state_error = relative_rms(buffers.read("o"), o), relative_rms(buffers.read("S"), state)
    row.passed = row.error <= TOLERANCE[shape.dtype] and row.state_error <= TOLERANCE["state"]
    return arrays


def verify(run: Run) -> Iterator[Row]:
    """Draft tokens after the deferred commit of all but one of the last ones; T = 1 for the ratio."""
    for slots in (2,) if run.small else (1, 16, 64):
        for tokens in (1, 2, 4, 8):
            shape = run.shape(slots=slots, tokens=tokens)
            row = Row("verify", f"B={slots} T={tokens}")
            arrays = check_verify(run, row, shape)
            arrays["n_commit"] = np.full(slots, max(1, tokens - 1), np.int32)
            capsule = sum(2 * arrays[name].nbytes for name in ("k", "u", "g"))
            yield measure(
                run,
                row,
                GDR / "decode.cu",
                lambda a=arrays: run.device.place(a),
                lambda b, s=shape: [launch.verify(s, s.tokens, b.at)],
                state_bytes(shape) + token_bytes(shape) + capsule,
                0,
                {},
            )


def prefill_flops(shape: Shape, chunk: int = 64) -> int:
    """Multiply-adds of the chunked form, twice: three products with S, and four causal ones within the chunk."""
    per_token = 6 * shape.key_dim * shape.value_dim + 2 * chunk * (shape.key_dim + shape.value_dim)
    return shape.slots * shape.tokens * shape.value_heads * per_token


def prefill(run: Run) -> Iterator[Row]:
    """Long prompts; ragged rows; both chunk sizes where both fit."""
    cases = [(1, 150), (3, 70)] if run.small else [(1, 512), (1, 2048), (4, 2048), (1, 8192), (1, 32768)]
    for slots, tokens in cases:
        shape = run.shape(slots=slots, tokens=tokens)
        ragged = inputs.ragged(np.random.default_rng(run.seed), slots, tokens) if slots == 3 else None
        given = inputs.make(shape, run.seed, 0.99, ragged)
        for chunk in launch.CHUNKS[shape.dtype]:
            plan = launch.chunking(shape, run.device.shared_limit, chunk)
            row = Row("prefill", f"B={slots} T={tokens} C={chunk}")
            extra = {"workspace": np.full(plan.workspace_bytes(), 0xFF, np.uint8)}
            launches = lambda b, p=plan: launch.prefill(p, b.at)  # noqa: E731
            check(run, row, shape, GDR / "prefill.cu", given, launches, extra)
            arrays = given | inputs.outputs(shape) | extra
            rivals = {}
            if isinstance(run.device, Cuda) and peers.available() and chunk == launch.CHUNKS[shape.dtype][0]:
                rivals["fla"] = peers.fla_chunk(shape)
            row.notes.append(f"workspace {plan.workspace_bytes() / 2**20:.0f} MiB")
            yield measure(
                run,
                row,
                GDR / "prefill.cu",
                lambda a=arrays: run.device.place(a),
                launches,
                state_bytes(shape) + token_bytes(shape),
                prefill_flops(shape),
                rivals,
            )


def conv(run: Run) -> Iterator[Row]:
    """Causal conv1d, decode and prefill."""
    cases = [(2, 1), (2, 65)] if run.small else [(1, 1), (64, 1), (64, 4), (1, 2048), (1, 32768)]
    for slots, tokens in cases:
        shape = conv_inputs.Shape(slots, tokens, 256 if run.small else 10240)
        row, given = (
            Row("conv", f"B={slots} T={tokens}"),
            conv_inputs.make(conv_inputs.Shape(slots, tokens, 256 if run.small else 10240), run.seed),
        )
        arrays = given | conv_inputs.outputs(shape)
        buffers = run.device.place(arrays)
        plan = lambda b, s=shape: [conv_launch.forward(s, b.at)]  # noqa: E731
        run.device.module(CONV / "kernel.cu")(plan(buffers), 0)
        run.device.synchronize()
        y, state = conv_reference.from_inputs(given)
        row.error = relative_rms(buffers.read("y"), y)
        row.state_error = relative_rms(buffers.read("state"), state)
        row.passed = row.error <= TOLERANCE[shape.dtype] and row.state_error == 0
        rivals = {"torch": peers.torch_conv} if isinstance(run.device, Cuda) else {}
        if isinstance(run.device, Cuda) and peers.available():
            rivals["fla"] = peers.fla_conv
        moved = 2 * given["x"].nbytes + 2 * given["state"].nbytes + given["weight"].nbytes
        yield measure(run, row, CONV / "kernel.cu", lambda a=arrays: run.device.place(a), plan, moved, 0, rivals)


def ceilings(run: Run) -> Iterator[Row]:
    """A device-to-device copy and a bf16 matrix product: what the percentages refer to."""
    if not isinstance(run.device, Cuda):
        start = time.perf_counter()
        np.ones(1 << 24, np.float32).copy()
        yield Row("ceilings", "copy", gbs=2 * 4 * (1 << 24) / (time.perf_counter() - start) / 1e9)
        return
    torch = run.device.torch
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copy = run.device.time([lambda stream: target.copy_(source)])
    yield Row("ceilings", "copy 1 GiB", us=copy.us, spread_us=copy.spread, gbs=2 * source.nbytes / copy.us / 1e3)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = run.device.time([lambda stream: torch.mm(a, b)])
    yield Row("ceilings", "bf16 8192^3", us=product.us, spread_us=product.spread, tflops=2 * 8192**3 / product.us / 1e6)


SECTIONS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "ceilings": ceilings,
    "decode": decode,
    "verify": verify,
    "prefill": prefill,
    "conv": conv,
}
