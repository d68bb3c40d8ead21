"""A safetensors checkpoint as a lazy map of names: headers are read, tensor bytes are not."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltart.errors import CheckpointError
from deltart.json_files import kind_of, parse_json, read_json
from deltart.runtime.backends.weights import NUMPY_DTYPES

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit

DTYPES: Mapping[str, np.dtype[Any]] = NUMPY_DTYPES


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
class WeightFile:
    """One safetensors file: size in bytes and SHA-256 of its header, which fixes names, dtypes and offsets."""

    name: str
    size: int
    header_sha256: str


class Checkpoint(Mapping[str, TensorInfo]):
    """The tensors of a checkpoint folder, single-file or sharded with an index.

    Raises:
        CheckpointError: a file is missing, truncated or malformed, or index and shards disagree.
    """

    def __init__(self, folder: Path) -> None:
        check_folder(folder, CheckpointError, "a Hugging Face checkpoint folder")
        self.folder = folder
        self.files: list[WeightFile] = []
        self._tensors: dict[str, TensorInfo] = {}
        index = folder / INDEX
        if os.path.lexists(index):
            self._read_sharded(index)
        elif os.path.lexists(folder / SINGLE):
            self._add(folder / SINGLE)
        else:
            raise CheckpointError(
                f"{folder} holds no weights", f"{SINGLE} or {INDEX}", "point at a Hugging Face checkpoint folder"
            )

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """The tensor as a read-only memory map; nothing is read until it is touched."""
        info = self._tensors[name]
        path = self.folder / info.file
        return np.memmap(path, DTYPES[info.dtype], mode="r", offset=info.offset, shape=info.shape)

    def _read_sharded(self, index: Path) -> None:
        weight_map = read_json(index, CheckpointError).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{index} has no usable 'weight_map'", "a map of tensor name to shard file")
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard:
                raise CheckpointError(f"{index} names shard '{shard}'", "a file name beside the index")
            if not (self.folder / shard).exists():
                raise CheckpointError(
                    f"{index} names shard '{shard}', which does not exist",
                    f"{self.folder / shard}",
                    "finish the download",
                )
            self._add(self.folder / shard)
        for name, shard in weight_map.items():
            found = self._tensors.get(name)
            if found is None or found.file != shard:
                where = f"is in '{found.file}'" if found else "is in no shard"
                raise CheckpointError(f"tensor '{name}' {where}", f"in '{shard}' ({index.name})", "download again")
        for name, info in self._tensors.items():
            if name not in weight_map:
                raise CheckpointError(f"tensor '{name}' of '{info.file}' is not in {index.name}", "all indexed")

    def _add(self, path: Path) -> None:
        header, start, digest = _read_header(path)
        size = path.stat().st_size
        self.files.append(WeightFile(path.name, size, digest))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if name in self._tensors:
                first = self._tensors[name].file
                raise CheckpointError(f"tensor '{name}' is in '{first}' and in '{path.name}'", "one place")
            self._tensors[name] = _tensor_info(path, name, entry, start, size)


def _read_header(path: Path) -> tuple[dict[str, Any], int, str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{path} is truncated or not safetensors ({size} bytes, header length {length})",
                "a complete safetensors file",
                "download the file again",
            )
        raw = file.read(length)
    header = parse_json(raw, f"{path}: the safetensors header", CheckpointError, "download the file again")
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is {kind_of(header)}", "an object", "download it again")
    return header, 8 + length, hashlib.sha256(prefix + raw).hexdigest()


def _tensor_info(path: Path, name: str, entry: Any, start: int, size: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: tensor '{name}' has a malformed header entry", todo="download again") from None
    if start + end > size:
        raise CheckpointError(
            f"{path}: tensor '{name}' ends at byte {start + end}, the file at {size}",
            "a complete safetensors file",
            "the file is truncated: download it again",
        )
    item = DTYPES[dtype].itemsize if dtype in DTYPES else None
    if item is not None and end - begin != math.prod(shape) * item:
        raise CheckpointError(
            f"{path}: tensor '{name}' spans {end - begin} bytes", f"{math.prod(shape) * item} for {dtype} {list(shape)}"
        )
    return TensorInfo(name, path.name, start + begin, end - begin, dtype, shape)
