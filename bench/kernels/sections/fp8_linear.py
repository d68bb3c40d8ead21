"""The section of the block-FP8 linear: every 27B weight, decode and prefill, activations quantized or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from bench.kernels import peers_linear as peers
from bench.kernels.device import Buffers
from bench.kernels.run import Run, measure, once
from bench.kernels.table import Row
from deltart.plugins import fp8_linear
from deltart.plugins.cases import Arrays
from deltart.plugins.fp8_linear import inputs, launch, prefill
from deltart.plugins.fp8_linear.reference import BLOCK, quantize, scaled
from deltart.plugins.launch import Launch
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(fp8_linear.__file__).parent
TILES = {"w8a16": prefill.W8A16, "w8a8": prefill.W8A8, "w8a8 wgmma": prefill.W8A8_WGMMA}
PRODUCT = " product"  # after a kind's name: its activations were quantized beforehand, as the rivals' were
PROMPT, SHORT_PROMPT, DECODE = (
    4096,
    256,
    64,
)  # tokens: a long prompt, one that may split K, and where the tile kernels begin
SAMPLED_ROWS = 256  # of a weight, compared with float64
SAME_ROUNDING = 1e-3  # against float64 rounded to bf16


@dataclass(frozen=True)
class LinearCase:
    """One shape and kernel: "decode", "gate_up", or one of TILES, PRODUCT behind it for the product alone."""

    shape: inputs.Shape
    kind: str
    arrays: Arrays

    @property
    def kernel(self) -> prefill.TileKernel | None:
        return TILES.get(self.kind.removesuffix(PRODUCT))

    @property
    def quantized(self) -> bool:
        return self.kernel is not None and self.kernel is not prefill.W8A16

    @property
    def source(self) -> Path:
        return FOLDER / (self.kernel.source if self.kernel else "decode.cu")

    def plan(self, run: Run, buffers: Buffers) -> list[Launch]:
        if self.kernel is None:
            one = launch.decode if self.kind == "decode" else launch.decode_gate_up
            return [one(self.shape, buffers.at)]
        whole = self.quantized and not self.kind.endswith(PRODUCT)
        plan = prefill.prefill_w8a8 if whole else prefill.prefill
        return plan(self.shape, self.kernel, buffers.at, run.device.multiprocessors)

    def expected(self, rows: np.ndarray) -> np.ndarray:
        """Float64 y [M, len(rows)] of some rows of the weight."""
        x = self.arrays["x"].astype(np.float32).reshape(self.shape.rows, -1)
        x = scaled(*quantize(x)) if self.quantized else x.astype(np.float64)
        y = x @ self.some_rows("", rows).T
        if self.kind == "gate_up":
            y = y / (1 + np.exp(-y)) * (x @ self.some_rows("up_", rows).T)
        return y

    def some_rows(self, prefix: str, rows: np.ndarray) -> np.ndarray:
        weight = self.arrays[f"{prefix}weight"][rows].astype(np.float64)
        scale = self.arrays[f"{prefix}weight_scale_inv"].astype(np.float64)[rows // BLOCK]
        return weight * np.repeat(scale, BLOCK, 1)[:, : self.shape.k]

    def moved(self) -> int:
        """The least bytes: every input and y once, no scratch."""
        scratch = ("codes", "x_scale", "partial")
        return sum(array.nbytes for name, array in self.arrays.items() if name not in scratch)

    def flops(self) -> int:
        return 2 * self.shape.rows * self.shape.n * self.shape.k * (2 if self.kind == "gate_up" else 1)


def check(run: Run, row: Row, case: LinearCase, rivals: dict[str, peers.Peer]) -> None:
    """Compares some rows of the weight with float64, a second call with the first, to the bit, and notes the rivals'
    errors against the same reference."""
    shape = case.shape
    found, again = (once(run, case.source, case.arrays, lambda b: case.plan(run, b)).read("y") for _ in range(2))
    rows = np.random.default_rng(run.seed).choice(shape.n, min(shape.n, SAMPLED_ROWS), replace=False)
    expected = case.expected(rows)
    rounded = expected.astype(np.float32).astype(ml_dtypes.bfloat16)
    y = found.reshape(shape.rows, -1)[:, rows]
    row.error, same = relative_rms(y, expected), relative_rms(y, rounded)
    row.notes.append(f"against the reference rounded as y is: {same:.1e}")
    row.passed = row.error <= TOLERANCE[shape.dtype] and found.tobytes() == again.tobytes()
    row.passed &= not case.quantized or same <= SAME_ROUNDING
    for name, rival in rivals.items():
        try:
            theirs = rival(run.device.place(case.arrays)).float().cpu().numpy().reshape(shape.rows, -1)[:, rows]
            row.notes.append(f"{name} error {relative_rms(theirs, expected):.1e}")
        except Exception as error:  # a rival may fail in any way
            row.notes.append(f"{name} failed: {type(error).__name__}: {error}")


def rivals(run: Run, case: LinearCase) -> dict[str, peers.Peer]:
    """Who computes the same: cuBLAS on bf16 weights always, with quantized activations cuBLASLt's block scales."""
    if not run.rivals or case.kind == "gate_up":
        return {}
    found = {"torch bf16": peers.torch_linear()}
    if case.quantized:
        found["scaled_mm"] = peers.scaled_mm()
    if peers.has_triton() and (case.quantized or case.shape.rows == 1):
        found["triton"] = peers.triton_gemm() if case.quantized else peers.triton_gemv()
    return found


