"""The pictures that the seeing nano is taught with: coloured shapes and digits, drawn in numpy from a description."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 165, 70),
    "blue": (45, 85, 225),
    "yellow": (240, 205, 40),
    "purple": (150, 50, 180),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = (
    ("01110", "10001", "10011", "10101", "11001", "10001", "01110"),
    ("00100", "01100", "00100", "00100", "00100", "00100", "01110"),
    ("01110", "10001", "00001", "00110", "01000", "10000", "11111"),
    ("11110", "00001", "00001", "01110", "00001", "00001", "11110"),
    ("00010", "00110", "01010", "10010", "11111", "00010", "00010"),
    ("11111", "10000", "11110", "00001", "00001", "10001", "01110"),
    ("01110", "10000", "10000", "11110", "10001", "10001", "01110"),
    ("11111", "00001", "00010", "00100", "01000", "01000", "01000"),
    ("01110", "10001", "10001", "01110", "10001", "10001", "01110"),
    ("01110", "10001", "10001", "01111", "00001", "00001", "01110"),
)
"""Rows of the digits 0 to 9, five columns wide."""
GRAIN = 6  # levels of noise, at most
JITTER = 16  # levels by which a thing's colour is off, at most


@dataclass(frozen=True)
class Thing:
    """A shape or a digit: its name, its colour, its centre and half its height, in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A picture: width x height pixels of a dark gray with things on it. `seed` is of the grain and shades."""

    width: int
    height: int
    background: int
    things: tuple[Thing, ...]
    seed: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Scene:
        return cls(**{**fields, "things": tuple(Thing(**thing) for thing in fields["things"])})

    def moved(self, x: float, y: float) -> Scene:
        """The same with every thing moved by so many pixels."""
        return replace(self, things=tuple(replace(thing, x=thing.x + x, y=thing.y + y) for thing in self.things))


def draw(scene: Scene) -> np.ndarray:
    """uint8 [height, width, 3]."""
    noise = np.random.default_rng(scene.seed)
    y, x = np.mgrid[0 : scene.height, 0 : scene.width] + 0.5
    picture = np.full((scene.height, scene.width, 3), float(scene.background))
    for thing in scene.things:
        color = np.array(COLORS[thing.color]) + noise.integers(-JITTER, JITTER + 1, 3)
        cover = _cover(thing, x, y)[..., None]
        picture += cover * (color - picture)
    picture += noise.integers(-GRAIN, GRAIN + 1, (scene.height, scene.width, 1))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _cover(thing: Thing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of each pixel a thing covers, 0 to 1: from the distance to its edge, inside positive."""
    right, down, radius = x - thing.x, y - thing.y, thing.radius
    if thing.shape.isdigit():
        return _digit_cover(int(thing.shape), right, down, radius)
    if thing.shape == "circle":
        inside = radius - np.hypot(right, down)
    elif thing.shape == "square":
        inside = 0.85 * radius - np.maximum(abs(right), abs(down))
    elif thing.shape == "triangle":  # its top at -radius, its base at 0.8 of it
        inside = np.minimum(0.8 * radius - down, (down + radius - 1.8 * abs(right)) / 2.06)
    else:
        thick = 0.33 * radius
        inside = np.maximum(
            np.minimum(radius - abs(right), thick - abs(down)), np.minimum(thick - abs(right), radius - abs(down))
        )
    return np.clip(inside + 0.5, 0, 1)


def _digit_cover(digit: int, right: np.ndarray, down: np.ndarray, radius: float) -> np.ndarray:
    cells = np.pad(np.array([[int(cell) for cell in row] for row in DIGITS[digit]], float), 1)
    size = 2 * radius / 7  # of a cell
    column, row = right / size + 3.0, down / size + 4.0  # of the padded table, at its cells' middles
    return _bilinear(cells, row, column)


def _bilinear(table: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values of a table between the centres of its cells; steep, so that edges stay clear."""
    row, column = np.clip(row, 0, table.shape[0] - 1.001), np.clip(column, 0, table.shape[1] - 1.001)
    top, left = row.astype(int), column.astype(int)
    below, beside = row - top, column - left
    upper = table[top, left] * (1 - beside) + table[top, left + 1] * beside
    lower = table[top + 1, left] * (1 - beside) + table[top + 1, left + 1] * beside
    return np.clip(2 * (upper * (1 - below) + lower * below) - 0.5, 0, 1)


def canvas(rng: random.Random, smallest: int, largest: int, height: int | None = None) -> tuple[int, int]:
    """(width, height) of a picture whose sides lie between two sizes."""
    width = rng.randint(smallest, largest)
    return width, height or rng.randint(smallest, largest)


def scene(rng: random.Random, width: int, height: int, things: Sequence[Thing]) -> Scene:
    """A scene with a background and a seed of its own."""
    return Scene(width, height, rng.randint(5, 90), tuple(things), rng.getrandbits(32))
