"""Seeded inputs of the routed experts, shared by their tests and their benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear import inputs as fp8
from deltart.plugins.fp8_linear.reference import BLOCK

PARTS = ("gate", "up", "down")
DRAWN_EXPERTS = 24  # before their values come again, with other scales: a layer of the 35B has a billion


@dataclass(frozen=True)
class Shape:
    """Sizes and types of one call: x [slots, tokens, hidden], `chosen` of `experts` a token, each `width` wide.

    present: how many of the experts are stored, 0 for all. shared: the width of the shared expert, 0 for none.
    stored: "e4m3" with block scales of scale_dtype, or "bf16". quantized: activations are rounded to E4M3 (W8A8).
    """

    slots: int = 1
    tokens: int = 1
    hidden: int = 2048
    experts: int = 256
    chosen: int = 8
    width: int = 512
    shared: int = 512
    present: int = 0
    dtype: str = "bf16"
    stored: str = "e4m3"
    scale_dtype: str = "bf16"
    quantized: bool = False

    @property
    def rows(self) -> int:
        """The tokens of all slots."""
        return self.slots * self.tokens

    @property
    def stored_experts(self) -> int:
        """How many experts are stored."""
        return self.present or self.experts

    @property
    def choices(self) -> int:
        """Places of a token: its experts, and the shared one."""
        return self.chosen + (self.shared > 0)

    @property
    def places(self) -> int:
        """Of all tokens."""
        return self.rows * self.choices

    @property
    def stride(self) -> int:
        """Values between the rows of h."""
        return max(self.width, self.shared)


def make(shape: Shape, seed: int, n_tokens: list[int] | None = None) -> dict[str, np.ndarray]:
    """The inputs by their names in the op's contract. Where there is no token x and logits are NaN."""
    rng = np.random.default_rng(seed)
    counts = np.array(n_tokens or [shape.tokens] * shape.slots, np.int32)
    x = rng.standard_normal((shape.slots, shape.tokens, shape.hidden))
    logits = rng.standard_normal((shape.slots, shape.tokens, shape.experts)).astype(np.float32)
    logits[..., -1] = logits[..., 0]  # ties
    absent = np.arange(shape.tokens) >= counts[:, None]
    x[absent] = logits[absent] = np.nan
    given = {"x": cast(x, shape.dtype), "logits": logits, "n_tokens": counts} | _experts(shape, rng)
    if shape.shared:
        for part in PARTS:
            size = (shape.hidden, shape.shared) if part == "down" else (shape.shared, shape.hidden)
            given |= {f"shared_{name}": array for name, array in _matrix(shape, rng, part, size).items()}
        given["shared_expert_gate"] = cast(rng.standard_normal((1, shape.hidden)) * shape.hidden**-0.5, "bf16")
    return given


def _experts(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    count, size = shape.stored_experts, shape.hidden * shape.width
    drawn = min(count, DRAWN_EXPERTS)
    if shape.stored == "bf16":
        sizes = np.exp2(np.arange(count) // drawn % 4 - 1.0).astype(np.float32)[:, None, None]
        gate_up = rng.standard_normal((drawn, 2 * shape.width, shape.hidden), np.float32) * shape.hidden**-0.5
        down = rng.standard_normal((drawn, shape.hidden, shape.width), np.float32) * shape.width**-0.5
        again = np.arange(count) % drawn
        return {"gate_up": cast(gate_up, "bf16")[again], "down": cast(down, "bf16")[again] * cast(sizes, "bf16")}
    blocks = -(-shape.hidden // BLOCK) * -(-shape.width // BLOCK)
    codes, again = fp8.weight(rng, drawn * 3, size).reshape(drawn, 3, size), np.arange(count) % drawn
    most = np.abs(codes.astype(np.float32)).max(-1, keepdims=True)
    codes, most = codes[again], most[again]
    scale = rng.uniform(0.5, 1.0, (count, 3, blocks)) / most / 4
    slot_expert = rng.permutation(shape.experts)[:count].astype(np.int32)
    return {"experts": codes, "experts_scale": cast(scale, shape.scale_dtype), "slot_expert": slot_expert}


def _matrix(shape: Shape, rng: np.random.Generator, part: str, size: tuple[int, int]) -> dict[str, np.ndarray]:
    values = rng.standard_normal(size, np.float32) * size[1] ** -0.5
    if shape.stored == "bf16":
        return {part: cast(values, "bf16")}
    blocks = (-(-size[0] // BLOCK), -(-size[1] // BLOCK))
    scale = cast(rng.uniform(0.5, 1.0, blocks) / 128, shape.scale_dtype)
    return {part: (values * 128).astype(fp8.weight(rng, 1, 1).dtype), f"{part}_scale_inv": scale}


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """y, full of NaN."""
    return {"y": poisoned((shape.slots, shape.tokens, shape.hidden), shape.dtype)}
