"""Which tensors of the base model an adapter changes, and how: by name and shape, before a byte is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from deltart.dtypes import BF16, F16, F32
from deltart.errors import MergeError
from deltart.export.checkpoint import Checkpoint
from deltart.export.merge.adapter import VARIANTS, Adapter, Matrices
from deltart.export.spec import ModelSpec
from deltart.export.structure import EMBEDDING, HEAD_PREFIXES, MTP_PREFIXES, PREFIXES, VISION_PREFIXES
from deltart.safetensors import TensorInfo

FLOATS = tuple(dtype.stored for dtype in (BF16, F16, F32))
QUANTIZED_HINT = "merge into the original BF16 model, then quantize what comes of it: deltart calibrate"
EXPERTS = re.compile(r"\.experts(\.|$)")
FUSED = re.compile(r"\.(qkv_proj|gate_up_proj|in_proj_qkvz|in_proj_ba)\.weight")  # names of other implementations


@dataclass(frozen=True)
class Lora:
    """What is added to a weight [out, in], or to an embedding (`table`), which is the transpose of one.

    Attributes:
        a, b: [r, in] and [out, r].
        scaling: of B A.
        magnitude: [out], DoRA's: what the norm of every row is afterwards.
    """

    a: TensorInfo
    b: TensorInfo
    scaling: float
    magnitude: TensorInfo | None = None
    table: bool = False


@dataclass(frozen=True)
class Update:
    """One tensor of the base model and what becomes of it: `whole` takes its place, and `lora` is added."""

    tensor: TensorInfo
    whole: TensorInfo | None = None
    lora: Lora | None = None

    @property
    def kind(self) -> str:
        """What it is called in the record of a merge."""
        if self.lora is None:
            return "whole"
        return "embedding" if self.lora.table else "dora" if self.lora.magnitude else "lora"


def updates_of(adapter: Adapter, spec: ModelSpec, base: Checkpoint) -> dict[str, Update]:
    """What `adapter` changes of `base`, by tensor, in the order of the base. `spec` is settled by the base's tensors.

    Raises:
        MergeError: naming it, for the first part of the adapter that does not fit the base.
    """
    found = _Fit(adapter, spec, base).updates()
    return {name: found[name] for name in base if name in found}


def left_out(adapter: Adapter, updates: dict[str, Update], spec: ModelSpec, base: Checkpoint) -> list[str]:
    """Linears that the config targets and the adapter has nothing for, the MTP head's aside: they stay as they are."""
    ends = tuple(f".{target}.weight" for target in adapter.config.target_modules)
    return [
        name
        for name, info in base.items()
        if len(info.shape) == 2
        and name not in updates
        and not name.startswith(spec.mtp_prefix)
        and f".{name}".endswith(ends)
    ]


