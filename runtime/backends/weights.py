"""Maps an artifact's weights: finds the vendor's files, checks they are the exported ones, and views their tensors."""

from __future__ import annotations

import mmap
import os
import warnings
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deltart.dtypes import BY_STORED, U8
from deltart.errors import ArtifactError, WeightsRewrittenWarning
from deltart.manifest import AGAIN, FileEntry, Manifest, WeightEntry
from deltart.safetensors import header_sha256, read_file
from deltart.text_files import open_regular


class MappedWeights:
    """Read-only views of checkpoint tensors over memory maps; no byte is read until it is used.

    Warns with WeightsRewrittenWarning where a file was written after the export and no difference was found.

    Raises:
        ArtifactError: a weight file is missing, is not the one that was exported, or has its tensors elsewhere than
            the manifest says.
    """

    def __init__(self, artifact: Path, manifest: Manifest) -> None:
        self._tensors = manifest.tensors
        self._folder = artifact / "weights"
        places = (self._folder, Path(manifest.checkpoint))
        self.paths = {entry.name: _find(entry, places) for entry in manifest.files}  # checked files, by name
        self._files = {entry.name: _map(entry, self.paths[entry.name]) for entry in manifest.files}
        self._maps = {name: np.frombuffer(file, np.uint8) for name, file in self._files.items()}
        for path in self.paths.values():
            _check_places(path, manifest.tensors)

    @property
    def in_artifact(self) -> bool:
        """Whether all files are the artifact's own, and no links that lead out of it."""
        real = self._folder.resolve()
        return all(path.parent == self._folder and path.resolve().parent == real for path in self.paths.values())

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor in its stored dtype and shape."""
        entry = self._tensors[name]
        raw = self._maps[entry.file][entry.offset : entry.offset + entry.nbytes]
        return raw.view(BY_STORED[entry.dtype].numpy).reshape(entry.shape)

    def release(self) -> None:
        """Give back the pages that were read; views stay valid, and read them again from the file."""
        for file in self._files.values():
            file.madvise(mmap.MADV_DONTNEED)


def _find(entry: FileEntry, places: tuple[Path, ...]) -> Path:
    path = next((place / entry.name for place in places if os.path.exists(place / entry.name)), None)
    if path is None:
        raise ArtifactError(
            f"weight file {entry.name} is missing",
            " or ".join(str(place / entry.name) for place in places),
            "restore the checkpoint, or export it again",
        )
    return path


def _map(entry: FileEntry, path: Path) -> mmap.mmap:
    other = ArtifactError(f"{path} is not the file that was exported", "the same size, header and content", AGAIN)
    with open_regular(path, ArtifactError) as file:
        if os.fstat(file.fileno()).st_size != entry.size:
            raise other
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if header_sha256(np.frombuffer(mapped, np.uint8)) != entry.header_sha256:
            raise other
        identity = entry.identity
        if identity.written_since(file):
            if not identity.same_samples(file):
                raise other
            how = "was written" if identity.same_number(file) else "is a copy that was written"
            text = f"{path} {how} after the export; its header and samples are as they were, the rest was not compared"
            warnings.warn(text, WeightsRewrittenWarning, stacklevel=4)
    return mapped


def _check_places(path: Path, tensors: Mapping[str, WeightEntry]) -> None:
    """Raises ArtifactError where the manifest has a tensor of the file at `path` elsewhere than the file's header.

    A region that is bound as one stands for whole tensors of its type, one after the other.
    """
    _, infos = read_file(path)
    header = {info.name: info for info in infos}
    begins, ends = {i.offset for i in infos}, {i.offset + i.nbytes for i in infos}
    regions = []
    for name, entry in tensors.items():
        if entry.file != path.name:
            continue
        begin, end, info = entry.offset, entry.offset + entry.nbytes, header.pop(name, None)
        if info is None and begin in begins and end in ends:
            regions.append((begin, end, entry.dtype))
        elif info is None or (begin, end - begin, entry.dtype, entry.shape) != (
            info.offset, info.nbytes, info.dtype, list(info.shape)
        ):  # fmt: skip
            raise ArtifactError(f"the manifest has '{name}' elsewhere than {path}", "one place of each tensor", AGAIN)
    regions = sorted(regions) or [(0, 0, "")]
    starts = [begin for begin, _, _ in regions]
    for info in header.values():
        begin, end, dtype = regions[bisect_right(starts, info.offset) - 1]
        same = dtype in (info.dtype, U8.stored)  # a packed weight is bound as bytes
        if not (begin <= info.offset and info.offset + info.nbytes <= end and same):
            raise ArtifactError(f"the manifest lacks '{info.name}' of {path}", "one place of each tensor", AGAIN)
