"""A safetensors checkpoint as a lazy map of names: headers are read, tensor bytes are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from deltart.dtypes import BY_STORED
from deltart.errors import CheckpointError
from deltart.export.regions import Region, expert_regions, packed_regions
from deltart.export.weight_files import find_weights
from deltart.safetensors import INDEX, TensorInfo, WeightFile, check_layout, read_file
from deltart.text_files import check_folder


class Checkpoint(Mapping[str, TensorInfo]):
    """The tensors of a checkpoint folder, single-file or sharded with an index; `regions` are runs of them by name.

    Raises:
        CheckpointError: a file is missing, truncated or malformed, or index and shards disagree.
    """

    def __init__(self, folder: Path) -> None:
        check_folder(folder, CheckpointError, "a Hugging Face checkpoint folder")
        names, weight_map = find_weights(folder)
        self._read(folder, names)
        if weight_map is not None:
            self._check_index(weight_map)

    @classmethod
    def of_files(cls, folder: Path, names: Sequence[str]) -> Checkpoint:
        """The tensors of these files of `folder`, whatever else is there. Raises as the class does."""
        checkpoint = cls.__new__(cls)
        checkpoint._read(folder, names)
        return checkpoint

    def check_layout(self) -> None:
        """Raises CheckpointError where tensors of a file overlap or leave holes: see `safetensors.check_layout`."""
        for file in self.files:
            check_layout(self.folder / file.name, (info for info in self.values() if info.file == file.name))

    def _read(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.files: list[WeightFile] = []
        self._tensors: dict[str, TensorInfo] = {}
        for name in names:
            self._add(folder / name)
        regions = [*expert_regions(self._tensors.values()), *packed_regions(self._tensors)]
        self.regions: dict[str, Region] = {region.name: region for region in regions}

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

    def _check_index(self, weight_map: Mapping[str, str]) -> None:
        for name, shard in weight_map.items():
            found = self._tensors.get(name)
            if found is None or found.file != shard:
                where = f"is in '{found.file}'" if found else "is in no shard"
                raise CheckpointError(f"tensor '{name}' {where}", f"in '{shard}' ({INDEX})", "download again")
        for name, info in self._tensors.items():
            if name not in weight_map:
                raise CheckpointError(f"tensor '{name}' of '{info.file}' is not in {INDEX}", "all indexed")

    def _add(self, path: Path) -> None:
        file, tensors = read_file(path)
        self.files.append(file)
        for info in tensors:
            if info.name in self._tensors:
                first = self._tensors[info.name].file
                raise CheckpointError(f"tensor '{info.name}' is in '{first}' and in '{path.name}'", "one place")
            self._tensors[info.name] = info
