"""Launch geometry of the gated delta rule: which kernel serves a shape, and with what grid."""

from __future__ import annotations

from dataclasses import dataclass

from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.launch import Launch, ints, pointers, require

DECODE_TOKENS = 8  # at most; beyond it the chunked kernels take over


@dataclass(frozen=True)
class Tiling:
    """How decode splits a value head: columns per warp (8 or 16) and warps per block (1 to 4)."""

    columns: int
    warps: int


def tiling(shape: Shape) -> Tiling:
    """Two sectors per row of S where the head allows it; few warps per block until the GPU is full anyway."""
    columns = 16 if shape.value_dim % 16 == 0 else 8
    limit = 1 if shape.slots * shape.value_heads < 256 else 4
    warps = max(w for w in (1, 2, 4) if w <= limit and shape.value_dim % (columns * w) == 0)
    return Tiling(columns, warps)


def decode(shape: Shape, at: dict[str, int], tiles: Tiling | None = None) -> Launch:
    """T <= 8 tokens. `at`: qkv a b A_log dt_bias S n_tokens n_commit o."""
    kernel = "gated_delta_rule_decode"
    require(1 <= shape.tokens <= DECODE_TOKENS, f"{shape.tokens} tokens", f"1 to {DECODE_TOKENS} for {kernel}")
    require(shape.value_dim % 8 == 0, f"value heads of {shape.value_dim}", "a multiple of 8")
    tiles = tiles or tiling(shape)
    require(tiles.warps <= 4, f"{tiles.warps} warps per block", "at most 4")
    columns = tiles.columns * tiles.warps
    shared = 4 * shape.tokens * (2 * shape.key_dim + columns + 4)
    args = (
        *pointers(at, "qkv", "a", "b", "A_log", "dt_bias"),
        *ints(shape.A_log_dtype == "bf16", shape.dt_bias_dtype == "bf16"),
        *pointers(at, "S", "n_tokens", "n_commit", "o"),
        *ints(shape.tokens, shape.key_heads, shape.value_heads, shape.value_dim),
    )
    grid = (shape.value_dim // columns, shape.value_heads, shape.slots)
    return Launch(f"{kernel}_{shape.dtype}_w{tiles.columns}", grid, 32 * tiles.warps, shared, args)


SEGMENT = 2048  # tokens of all slots per pass; at 27B what a pass leaves in the workspace fits H100's L2
CHUNKS = {"f32": [32], "bf16": [64, 32]}  # compiled for GPUs, the preferred one first
PLANES = {"f32": (3, 6), "bf16": (1, 4)}  # of q, k and v; of T' and A together (prefill.cuh)


@dataclass(frozen=True)
class Chunking:
    """How prefill cuts a shape up: tokens per chunk (32 or 64), per segment, and warps per scan block."""

    shape: Shape
    chunk: int
    segment: int
    warps: int

    @property
    def planes(self) -> tuple[int, int]:
        return PLANES[self.shape.dtype]

    def chunks(self, tokens: int) -> int:
        """Chunks of a segment of `tokens`."""
        return -(-tokens // self.chunk)

    def workspace_bytes(self) -> int:
        """Bytes of scratch memory that the launches of one call need, all segments sharing it."""
        matrices = self.planes[1] * self.chunk**2 * 2 + 16 * self.chunk
        chunks = self.chunks(min(self.segment, self.shape.tokens))
        return self.shape.slots * chunks * self.shape.value_heads * matrices

    def chunk_shared_bytes(self) -> int:
        """Shared memory of the chunk kernel: scales and gates, then keys or two f32 matrices."""
        keys = 2 * self.planes[0] * self.chunk * (self.shape.key_dim + 8) * 2
        scales = self.chunk * (2 + 3 * self.shape.value_heads // self.shape.key_heads) * 4
        return scales + max(keys, 2 * self.chunk * (self.chunk + 4) * 4)

    def scan_shared_bytes(self) -> int:
        """Shared memory of the scan kernel: one (f32) or two (bf16) stages of tiles."""
        inputs, matrices = self.planes
        keys, values = 2 * inputs * (self.shape.key_dim + 8), inputs * (16 * self.warps + 8)
        stage = self.chunk * (2 * (keys + values + matrices * (self.chunk + 8)) + 16)
        return stage * (2 if self.shape.dtype == "bf16" else 1)


def chunking(shape: Shape, shared_limit: int = 227 << 10, chunk: int = 0, segment: int = 0, warps: int = 0) -> Chunking:
    """The largest chunk whose tiles fit in `shared_limit` bytes (what the device gives a block), or `chunk`.

    `segment` (tokens per slot, a multiple of the chunk) is chosen so that the workspace does not grow with the slots.
    `warps` (of 16 value columns, at most 8) are four where the head allows it: one for each of an SM's schedulers.
    """
    require(shape.value_dim % 16 == 0, f"value heads of {shape.value_dim}", "a multiple of 16")
    require(
        shape.value_heads % shape.key_heads == 0,
        f"{shape.value_heads} value heads",
        f"a multiple of the {shape.key_heads} key heads",
    )
    warps = warps or next(w for w in (4, 2, 1) if shape.value_dim % (16 * w) == 0)
    chunks = [chunk] if chunk else CHUNKS[shape.dtype]
    plans = [Chunking(shape, c, segment or max(c, SEGMENT // shape.slots // c * c), warps) for c in chunks]
    fits = [p for p in plans if max(p.scan_shared_bytes(), p.chunk_shared_bytes()) <= shared_limit]
    require(bool(fits), f"{plans[-1].scan_shared_bytes()} bytes of shared memory", f"at most {shared_limit}")
    return fits[0]


def prefill(plan: Chunking, at: dict[str, int]) -> list[Launch]:
    """Any number of tokens, all of them committed.

    `at`: as decode without n_commit, and workspace (plan.workspace_bytes()).
    """
    shape, launches = plan.shape, []
    for first in range(0, shape.tokens, plan.segment):
        count = min(plan.segment, shape.tokens - first)
        args = (
            *pointers(at, "qkv", "a", "b", "A_log", "dt_bias"),
            *ints(shape.A_log_dtype == "bf16", shape.dt_bias_dtype == "bf16"),
            *pointers(at, "S", "n_tokens", "o", "workspace"),
            *ints(shape.tokens, first, count, shape.key_heads, shape.value_heads, shape.value_dim),
        )
        suffix = f"{shape.dtype}_c{plan.chunk}"
        launches += [
            Launch(
                f"gated_delta_rule_prefill_chunk_{suffix}",
                (plan.chunks(count), shape.key_heads, shape.slots),
                2 * plan.chunk,
                plan.chunk_shared_bytes(),
                args,
            ),
            Launch(
                f"gated_delta_rule_prefill_scan_{suffix}",
                (shape.value_dim // (16 * plan.warps), shape.value_heads, shape.slots),
                32 * plan.warps,
                plan.scan_shared_bytes(),
                args,
            ),
        ]
    return launches