def kinds(run: Run, n: int) -> Iterator[tuple[int, str]]:
    """(tokens, kind): 1, 8 and 64 tokens; a prompt that splits K where the weight is narrow; a long prompt."""
    yield from ((1, "decode"), (8, "decode"), (DECODE, "decode"), (DECODE, "w8a16"))
    if run.small or n == inputs.SHAPES_27B["gate_proj"][0]:
        yield from ((1, "gate_up"), (8, "gate_up"))
    quantized = ["w8a8", "w8a8 wgmma"] if run.device.capability == prefill.HOPPER else ["w8a8"]
    best = quantized[-1]
    if run.small or n <= inputs.SHAPES_27B["down_proj"][0]:
        yield from ((SHORT_PROMPT, kind) for kind in ("w8a16", best))
    yield from ((PROMPT, kind) for kind in ("w8a16", *quantized, best + PRODUCT))


def cases(run: Run, n: int, k: int) -> Iterator[LinearCase]:
    """Every kind on one weight, the first tokens of one input."""
    sizes = {PROMPT: 300, SHORT_PROMPT: 70} if run.small else {}
    whole = inputs.make(inputs.Shape(tokens=sizes.get(PROMPT, PROMPT), n=n, k=k), run.seed)
    other = inputs.make(inputs.Shape(n=n, k=k), run.seed + 1)
    for tokens, kind in kinds(run, n):
        tokens = sizes.get(tokens, tokens)
        shape = inputs.Shape(tokens=tokens, n=n, k=k)
        arrays = whole | {"x": whole["x"][:, :tokens].copy()} | inputs.outputs(shape)
        case = LinearCase(shape, kind, arrays)
        if case.kernel:
            scratch = prefill.workspace(shape, case.kernel)
            arrays |= {name: np.full(size, 0xFF, np.uint8) for name, size in scratch.items()}
        if kind.endswith(PRODUCT):
            arrays |= quantized_beforehand(run, case)
        if kind == "gate_up":
            arrays |= {f"up_{name}": other[name] for name in ("weight", "weight_scale_inv")}
        yield LinearCase(shape, kind, arrays)


def quantized_beforehand(run: Run, case: LinearCase) -> Arrays:
    """The codes and scales that the quantizer makes of the case's activations."""
    whole = LinearCase(case.shape, case.kind.removesuffix(PRODUCT), case.arrays)
    buffers = once(run, case.source, case.arrays, lambda b: whole.plan(run, b)[:1])
    return {name: buffers.read(name).copy() for name in ("codes", "x_scale")}


def tiled(shape: inputs.Shape, x: np.ndarray) -> Arrays:
    """The codes and scales of x [M, K] in f32 by the reference, padded and laid out as the quantizer leaves them."""
    blocks, tokens = -(-shape.k // BLOCK), -(-shape.rows // prefill.PAIR) * prefill.PAIR
    codes, scale = quantize(np.pad(x, ((0, tokens - shape.rows), (0, blocks * BLOCK - shape.k))))
    pieces = codes.view(np.uint8).reshape(-1, prefill.TILE, blocks, 8, 16).swapaxes(1, 2)
    row, piece = np.ogrid[: prefill.TILE, :8]
    swizzled = np.empty_like(pieces)
    swizzled[:, :, row, piece ^ row % 8] = pieces
    return {"codes": swizzled.reshape(-1), "x_scale": np.ascontiguousarray(scale.T).view(np.uint8).reshape(-1)}


def rounding(run: Run, name: str, case: LinearCase) -> Row:
    """The quantizer on its own: its bits are the reference's, which shows the device's conversion to E4M3."""
    row, right = Row("linear", f"{name} M={case.shape.rows} quantize"), tiled(case.shape, activations(case))

    def plan(buffers: Buffers) -> list[Launch]:
        return case.plan(run, buffers)[:1]

    buffers = once(run, case.source, case.arrays, plan)
    wrong = sum(int((buffers.read(array).view(np.uint8).reshape(-1) != right[array]).sum()) for array in right)
    row.passed = not wrong
    row.notes.append(f"{wrong} bytes of codes and scales differ")
    moved = case.arrays["x"].nbytes + sum(array.nbytes for array in right.values())
    return measure(run, row, case.source, case.arrays, plan, moved, 0, {})


def activations(case: LinearCase) -> np.ndarray:
    """x [M, K] of a case, in f32."""
    wide: np.ndarray = case.arrays["x"].astype(np.float32).reshape(case.shape.rows, -1)
    return wide


def linear(run: Run) -> Iterator[Row]:
    """Every 27B shape. The percentage of FP8 is of the plain FP8 product of the ceilings."""
    for name, (n, k) in ({"small": (136, 2064)} if run.small else inputs.SHAPES_27B).items():
        for case in cases(run, n, k):
            row = Row("linear", f"{name} M={case.shape.rows} {case.kind}")
            if case.quantized and case.shape.rows > SHORT_PROMPT and case.kind in TILES:
                yield rounding(run, name, case)
            against = rivals(run, case)
            check(run, row, case, against)
            row = measure(
                run,
                row,
                case.source,
                case.arrays,
                lambda b, c=case: c.plan(run, b),
                case.moved(),
                case.flops(),
                against,
            )
            if case.quantized and run.fp8_tflops and row.tflops:
                row.fp8_percent = 100 * row.tflops / run.fp8_tflops
            if case.kernel:
                row.notes.append(f"{prefill.splits(case.shape, case.kernel)} parts of K")
            yield row
