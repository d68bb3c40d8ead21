"""The manifest: the only thing the runtime knows about an export."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from deltart.errors import ConfigError
from deltart.files import write_atomically
from deltart.folders import Marker
from deltart.identity import Identity
from deltart.json_files import read_json

FORMAT = 3
FILE_NAME, DIGEST = "manifest.json", "sha256"
WRITTEN_BY, AGAIN = "a folder written by `deltart export`", "export again"
# Inputs of a text graph for rows of the vision tower; of an engine's plans prefill's have them.
MEDIA_INPUTS = ("vision_embeds", "vision_index")
WITHOUT_TOWER = ("native",)  # targets
SEEING = "tensorrt-seeing"  # one more of a text graph's files: target "tensorrt" with MEDIA_INPUTS, for prefill
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
    """One graph: its ONNX file per target ("portable", "ort", "tensorrt"), border, states and the weights it reads.

    `sha256` has the files' hashes, by target too; `Manifest.save` fills it in.
    """

    files: Mapping[str, str]
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    states: list[StateEntry]
    weights: list[str]
    sha256: Mapping[str, str] = field(default_factory=dict)


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


Int4Activations = Literal["exact", "int8"]


@dataclass(frozen=True)
class FileEntry:
    """One safetensors file; the header hash fixes every tensor's name, dtype, shape and offset, `identity` the rest."""

    name: str
    size: int
    header_sha256: str
    identity: Identity


@dataclass(frozen=True)
class VisionEntry:
    """How pictures and videos become patches, and patches rows of the graph `graph` (shared by export and runtime).

    `image_pixels` and `video_pixels` are the smallest and largest count after resizing (a video's over all its
    frames); `frame_cap` limits one frame's share of a video, as the vendor's helper package does. `fps`, `min_frames`
    and `max_frames` sample a video. `wrapper` says what stands around a video's frames: "kept" leaves the template's
    outer pair of start and end (transformers since 5.10), "replaced" takes it out (4.57). `tokens` has the ids of
    vision_start, vision_end, image_pad and video_pad. One call of the graph takes at most `max_patches` patches, over
    all its frames. The position table has `grid_side` x `grid_side` rows; rotary angles are of `head_dim` and
    `rope_theta`.
    """

    graph: str
    patch: int
    temporal_patch: int
    merge: int
    image_pixels: tuple[int, int]
    video_pixels: tuple[int, int]
    frame_cap: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str
    fps: float
    min_frames: int
    max_frames: int
    wrapper: str
    tokens: Mapping[str, int]
    max_patches: int
    hidden: int
    out: int
    grid_side: int
    head_dim: int
    rope_theta: float


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
    vision: VisionEntry | None = None
    int4_activations: Int4Activations = "exact"  # how target `ort` multiplies packed weights
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def graphs_on(self, target: str) -> Mapping[str, GraphEntry]:
        """The graphs that engines of `target` are built of: the vision tower's has no native kernels."""
        without = self.vision.graph if self.vision and target in WITHOUT_TOWER else None
        return {name: graph for name, graph in self.graphs.items() if name != without}

    def save(self, folder: Path) -> None:
        """Write `folder`/manifest.json atomically, with the hashes of the graphs that `folder` holds, and its own."""
        graphs = {name: replace(graph, sha256=_hashes(folder, graph)) for name, graph in self.graphs.items()}
        content = asdict(replace(self, graphs=graphs))
        text = json.dumps(content | {DIGEST: digest(content)}, indent=1) + "\n"
        write_atomically(folder / FILE_NAME, text.encode())


def written_files(folder: Path) -> list[str] | None:
    """Patterns of every path that deltart writes into the artifact `folder`; None where `folder` is no artifact.

    It is one when its manifest names deltart's version, a format and what an export holds; which version and which
    format do not matter, and nor does whether the artifact still works.
    """
    try:
        raw = read_json(folder / FILE_NAME)
        if not isinstance(raw["format"], int) or "deltart" not in raw["versions"] or not raw["tensors"].keys():
            return None
        graphs = [glob.escape(name) for name in raw["graphs"]]
        named = [*raw["text_files"], *(f"weights/{file['name']}" for file in raw["files"])]
        named += [file for graph in raw["graphs"].values() for file in graph["files"].values()]
        return [FILE_NAME, *ADDED, *map(glob.escape, named), *(f"{graph}.*.onnx" for graph in graphs)]
    except (ConfigError, KeyError, TypeError, AttributeError):
        return None


def _hashes(folder: Path, graph: GraphEntry) -> dict[str, str]:
    there = {target: folder / file for target, file in graph.files.items() if (folder / file).is_file()}
    return {**graph.sha256, **{t: hashlib.sha256(path.read_bytes()).hexdigest() for t, path in there.items()}}


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content, however it is laid out; the checkpoint may have moved."""
    kept = {name: value for name, value in content.items() if name != "checkpoint"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


ARTIFACT = Marker("an artifact", FILE_NAME, written_files)
