"""The manifest: the only thing the runtime knows about an export."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltart.errors import ArtifactError
from deltart.files import write_atomically
from deltart.folders import Marker

FORMAT = 2
FILE_NAME = "manifest.json"
# What later commands add: build, verify, and the runtime's caches of compiled kernels.
ADDED = ("report.html", "report.json", *(f"engine/*/*.{suffix}" for suffix in ("plan", "json", "cache", "kernels")))


def shape_of(axes: Iterable[str | int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor with these axes, named ones of the given sizes."""
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in axes)


@dataclass(frozen=True)
class TensorEntry:
    """A graph input or output. Named axes are dynamic: B slots, T tokens, L logit rows, capacity cache rows."""

    name: str
    dtype: str
    axes: list[str | int]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape in a call of these sizes."""
        return shape_of(self.axes, sizes)


@dataclass(frozen=True)
class StateEntry:
    """A state: read from graph input `name`, written to graph output `output`.

    `in_place` lists the targets on which both may be bound to one buffer.
    """

    name: str
    output: str
    dtype: str
    axes: list[str | int]
    in_place: list[str]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape for `sizes` of B (slots) and capacity (cache rows)."""
        return shape_of(self.axes, sizes)


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its ONNX file per target ("portable", "ort", "tensorrt"), border, states and the weights it reads."""

    files: Mapping[str, str]
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    states: list[StateEntry]
    weights: list[str]


@dataclass(frozen=True)
class WeightEntry:
    """Fate and place of one checkpoint tensor: "bound" to graphs, or "deferred" with the reason.

    A region of a file that is bound as one stands for `tensors` of the checkpoint.
    """

    fate: str
    dtype: str
    shape: list[int]
    file: str
    offset: int
    nbytes: int
    reason: str = ""
    tensors: int = 1


@dataclass(frozen=True)
class FileEntry:
    """One safetensors file; the header hash fixes every tensor's name, dtype, shape and offset."""

    name: str
    size: int
    header_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What was exported, from what, and how to bind it. Written last, so an artifact with one is complete."""

    architecture: str
    checkpoint: str
    files: list[FileEntry]
    spec: Mapping[str, Any]
    max_context: int
    vocab_size: int
    graphs: Mapping[str, GraphEntry]
    tensors: Mapping[str, WeightEntry]
    text_files: list[str]
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        """Write `folder`/manifest.json atomically."""
        write_atomically(folder / FILE_NAME, (json.dumps(asdict(self), indent=1) + "\n").encode())


def load_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json.

    Raises:
        ArtifactError: it is absent, malformed or of another format version.
    """
    path = folder / FILE_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ArtifactError(
                f"{path} has format {raw['format']}", f"format {FORMAT}", "export again with this version"
            )
        raw["files"] = [FileEntry(**f) for f in raw["files"]]
        raw["tensors"] = {name: WeightEntry(**t) for name, t in raw["tensors"].items()}
        raw["graphs"] = {name: _graph(g) for name, g in raw["graphs"].items()}
        return Manifest(**raw)
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} holds no {FILE_NAME}", "a folder written by 'deltart export'", "export a checkpoint there first"
        ) from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is not a manifest of this version ({error})", hint="export again") from None


def written_files(folder: Path) -> list[str] | None:
    """Patterns of every path that deltart writes into the artifact `folder`; None where `folder` is no artifact.

    It is one when its manifest names deltart's version, a format and what an export holds; which version and which
    format do not matter, and nor does whether the artifact still works.
    """
    try:
        raw = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        if not isinstance(raw["format"], int) or "deltart" not in raw["versions"] or not raw["tensors"].keys():
            return None
        graphs = [glob.escape(name) for name in raw["graphs"]]
        named = [*raw["text_files"], *(f"weights/{file['name']}" for file in raw["files"])]
        named += [file for graph in raw["graphs"].values() for file in graph["files"].values()]
        return [FILE_NAME, *ADDED, *map(glob.escape, named), *(f"{graph}.*.onnx" for graph in graphs)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _graph(raw: dict[str, Any]) -> GraphEntry:
    return GraphEntry(
        files=raw["files"],
        inputs=[TensorEntry(**t) for t in raw["inputs"]],
        outputs=[TensorEntry(**t) for t in raw["outputs"]],
        states=[StateEntry(**s) for s in raw["states"]],
        weights=raw["weights"],
    )


ARTIFACT = Marker("an artifact", FILE_NAME, written_files)