class _Fit:
    """An adapter held against a base model."""

    def __init__(self, adapter: Adapter, spec: ModelSpec, base: Checkpoint) -> None:
        self.adapter, self.spec, self.base = adapter, spec, base
        name = adapter.config.base_model
        self.origin = f"it was trained on '{name}'" if name else "the adapter does not name its base"

    def updates(self) -> dict[str, Update]:
        """Every update by its tensor; raises as `updates_of` does."""
        found: dict[str, Update] = {}
        said: dict[str, str] = {}
        for name, info in self.adapter.whole.items():
            tensor = self.tensor(name, name, said)
            self.check_whole(info, tensor)
            found[tensor.name] = Update(tensor, info)
        said = {}
        for module, matrices in self.adapter.matrices.items():
            tensor = self.tensor(f"{module}.weight", module, said)
            whole = found[tensor.name].whole if tensor.name in found else None
            found[tensor.name] = Update(tensor, whole, self.lora(module, matrices, tensor))
        if not found:
            raise MergeError(f"the adapter in {self.adapter.folder} holds no tensors", "LoRA of one linear at least")
        self.check_saved()
        return found

    def tensor(self, name: str, part: str, said: dict[str, str]) -> TensorInfo:
        """The base's tensor that the adapter calls `name`; `said` collects which part of it changes which tensor."""
        own, spec, folder = _base_name(name, self.spec), self.spec, self.base.folder
        if spec.tie_word_embeddings and own in (f"{spec.text_prefix}{EMBEDDING}", f"{spec.head_prefix}weight"):
            raise MergeError(
                f"the adapter changes '{part}', and {folder} ties its output head to its embedding",
                "a base with a head of its own",
                "save the base untied (tie_word_embeddings false, the head a copy of the embedding), merge into that",
            )
        if own not in self.base:
            near = get_close_matches(own, list(self.base), 1, cutoff=0)
            raise MergeError(
                f"the adapter changes '{part}', and {folder} has no '{own}'",
                f"names of its tensors{f', such as {near[0]!r}' if near else ''}",
                self.unknown(own),
            )
        if said.setdefault(own, part) != part:
            raise MergeError(f"the adapter changes '{own}' twice, as '{said[own]}' and as '{part}'", "one of them")
        if self.base[own].dtype not in FLOATS:
            raise MergeError(f"'{own}' is stored as {self.base[own].dtype}", " or ".join(FLOATS), QUANTIZED_HINT)
        return self.base[own]

    def unknown(self, name: str) -> str:
        """The hint for a tensor that the base has not."""
        layer = re.search(r"\.layers\.(\d+)\.", name)
        layers = len(self.spec.layer_types)
        if EXPERTS.search(name):
            return VARIANTS["target_parameters"]
        if FUSED.search(name):
            return "it was trained on fused linears, which transformers has apart: PEFT does not load it either"
        if layer and int(layer[1]) >= layers and name.startswith(f"{self.spec.text_prefix}layers."):
            return f"another model, as the base has {layers} layers; {self.origin}"
        return f"merge it into the model that it was trained on; {self.origin}"

    def check_whole(self, info: TensorInfo, tensor: TensorInfo) -> None:
        """Raises MergeError unless the adapter's tensor can take the place of the base's."""
        hint = f"a vocabulary that was resized must be resized in the base first; {self.origin}"
        self.check_shape(info, tensor.shape, tensor, hint)

    def lora(self, module: str, found: Matrices, tensor: TensorInfo) -> Lora:
        """What the adapter holds of `module`, whose weight is `tensor`; raises MergeError where it does not fit."""
        if found.a is None or found.b is None:
            lacks = "lora_A" if found.a is None else "lora_B"
            raise MergeError(f"the adapter has no {lacks} of '{module}'", "lora_A and lora_B", "save the adapter again")
        if len(tensor.shape) != 2:
            place = f"the adapter has LoRA of '{module}', whose weight is {list(tensor.shape)}"
            raise MergeError(place, "LoRA of linears and embeddings: matrices", "merge it with PEFT")
        rank = self.adapter.config.rank(module)
        rows, columns = tensor.shape[::-1] if found.table else tensor.shape
        hint = f"another base, or other ranks than r and rank_pattern say; {self.origin}"
        self.check_shape(found.a, (rank, columns), tensor, hint)
        self.check_shape(found.b, (rows, rank), tensor, hint)
        if self.adapter.config.use_dora:
            self.check_magnitude(module, found, tensor)
        elif found.magnitude is not None:
            place = f"'{found.magnitude.name}' is DoRA's, and use_dora is false"
            raise MergeError(place, "an adapter of one kind", "set use_dora in adapter_config.json to true")
        return Lora(found.a, found.b, self.adapter.config.scaling(module), found.magnitude, found.table)

    def check_magnitude(self, module: str, found: Matrices, tensor: TensorInfo) -> None:
        """Raises MergeError unless DoRA's magnitudes are there, one for each row."""
        if found.table:
            hint = "merge it with PEFT: its magnitudes are those of columns, over all rows"
            raise MergeError(f"the adapter has DoRA of the embedding '{module}'", "DoRA of linears", hint)
        if found.magnitude is None:
            expected = f"'{module}.lora_magnitude_vector'"
            raise MergeError(f"use_dora is true, and '{module}' has no magnitudes", expected, "save the adapter again")
        self.check_shape(found.magnitude, tensor.shape[:1], tensor, self.origin)

    def check_shape(self, info: TensorInfo, shape: tuple[int, ...], tensor: TensorInfo, hint: str) -> None:
        """Raises MergeError unless the adapter's tensor has this shape and a type of numbers."""
        if info.dtype not in FLOATS:
            raise MergeError(f"'{info.name}' is stored as {info.dtype}", " or ".join(FLOATS), "save the adapter so")
        if info.shape == shape:
            return
        if 0 in info.shape or len(info.shape) != len(shape):
            hint = "a part of a sharded training (ZeRO-3, FSDP): gather the weights before saving the adapter"
        place = f"'{tensor.name}' of {self.base.folder} is {list(tensor.shape)}"
        raise MergeError(f"'{info.name}' has shape {list(info.shape)}, and {place}", f"{list(shape)}", hint)

    def check_saved(self) -> None:
        """Raises MergeError where the adapter lacks what its config says it holds whole."""
        for module in self.adapter.config.modules_to_save:
            own = re.compile(rf"(.*\.)?{re.escape(module)}\..*")
            if any(own.fullmatch(name) for name in self.base) and not any(map(own.fullmatch, self.adapter.whole)):
                place = f"modules_to_save names '{module}', and the adapter holds no tensor of it"
                raise MergeError(place, f"'{module}' whole", "save the adapter again")


def _base_name(name: str, spec: ModelSpec) -> str:
    """A tensor's name under the base's own prefixes: the adapter has those of the class that was trained."""
    homes = (
        (VISION_PREFIXES, spec.vision_prefix),
        (MTP_PREFIXES, spec.mtp_prefix),
        (HEAD_PREFIXES, spec.head_prefix),
        (PREFIXES, spec.text_prefix),
    )
    for prefixes, own in homes:
        for prefix in sorted(prefixes, key=len, reverse=True):
            if name.startswith(prefix):
                return own + name.removeprefix(prefix)
    return name
