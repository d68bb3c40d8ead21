"""What is known of a built plan, without TensorRT: profiles, bindings, key, and the folder that holds plans."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from deltart.dtypes import BY_NAME, BY_ONNX
from deltart.errors import ArtifactError
from deltart.files import write_atomically
from deltart.json_files import read_json, shown
from deltart.manifest import MEDIA_INPUTS, GraphEntry, VisionEntry, shape_of
from deltart.typed import typed
from deltart.version import __version__

Flavour = Literal["rtx", "tensorrt", "native"]
# Of the block-FP8 linears in prefill; "auto": E4M3 on GPUs that multiply it, sm_89 and later.
Activations = Literal["bf16", "fp8", "auto"]
LmHead = Literal["bf16", "fp8"]  # how the LM head is held
FORMAT = 3
FILE_NAME = "engine.json"
AGAIN = "run `deltart build` again"
PHASES = ("decode", "speculate", "prefill")  # a plan each
FRAME = "frame"  # of the vision tower: one of a grid
CAPTURED = ("decode", "speculate")  # run as CUDA graphs
ROLES = ("input", "output", "state", "state_output", "weight")
SPECULATE_TOKENS = 8  # at most: the drafts of one step and the tokens they follow

LIKELY_PATCHES = 4096  # of a picture of a megapixel
PREFILL_ROWS = 16  # logit rows of one prefill call

Range = tuple[int, int, int]  # smallest, most likely, largest


@dataclass(frozen=True)
class Profile:
    """Sizes that one optimization profile of a plan serves, by dynamic axis."""

    axes: Mapping[str, Range]

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Whether a call of these sizes can run under this profile."""
        return all(self.axes[a][0] <= size <= self.axes[a][2] for a, size in sizes.items() if a in self.axes)


@dataclass(frozen=True)
class Binding:
    """A tensor at a plan's border; `role` is one of ROLES. FP8 weights are int8."""

    name: str
    role: str
    dtype: str
    axes: list[str | int]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape in a call of these sizes."""
        return shape_of(self.axes, sizes)

    @property
    def numpy(self) -> np.dtype[Any]:
        """Its element type."""
        return BY_NAME[self.dtype].numpy

    def nbytes(self, sizes: Mapping[str, int]) -> int:
        """Its size in bytes in a call of these sizes."""
        return math.prod(self.shape(sizes)) * BY_NAME[self.dtype].itemsize


@dataclass(frozen=True)
class PlanEntry:
    """One built plan: how to bind it and what it was made of."""

    file: str
    graph: str
    phase: str
    key: str
    sha256: str
    nbytes: int
    flavour: str
    library: str
    gpus: list[str]
    profile: Profile
    bindings: list[Binding]
    plugins: Mapping[str, int]
    onnx_sha256: str
    scratch_bytes: int
    seconds: float

    @cached_property
    def by_role(self) -> dict[str, list[Binding]]:
        """Bindings by role, in the plan's order."""
        return {role: [b for b in self.bindings if b.role == role] for role in ROLES}


@dataclass(frozen=True)
class QuantizedHead:
    """An LM head that is rounded to E4M3 once, when it is loaded, with a scale per row and 128 columns.

    Attributes:
        weight: the manifest's tensor; `codes` and `scale`, the weights that plans read in its place.
        relative_rms: ||W - W'|| / ||W||, the error of logits of hidden states that favour no direction, measured over
            `rows` of its rows; None where the weights were not at hand, or zeros.
    """

    weight: str
    codes: str
    scale: str
    relative_rms: float | None
    rows: int


@dataclass(frozen=True)
class EngineManifest:
    """The plans of one flavour of an artifact. Written last, so a folder with one is complete."""

    flavour: Flavour
    slots: int
    max_context: int
    chunk: int
    prefill_activations: Activations
    plans: Mapping[str, PlanEntry]
    command: str
    versions: Mapping[str, str] = field(default_factory=dict)
    lm_head: QuantizedHead | None = None  # None: as it is stored
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        """Write `folder`/engine.json atomically."""
        write_atomically(folder / FILE_NAME, (json.dumps(asdict(self), indent=1) + "\n").encode())


