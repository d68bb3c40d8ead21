"""The vendor's numbers for pictures and videos, transformers' own functions for them, and its resize in numpy."""

from __future__ import annotations

import ast
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deltart.manifest import VisionEntry

ENTRY = VisionEntry(
    graph="vision", patch=16, temporal_patch=2, merge=2, image_pixels=(65536, 16777216), video_pixels=(4096, 25165824),
    frame_cap=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resample="bicubic", fps=2.0, min_frames=4,
    max_frames=768, wrapper="kept",
    tokens={"vision_start": 248053, "vision_end": 248054, "image_pad": 248056, "video_pad": 248057},
    max_patches=65536, hidden=1152, out=5120, grid_side=48, head_dim=72, rope_theta=10000.0,
)  # fmt: skip


@cache
def transformers_function(module: str, *path: str) -> Any:
    """A function or method out of a module of transformers that can't be imported without torchvision.

    Its source is compiled as it stands, with what such functions use.
    """
    spec = importlib.util.find_spec(f"transformers.models.{module}")
    assert spec is not None and spec.origin is not None
    body: list[ast.stmt] = ast.parse(Path(spec.origin).read_text()).body
    for name in path:
        (found,) = [node for node in body if getattr(node, "name", None) == name]
        body = getattr(found, "body", [])
    place: dict[str, Any] = {"math": math, "np": np}
    source = "from __future__ import annotations\n" + ast.unparse(found)
    exec(compile(source, spec.origin, "exec"), place)
    return place[path[-1]]


def exact_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, C] from uint8 [h, w, C]: the fixed-point kernel of torch's antialiased bicubic."""
    if pixels.shape[1] != width:
        pixels = _along(pixels.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return _along(pixels, height) if pixels.shape[0] != height else pixels


def _along(pixels: np.ndarray, size: int) -> np.ndarray:
    """The first axis resized; 16-bit weights with as many bits of fraction as the largest leaves room for."""
    length = len(pixels)
    scale = length / size
    reach = max(scale, 1.0)
    rows: list[tuple[int, np.ndarray]] = []
    for place in range(size):
        centre = (place + 0.5) * scale
        low, high = max(int(centre - 2 * reach + 0.5), 0), min(int(centre + 2 * reach + 0.5), length)
        weights = _keys((np.arange(low, high) + 0.5 - centre) / reach)
        rows.append((low, weights / weights.sum()))
    largest = max(weights.max() for _, weights in rows)
    bits = 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    result = np.empty((size, *pixels.shape[1:]), np.uint8)
    for place, (low, weights) in enumerate(rows):
        scaled = weights * 2**bits
        fixed = np.where(scaled < 0, np.ceil(scaled - 0.5), np.floor(scaled + 0.5)).astype(np.int64)
        total = np.tensordot(fixed, pixels[low : low + len(fixed)].astype(np.int64), axes=1) + (1 << (bits - 1))
        result[place] = np.clip(total >> bits, 0, 255)
    return result


def _keys(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """The cubic convolution kernel of Keys (1981)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3] with smooth shades, hard edges and some grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = []
    for _ in range(3):
        waves = sum(np.sin(x * rng.uniform(0, 0.2) + y * rng.uniform(0, 0.2) + rng.uniform(0, 6)) for _ in range(3))
        edges = ((x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) % 97 > 60) * 60.0
        channels.append(128 + 35 * waves + edges + rng.normal(0, 6, (height, width)))
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)
