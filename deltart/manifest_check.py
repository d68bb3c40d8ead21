"""What a manifest may say: names that are names, places inside files, axes and types that the runtime knows."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from deltart.dtypes import BY_NAME, BY_STORED
from deltart.errors import ArtifactError
from deltart.json_files import shown
from deltart.manifest import FileEntry, GraphEntry, Manifest, StateEntry, TensorEntry, VisionEntry, WeightEntry

MAX_SIZE = 2**31 - 1  # of a size that native code counts with
MAX_BYTES = 2**63 - 1
SHA256 = re.compile(r"[0-9a-f]{64}")
FATES = ("bound", "deferred")
WRAPPERS = ("kept", "replaced")
VISION_TOKENS = ("vision_start", "vision_end", "image_pad", "video_pad")
STATE_AXES = ("B", "capacity")
AXIS = re.compile(r"[A-Za-z]\w*")


def check(manifest: Manifest, path: Path) -> None:
    """Raises ArtifactError, naming the entry, where the manifest at `path` says what no export writes."""
    try:
        _check(manifest)
    except _WrongError as error:
        raise ArtifactError(f"{path}: {error}", "a manifest as `deltart export` writes it", "export again") from None


class _WrongError(ValueError):
    """The entry that is wrong, and what it says."""


def _check(manifest: Manifest) -> None:
    _demand("max_context", manifest.max_context, 1 <= manifest.max_context <= MAX_SIZE)
    _demand("vocab_size", manifest.vocab_size, 1 <= manifest.vocab_size <= MAX_SIZE)
    _demand("graphs", list(manifest.graphs), "model" in manifest.graphs)
    _distinct("files", (file.name for file in manifest.files))
    for name in manifest.text_files:
        _demand("text_files", name, _is_name(name))
    sizes = {file.name: file.size for file in manifest.files}
    for file in manifest.files:
        _check_file(file)
    for name, tensor in manifest.tensors.items():
        _check_tensor(f"tensors {shown(name)}", tensor, sizes.get(tensor.file, -1))
    if manifest.vision is not None:
        _check_vision(manifest.vision, manifest)
    for name, graph in manifest.graphs.items():
        _check_graph(f"graphs {shown(name)}", graph, manifest)


def _check_file(file: FileEntry) -> None:
    _demand("files", file.name, _is_name(file.name))
    _demand(f"size of {file.name}", file.size, 8 <= file.size <= MAX_BYTES)
    _demand(f"header_sha256 of {file.name}", file.header_sha256, bool(SHA256.fullmatch(file.header_sha256)))


def _check_tensor(where: str, tensor: WeightEntry, file_size: int) -> None:
    _demand(f"{where}: fate", tensor.fate, tensor.fate in FATES)
    _demand(f"{where}: file", tensor.file, file_size >= 0)
    _demand(f"{where}: shape", tensor.shape, all(0 <= size <= MAX_SIZE for size in tensor.shape))
    inside = 0 <= tensor.nbytes <= file_size - tensor.offset and tensor.offset >= 0
    _demand(f"{where}: offset and nbytes", [tensor.offset, tensor.nbytes], inside)
    if tensor.fate == "bound":
        _demand(f"{where}: dtype", tensor.dtype, tensor.dtype in BY_STORED)
        nbytes = math.prod(tensor.shape) * BY_STORED[tensor.dtype].itemsize
        _demand(f"{where}: nbytes", tensor.nbytes, tensor.nbytes == nbytes)


def _check_graph(where: str, graph: GraphEntry, manifest: Manifest) -> None:
    for target, file in graph.files.items():
        _demand(f"{where}: files {shown(target)}", file, _is_name(file))
    for tensor in [*graph.inputs, *graph.outputs]:
        _check_value(f"{where}: {shown(tensor.name)}", tensor, lambda axis: bool(AXIS.fullmatch(axis)))
    for state in graph.states:
        _check_value(f"{where}: {shown(state.name)}", state, lambda axis: axis in STATE_AXES)
        _demand(f"{where}: {shown(state.name)}: axes", state.axes, state.axes[:1] == ["B"])
    _distinct(f"{where}: inputs", [t.name for t in graph.inputs] + [s.name for s in graph.states] + graph.weights)
    _distinct(f"{where}: outputs", [t.name for t in graph.outputs] + [s.output for s in graph.states])
    for name in graph.weights:
        entry = manifest.tensors.get(name)
        _demand(f"{where}: weights", name, entry is not None and entry.fate == "bound")
    for output in graph.outputs:
        if output.name == "logits":
            _demand(f"{where}: logits", output.axes, bool(output.axes) and output.axes[-1] == manifest.vocab_size)


def _check_vision(vision: VisionEntry, manifest: Manifest) -> None:
    _demand("vision: graph", vision.graph, vision.graph in manifest.graphs)
    for name in ("patch", "temporal_patch", "merge", "max_frames", "max_patches", "hidden", "out", "grid_side"):
        _demand(f"vision: {name}", getattr(vision, name), 1 <= getattr(vision, name) <= MAX_SIZE)
    _demand("vision: min_frames", vision.min_frames, 1 <= vision.min_frames <= vision.max_frames)
    _demand("vision: head_dim", vision.head_dim, vision.head_dim > 0 and vision.head_dim % 4 == 0)
    for name in ("image_pixels", "video_pixels"):
        low, high = getattr(vision, name)
        _demand(f"vision: {name}", [low, high], 1 <= low <= high <= MAX_SIZE)
    _demand("vision: fps", vision.fps, math.isfinite(vision.fps) and vision.fps > 0)
    _demand("vision: rope_theta", vision.rope_theta, math.isfinite(vision.rope_theta) and vision.rope_theta > 1)
    numbers = [*vision.mean, *vision.std]
    _demand("vision: mean and std", numbers, all(map(math.isfinite, numbers)) and all(vision.std))
    _demand("vision: resample", vision.resample, vision.resample == "bicubic")
    _demand("vision: wrapper", vision.wrapper, vision.wrapper in WRAPPERS)
    _demand("vision: tokens", sorted(vision.tokens), sorted(vision.tokens) == sorted(VISION_TOKENS))
    for name, token in vision.tokens.items():
        _demand(f"vision: token {name}", token, 0 <= token < MAX_SIZE)


def _check_value(where: str, value: TensorEntry | StateEntry, is_named: Callable[[str], bool]) -> None:
    _demand(f"{where}: dtype", value.dtype, value.dtype in BY_NAME)
    for axis in value.axes:
        fits = is_named(axis) if isinstance(axis, str) else 1 <= axis <= MAX_SIZE
        _demand(f"{where}: axes", value.axes, fits)


def _is_name(text: str) -> bool:
    """Whether `text` is the name of a file in a folder, not a path out of it."""
    return text not in ("", ".", "..") and "/" not in text and "\0" not in text


def _distinct(where: str, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    _demand(where, twice[:1], not twice)


def _demand(where: str, value: object, holds: bool) -> None:
    if not holds:
        raise _WrongError(f"{where} is {shown(value)}")