def profile(phase: str, slots: int, max_context: int, chunk: int) -> Profile:
    """The sizes that a phase's plan serves.

    Decode: all slots, a token each. Speculate: all slots, up to SPECULATE_TOKENS. Prefill: one slot, up to `chunk`.
    """
    capacity = (1, max_context, max_context)
    rows, one = (slots, slots, slots), (1, 1, 1)
    if phase == "decode":
        return Profile({"B": rows, "T": one, "L": one, "capacity": capacity})
    if phase == "speculate":
        drafts = (1, SPECULATE_TOKENS // 2, SPECULATE_TOKENS)
        return Profile({"B": rows, "T": drafts, "L": drafts, "capacity": capacity})
    return Profile({"B": one, "T": (1, chunk, chunk), "L": (1, 1, min(PREFILL_ROWS, chunk)), "capacity": capacity})


def seeing_profile(text: Profile) -> Profile:
    """Prefill's `text` with rows of the tower: as many in a call as it has tokens."""
    return Profile({**text.axes, "M": text.axes["T"]})


def frame_profile(vision: VisionEntry) -> Profile:
    """The sizes that the tower's plan serves: one frame, of as many patches as the graph takes."""
    block = vision.merge**2
    patches = (block, min(LIKELY_PATCHES, vision.max_patches), vision.max_patches)
    rows = tuple(count // block for count in patches)
    return Profile({"F": (1, 1, 1), "S": patches, "R": (rows[0], rows[1], rows[2])})


def read_binding(value: Any) -> Binding:
    """The binding, still without a role, of an ONNX graph's input or output (a ValueInfoProto)."""
    kind = value.type.tensor_type
    axes = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return Binding(value.name, "", BY_ONNX[kind.elem_type].name, axes)


def bindings(entry: GraphEntry, tensors: Iterable[Binding]) -> list[Binding]:
    """`tensors` of a lowered graph with the roles that the manifest gives them.

    Raises:
        ArtifactError: they are not exactly the manifest's inputs, outputs, states and weights, but for what only
            pictures need, which may be absent.
    """
    found = list(tensors)
    names = {t.name for t in found}
    roles = {t.name: "input" for t in entry.inputs if t.name in names or t.name not in MEDIA_INPUTS}
    roles |= {t.name: "output" for t in entry.outputs}
    roles |= {s.name: "state" for s in entry.states} | {s.output: "state_output" for s in entry.states}
    roles |= dict.fromkeys(entry.weights, "weight")
    odd = names ^ set(roles)
    if odd:
        raise ArtifactError(
            f"the lowered graph and the manifest disagree on {', '.join(sorted(odd)[:5])}",
            "the same inputs, outputs, states and weights",
            "export again with this version",
        )
    return [Binding(t.name, roles[t.name], t.dtype, t.axes) for t in found]


def plan_key(onnx_sha256: str, flavour: str, library: str, gpus: Sequence[str], chosen: Profile, plugins: str) -> str:
    """The name of a plan by what it depends on: graph, TensorRT, GPUs, profiles and `plugins`, the hash of the plugins'
    code. Not the weights."""
    parts = [onnx_sha256, flavour, library, list(gpus), asdict(chosen), __version__, plugins]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def engine_folder(artifact: Path, flavour: str) -> Path:
    """Where an artifact keeps its plans of `flavour`."""
    return artifact / "engine" / flavour


def load_engine(artifact: Path, flavour: str) -> EngineManifest:
    """Read an artifact's engine.json.

    Raises:
        ArtifactError: it is absent, malformed or of another version.
    """
    path = engine_folder(artifact, flavour) / FILE_NAME
    if not os.path.lexists(path):
        raise ArtifactError(
            f"{artifact} has no plans of flavour '{flavour}'",
            f"an engine.json at {path}",
            f"run `deltart build {artifact} --flavour {flavour}`",
        )
    raw = read_json(path, ArtifactError, AGAIN)
    if raw.get("format") != FORMAT:
        raise ArtifactError(f"{path} has format {shown(raw.get('format'))}", f"format {FORMAT}", AGAIN)
    return typed(raw, EngineManifest, str(path), ArtifactError, AGAIN)


def built_engines(artifact: Path) -> list[EngineManifest]:
    """Every engine of an artifact, one a flavour.

    Raises:
        ArtifactError: there is none, or one is malformed or of another version.
    """
    built = [flavour for flavour in get_args(Flavour) if os.path.lexists(engine_folder(artifact, flavour) / FILE_NAME)]
    if not built:
        folder = artifact / "engine"
        raise ArtifactError(f"{artifact} has no plans", f"plans in {folder}", f"run `deltart build {artifact}`")
    return [load_engine(artifact, flavour) for flavour in built]


def read_plan_entry(path: Path) -> PlanEntry:
    """The PlanEntry in a file beside a plan. Raises ArtifactError where there is none."""
    return typed(read_json(path, ArtifactError), PlanEntry, str(path), ArtifactError, AGAIN)
