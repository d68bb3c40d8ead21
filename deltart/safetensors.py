"""The safetensors format: a JSON header that names every tensor and its bytes, and then the bytes.

https://github.com/huggingface/safetensors#format: eight bytes of header length, the header, the data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deltart.dtypes import BF16, BY_STORED, E4M3, F16, F32, I32, I64
from deltart.errors import CheckpointError
from deltart.json_files import kind_of, parse_json, shown
from deltart.plurals import counted
from deltart.text_files import open_regular
from deltart.typed import Count, typed

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
METADATA = "__metadata__"  # the one key of a header that is no tensor
DAMAGED = "download the file again"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
WIDEST_FIRST = [dtype.stored for dtype in (I64, F32, I32, BF16, F16, E4M3)]


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `nbytes` bytes at `offset` of `file` (absolute in the file, in bytes)."""

    name: str
    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header has it: `data_offsets` are its first byte and the one after its last, from the data on."""

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file: size in bytes and SHA-256 of its header, which fixes names, dtypes and offsets."""

    name: str
    size: int
    header_sha256: str


@dataclass(frozen=True)
class FilePlan:
    """A file to write: the bytes before its data, and its tensors with the offsets at which they belong."""

    name: str
    header: bytes
    tensors: Mapping[str, TensorInfo]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(info.nbytes for info in self.tensors.values())


def read_file(path: Path) -> tuple[WeightFile, list[TensorInfo]]:
    """What a file says of itself and of its tensors; their bytes are not read.

    Raises:
        CheckpointError: it is truncated or malformed.
    """
    raw, size = _read_header(path)
    header = parse_json(raw[8:], f"{path}: the safetensors header", CheckpointError, DAMAGED)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is {kind_of(header)}", "an object", DAMAGED)
    if header.get(METADATA) is not None:
        typed(header[METADATA], dict[str, str], f"{path}: {METADATA}", CheckpointError, DAMAGED)
    tensors = [_tensor_info(path, n, entry, len(raw), size) for n, entry in header.items() if n != METADATA]
    return WeightFile(path.name, size, hashlib.sha256(raw).hexdigest()), tensors


def unplaced(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    """A tensor that is in no file yet."""
    return TensorInfo(name, "", 0, math.prod(shape) * BY_STORED[dtype].itemsize, dtype, shape)


def header_sha256(mapped: np.ndarray) -> str:
    """The hash of WeightFile, of a file's bytes."""
    length = int.from_bytes(mapped[:8].tobytes(), "little")
    return hashlib.sha256(mapped[: 8 + length].tobytes()).hexdigest()


def plan_file(name: str, tensors: Iterable[TensorInfo], metadata: Mapping[str, str] | None = None) -> FilePlan:
    """A file with `tensors` one after the other in this order, whatever places they come from."""
    tensors = list(tensors)
    entries: dict[str, Any] = {METADATA: metadata} if metadata else {}
    end = 0
    for info in tensors:
        entries[info.name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [end, end + info.nbytes]}
        end += info.nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # so that the data is aligned
    header = len(raw).to_bytes(8, "little") + raw
    starts = {info.name: len(header) + entries[info.name]["data_offsets"][0] for info in tensors}
    return FilePlan(name, header, {i.name: replace(i, file=name, offset=starts[i.name]) for i in tensors})


def written_order(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """As the library orders them: by type, wide elements first so that all are aligned, then by name."""
    return sorted(tensors, key=lambda info: (WIDEST_FIRST.index(info.dtype), info.name))


def shard_name(number: int, count: int) -> str:
    """The usual name of file `number` (from 1) of `count`."""
    return SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def index_of(tensors: Iterable[TensorInfo]) -> dict[str, Any]:
    """The content of INDEX for these tensors."""
    tensors = sorted(tensors, key=lambda info: info.name)
    total = sum(info.nbytes for info in tensors)
    return {"metadata": {"total_size": total}, "weight_map": {info.name: info.file for info in tensors}}


def _read_header(path: Path) -> tuple[bytes, int]:
    """The file up to its data, and its size in bytes."""
    with open_regular(path, CheckpointError) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{path} is truncated or not safetensors ({size} bytes, header length {length})",
                "a complete safetensors file",
                DAMAGED,
            )
        return prefix + file.read(length), size


def _tensor_info(path: Path, name: str, raw: Any, start: int, size: int) -> TensorInfo:
    where = f"{path}: tensor {shown(name)}"
    entry = typed(raw, _Entry, where, CheckpointError, DAMAGED)
    begin, end = entry.data_offsets
    if begin > end:
        raise CheckpointError(f"{where} ends before it begins", "offsets in order", DAMAGED)
    if start + end > size:
        raise CheckpointError(
            f"{where} ends at byte {start + end}, the file at {size}",
            "a complete safetensors file",
            f"the file is truncated: {DAMAGED}",
        )
    item = BY_STORED[entry.dtype].itemsize if entry.dtype in BY_STORED else None
    if item is not None and end - begin != math.prod(entry.shape) * item:
        expected = f"{math.prod(entry.shape) * item} for {entry.dtype} {shown(entry.shape)}"
        raise CheckpointError(f"{where} spans {end - begin} bytes", expected)
    return TensorInfo(name, path.name, start + begin, end - begin, entry.dtype, tuple(entry.shape))


def check_layout(path: Path, tensors: Iterable[TensorInfo]) -> None:
    """The format's own rule: the tensors fill the data from its first byte to its last, without holes or overlaps.

    Args:
        tensors: those of the file, as `read_file` gives them.

    Raises:
        CheckpointError: they do not, as in a file that is damaged or made by hand.
    """
    with open_regular(path, CheckpointError) as file:
        size = os.fstat(file.fileno()).st_size
        end, before = 8 + int.from_bytes(file.read(8), "little"), "the header"
    hint = f"the file is damaged: {DAMAGED}, or write it with the safetensors library"
    for info in sorted(tensors, key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            raise CheckpointError(
                f"{path}: tensor {shown(info.name)} begins at byte {info.offset}, and {before} ends at {end}",
                "tensors one after the other, without holes or overlaps",
                hint,
            )
        end, before = end + info.nbytes, f"tensor {shown(info.name)}"
    if end != size:
        found = f"{path} has {counted(size - end, 'byte')} behind its last tensor"
        raise CheckpointError(found, "a file that ends with its last tensor", hint)
