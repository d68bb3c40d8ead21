"""Maps an artifact's weights: finds the vendor's files, checks they are the exported ones, and views their tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deltart.dtypes import BY_STORED
from deltart.errors import ArtifactError
from deltart.manifest import FileEntry, Manifest
from deltart.safetensors import header_sha256


class MappedWeights:
    """Read-only views of checkpoint tensors over memory maps; no byte is read until it is used.

    Raises:
        ArtifactError: a weight file is missing, or is not the one that was exported.
    """

    def __init__(self, artifact: Path, manifest: Manifest) -> None:
        self._tensors = manifest.tensors
        places = (artifact / "weights", Path(manifest.checkpoint))
        self._maps = {entry.name: _map(entry, places) for entry in manifest.files}
        self.paths = {name: Path(str(raw.filename)) for name, raw in self._maps.items()}  # checked files, by name

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor in its stored dtype and shape."""
        entry = self._tensors[name]
        raw = self._maps[entry.file][entry.offset : entry.offset + entry.nbytes]
        return raw.view(BY_STORED[entry.dtype].numpy).reshape(entry.shape)


def _map(entry: FileEntry, places: tuple[Path, ...]) -> np.memmap:
    path = next((place / entry.name for place in places if (place / entry.name).exists()), None)
    if path is None:
        raise ArtifactError(
            f"weight file {entry.name} is missing",
            " or ".join(str(place / entry.name) for place in places),
            "restore the checkpoint, or export it again",
        )
    raw = np.memmap(path, np.uint8, mode="r")
    if len(raw) != entry.size or header_sha256(raw) != entry.header_sha256:
        raise ArtifactError(f"{path} is not the file that was exported", "the same size and header", "export it again")
    return raw
