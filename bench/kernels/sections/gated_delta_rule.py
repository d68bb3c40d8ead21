"""The sections of the gated delta rule: decode, speculation and prefill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.kernels import peers
from bench.kernels.device import Buffers
from bench.kernels.run import Plan, Run, measure
from bench.kernels.table import Row
from deltart.plugins import gated_delta_rule
from deltart.plugins.cases import Arrays
from deltart.plugins.gated_delta_rule import inputs, launch
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.launch import Launch
from deltart.plugins.tolerance import TOLERANCE, relative_rms

GDR = Path(gated_delta_rule.__file__).parent
COMPARED_BY_HEAD = 64  # tokens of all slots from which one key head's outputs are compared: the reference is slow


def shape_of(run: Run, **sizes: int) -> Shape:
    """A 27B shape, or a narrow one of the same head size."""
    return Shape(**sizes, **({"key_heads": 1, "value_heads": 3} if run.small else {}))


def one_group(given: Arrays, shape: Shape, group: int) -> tuple[Arrays, Shape, slice]:
    """The inputs of one key head and its value heads; the slice selects those value heads."""
    ratio = shape.value_heads // shape.key_heads
    heads = slice(group * ratio, (group + 1) * ratio)
    keys, dim = shape.key_heads * shape.key_dim, shape.key_dim
    q, k, v = np.split(given["qkv"], [keys, 2 * keys], -1)
    q, k = (part[..., group * dim : (group + 1) * dim] for part in (q, k))
    v = v[..., heads.start * shape.value_dim : heads.stop * shape.value_dim]
    part = {"qkv": np.concatenate([q, k, v], -1), "S": given["S"][:, heads]}
    part |= {name: given[name] for name in ("n_tokens", "n_commit")}
    part |= {name: given[name][..., heads] for name in ("a", "b", "A_log", "dt_bias")}
    return part, replace(shape, key_heads=1, value_heads=ratio), heads


@dataclass
class Expected:
    """The float64 outputs of some value heads: o [B, T, heads * Dv], the state, and which tokens count."""

    o: np.ndarray
    state: np.ndarray
    heads: slice
    live: np.ndarray

    def error(self, o: np.ndarray) -> float:
        """Relative RMS of the live outputs; o [B, T, Hv, Dv] or flat."""
        o = o.reshape(*self.live.shape, -1, self.state.shape[-1])[:, :, self.heads]
        return relative_rms(o[self.live].reshape(-1), self.o[self.live].reshape(-1))


def expect(run: Run, shape: Shape, given: Arrays) -> Expected:
    """The reference's answer for all heads, or for one key head's where that would take minutes."""
    part, part_shape, heads = given, shape, slice(None)
    if shape.slots * shape.tokens >= COMPARED_BY_HEAD:
        part, part_shape, heads = one_group(given, shape, run.seed % shape.key_heads)
    o, state = inputs.expected(part_shape, part)
    return Expected(o, state, heads, np.arange(shape.tokens)[None] < given["n_tokens"][:, None])


def check(run: Run, row: Row, shape: Shape, source: Path, arrays: Arrays, plan: Plan, expected: Expected) -> None:
    """Runs the kernels once on poisoned outputs and fills the error columns."""
    buffers = run.device.place(arrays)
    run.device.module(source)(plan(buffers), 0)
    run.device.synchronize()
    found = buffers.read("o")
    row.error = expected.error(found)
    row.state_error = relative_rms(buffers.read("S")[:, expected.heads], expected.state)
    row.passed = (
        row.error <= TOLERANCE[shape.dtype]
        and row.state_error <= TOLERANCE["state"]
        and bool(np.isfinite(found.astype(np.float32)).all())
    )


def note_errors(run: Run, row: Row, arrays: Arrays, rivals: dict[str, peers.Peer], expected: Expected) -> None:
    """Notes the rivals' errors against the same reference: a fast wrong answer is no yardstick."""
    for name, rival in rivals.items():
        try:
            found = rival(run.device.place(arrays)).float().cpu().numpy()
            row.notes.append(f"{name} error {expected.error(found):.1e}")
        except Exception as error:  # as above
            row.notes.append(f"{name} failed: {type(error).__name__}: {error}")


def state_bytes(shape: Shape) -> int:
    """S, read and written once."""
    return 8 * shape.slots * shape.value_heads * shape.key_dim * shape.value_dim


def token_bytes(shape: Shape) -> int:
    """qkv, a, b and o, each once."""
    return 2 * shape.slots * shape.tokens * (shape.width + 2 * shape.value_heads + shape.value_heads * shape.value_dim)


def decode_tilings(run: Run, shape: Shape) -> list[launch.Tiling]:
    """The chosen tiling first, then the others."""
    chosen = launch.tiling(shape)
    others = [launch.Tiling(columns, warps) for columns in (8, 16) for warps in (1, 2, 4)]
    return [chosen] + [tiles for tiles in others if tiles != chosen and run.timed and not run.small]


