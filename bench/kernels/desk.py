"""`python -m bench.kernels.desk`: a token of the 35B-A3B on an H100 by arithmetic, where no GPU is at hand.

A kernel's blocks go to multiprocessors as they come free, all of one queue to memory: it takes its share of the
bandwidth, or the fullest multiprocessor's bytes at the rate that its bytes in flight allow, and the latency of memory.
Every launch costs a gap. Nothing here was measured; on a GPU `python -m bench.kernels` measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

PEAK, REACHED = 3.35e6, 3.05e6  # bytes per us of an H100's memory, on paper and at best
MULTIPROCESSORS = 132
LATENCY, GAP = 0.65, 0.8  # us: of memory; between launches
PIECE, AHEAD = 2048, 3  # bytes of a warp's load, and how many are on their way
MB = 1e6


@dataclass(frozen=True)
class Launches:
    """`calls` launches a token, each of `blocks` blocks of `warps` warps, that read `nbytes` together."""

    name: str
    calls: int
    nbytes: float
    blocks: int
    warps: int

    @property
    def floor(self) -> float:
        """us of one call at the memory's peak."""
        return self.nbytes / PEAK

    @property
    def us(self) -> float:
        """us of one call by the model, its gap included."""
        resident = min(-(-self.blocks // MULTIPROCESSORS), max(1, 20 // self.warps))  # by registers: 20 warps
        rate = resident * self.warps * PIECE * AHEAD / LATENCY
        fullest = -(-self.blocks // MULTIPROCESSORS) * self.nbytes / self.blocks
        return GAP + LATENCY + max(self.nbytes / REACHED, fullest / min(rate, 2 * REACHED / MULTIPROCESSORS))


def launches(past: int, expert_bytes: int, head_bytes: int) -> Iterator[Launches]:
    """Decode of one token after `past` others: weights by bytes a value, of the linears and experts and of the head."""
    hidden, width, chosen = 2048, 512, 9
    weight = expert_bytes

    def linear(name: str, calls: int, rows: int, columns: int) -> Launches:
        return Launches(name, calls, rows * columns * weight, -(-rows // 16), 4)

    yield linear("DeltaNet projections", 30, 8192 + 4096, hidden)
    yield linear("attention projections", 10, 8192 + 512 + 512, hidden)
    yield linear("out, o", 40, hidden, 4096)
    yield Launches("delta rule: state in and out", 30, 2 * 32 * 128 * 128 * 4, 256, 1)
    yield Launches("attention", 10, past * 2 * 2 * 256 * 2 + 1, 264, 4)
    yield Launches("router", 40, 256 * hidden * 2, 16, 8)
    yield Launches("route", 40, 9e3, 1, 8)
    yield Launches("experts: gate_up", 40, chosen * 2 * width * hidden * weight, chosen * width // 8, 4)
    yield Launches("experts: down", 40, chosen * width * hidden * weight, hidden // 16, 9)
    yield Launches("norms, conv, rope", 130 + 60 + 10, 2e4, 20, 4)
    yield Launches("head", 1, 248320 * hidden * head_bytes, 1940, 8)
    yield Launches("sampler", 3, 1e6, 61, 16)


def table(past: int, expert_bytes: int, head_bytes: int, title: str) -> Table:
    """The rows, and the token's."""
    made = Table("kernel", "calls", "MB", "floor us", "model us", "ms a token", title=title, title_justify="left")
    rows = list(launches(past, expert_bytes, head_bytes))
    for row in rows:
        cells = (f"{row.nbytes / MB:.2f}", f"{row.floor:.1f}", f"{row.us:.1f}", f"{row.calls * row.us / 1e3:.3f}")
        made.add_row(row.name, str(row.calls), *cells)
    floor, us = (sum(row.calls * value for row, value in pairs) for pairs in (
        [(row, row.floor) for row in rows], [(row, row.us) for row in rows]))  # fmt: skip
    made.add_section()
    made.add_row(f"{1e6 / us:.0f} tok/s of at most {1e6 / floor:.0f}", "", "", f"{floor:.0f}", f"{us:.0f}", "")
    return made


def main() -> None:
    """Print the tables."""
    console = Console()
    console.print(table(1024, 1, 2, "FP8, head in BF16"))
    console.print(table(1024, 1, 1, "FP8, head in FP8"))
    console.print(table(1024, 2, 2, "BF16"))


if __name__ == "__main__":
    main()
