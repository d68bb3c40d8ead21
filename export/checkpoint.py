"""A safetensors checkpoint as a lazy map of names: headers are read, tensor bytes are not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from deltart.dtypes import BY_STORED
from deltart.errors import CheckpointError
from deltart.export.regions import Region, expert_regions
from deltart.json_files import read_json
from deltart.safetensors import INDEX, SINGLE, TensorInfo, WeightFile, read_file
from deltart.text_files import check_folder


class Checkpoint(Mapping[str, TensorInfo]):
    """The tensors of a checkpoint folder, single-file or sharded with an index; `regions` are runs of them by name.

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
        self.regions: dict[str, Region] = {region.name: region for region in expert_regions(self._tensors.values())}

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def at(self, name: str) -> TensorInfo:
        """The tensor or the region `name`; raises KeyError where there is neither."""
        return self._tensors[name] if name in self._tensors else self.regions[name]

    def read(self, name: str) -> np.ndarray:
        """The tensor as a read-only memory map; nothing is read until it is touched."""
        info = self._tensors[name]
        path = self.folder / info.file
        return np.memmap(path, BY_STORED[info.dtype].numpy, mode="r", offset=info.offset, shape=info.shape)

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
        file, tensors = read_file(path)
        self.files.append(file)
        for info in tensors:
            if info.name in self._tensors:
                first = self._tensors[info.name].file
                raise CheckpointError(f"tensor '{info.name}' is in '{first}' and in '{path.name}'", "one place")
            self._tensors[info.name] = info