def decode(run: Run) -> Iterator[Row]:
    """One token per slot."""
    for slots in (1, 2) if run.small else (1, 4, 16, 64):
        shape = shape_of(run, slots=slots)
        given = inputs.make(shape, run.seed)
        arrays, expected = given | inputs.outputs(shape), expect(run, shape, given)
        rivals = {"torch": peers.torch_recurrent(shape)} if run.rivals else {}
        if run.rivals and peers.available():
            rivals["fla"] = peers.fla_recurrent(shape)
        for i, tiles in enumerate(decode_tilings(run, shape)):
            row = Row("decode", f"B={slots} T=1 {tiles.columns}x{tiles.warps}" + ("" if i else " *"))

            def plan(b: Buffers, shape: Shape = shape, tiles: launch.Tiling = tiles) -> list[Launch]:
                return [launch.decode(shape, b.at, tiles)]

            check(run, row, shape, GDR / "decode.cu", arrays, plan, expected)
            shown = {} if i else rivals
            note_errors(run, row, arrays, shown, expected)
            yield measure(run, row, GDR / "decode.cu", arrays, plan, state_bytes(shape) + token_bytes(shape), 0, shown)


def speculate(run: Run) -> Iterator[Row]:
    """Several tokens per slot, of which a random part is committed; T = 1 for the ratio."""
    for slots in (2,) if run.small else (1, 64):
        for tokens in (1, 2, 4, 8):
            shape, rng = shape_of(run, slots=slots, tokens=tokens), np.random.default_rng(run.seed)
            given = inputs.make(shape, run.seed, n_commit=rng.integers(0, tokens + 1, slots))
            row, arrays = Row("speculate", f"B={slots} T={tokens}"), given | inputs.outputs(shape)

            def plan(b: Buffers, shape: Shape = shape) -> list[Launch]:
                return [launch.decode(shape, b.at)]

            check(run, row, shape, GDR / "decode.cu", arrays, plan, expect(run, shape, given))
            moved = state_bytes(shape) + token_bytes(shape)
            yield measure(run, row, GDR / "decode.cu", arrays, plan, moved, 0, {})


def prefill_flops(shape: Shape, chunk: int = 64) -> int:
    """Multiply-adds of the chunked form, twice: three products with S, and four causal ones within the chunk."""
    per_token = 6 * shape.key_dim * shape.value_dim + 2 * chunk * (shape.key_dim + shape.value_dim)
    return shape.slots * shape.tokens * shape.value_heads * per_token


PREFILL_VARIANTS = ((64, 4, 0), (64, 8, 0), (32, 4, 0), (32, 8, 0), (64, 4, 1024), (64, 4, 8192))


def prefill(run: Run) -> Iterator[Row]:
    """Long prompts, or small ragged ones, cut up in several ways: chunk x warps / segment, `*` the default."""
    cases = [(1, 150), (3, 70)] if run.small else [(1, 512), (1, 2048), (4, 2048), (1, 8192), (1, 32768)]
    for slots, tokens in cases:
        shape = shape_of(run, slots=slots, tokens=tokens)
        ragged = inputs.ragged(np.random.default_rng(run.seed), slots, tokens) if slots == 3 else None
        given = inputs.make(shape, run.seed, 0.99, ragged)
        expected = expect(run, shape, given)
        chosen, seen = launch.chunking(shape, run.device.shared_limit), []
        for chunk, warps, segment in PREFILL_VARIANTS:
            cut = launch.chunking(shape, run.device.shared_limit, min(chunk, chosen.chunk), segment, warps)
            if cut in seen:
                continue
            seen.append(cut)
            row = Row(
                "prefill", f"B={slots} T={tokens} {cut.chunk}x{warps}/{cut.segment}" + (" *" if cut == chosen else "")
            )
            row.notes.append(f"workspace {cut.workspace_bytes() / 2**20:.0f} MiB")
            arrays = given | inputs.outputs(shape) | {"workspace": np.full(cut.workspace_bytes(), 0xFF, np.uint8)}

            def plan(b: Buffers, cut: launch.Chunking = cut) -> list[Launch]:
                return launch.prefill(cut, b.at)

            check(run, row, shape, GDR / "prefill.cu", arrays, plan, expected)
            rivals = {}
            if run.rivals and peers.available() and cut == chosen:
                rivals["fla"] = peers.fla_chunk(shape)
            note_errors(run, row, arrays, rivals, expected)
            yield measure(
                run,
                row,
                GDR / "prefill.cu",
                arrays,
                plan,
                state_bytes(shape) + token_bytes(shape),
                prefill_flops(shape),
                rivals,
            )
