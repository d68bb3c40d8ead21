"""What a native plan is: calls of ops in order, where their tensors lie in one block, and the constants they read."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from deltart.dtypes import BY_SHORT
from deltart.errors import ArtifactError
from deltart.json_files import parse_json, shown
from deltart.typed import Count, Positive, typed

FORMAT = 1
AGAIN = "run `deltart build --flavour native` again"
ALIGNMENT = 256  # bytes, of every tensor in the block


@dataclass(frozen=True)
class Step:
    """One call of an op: `op` by its contract's name, tensors in the contract's order, `workspace` in the block."""

    name: str
    op: str
    attributes: Mapping[str, int | float]
    inputs: list[str]
    outputs: list[str]
    workspace: Count


@dataclass(frozen=True)
class Placed:
    """A tensor that only steps see: its type's short name, its axes and its offset in the block."""

    dtype: str
    axes: list[str | int]
    offset: Count


@dataclass(frozen=True)
class Constant:
    """A tensor that the graph holds: its type's short name, its shape, its bytes in base64."""

    dtype: str
    shape: list[int]
    data: str

    @classmethod
    def of(cls, array: np.ndarray, dtype: str) -> Constant:
        """The constant with an array's values."""
        values = np.asarray(array, BY_SHORT[dtype].numpy)
        return cls(dtype, list(values.shape), base64.b64encode(values.tobytes()).decode())

    def array(self) -> np.ndarray:
        """Its values."""
        return np.frombuffer(base64.b64decode(self.data), BY_SHORT[self.dtype].numpy).reshape(self.shape)


@dataclass(frozen=True)
class NativePlan:
    """One graph under one profile. `arena_bytes`: of the block; `launches`: of a call of the largest sizes."""

    steps: list[Step]
    tensors: Mapping[str, Placed]
    constants: Mapping[str, Constant]
    arena_bytes: Count
    launches: Positive
    format: int = FORMAT

    def content(self) -> bytes:
        """The plan as the bytes of its file."""
        return (json.dumps(asdict(self), separators=(",", ":")) + "\n").encode()


def read_plan(content: bytes, path: Path) -> NativePlan:
    """The plan in the `content` of the file `path`. Raises ArtifactError where it is none of this version."""
    raw = parse_json(content, str(path), ArtifactError, AGAIN)
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise ArtifactError(f"{path} has format {shown(found)}", f"format {FORMAT} of native plans", AGAIN)
    return typed(raw, NativePlan, str(path), ArtifactError, AGAIN)
