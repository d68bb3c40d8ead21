"""What the checkpoint's tensors say about the model where config.json leaves it open or is out of date.

Trainers save the same model under several names: a text model with the wrapper's prefixes and the other way round,
without its MTP head, with an output head of its own beside a config that ties it. The tensors decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from deltart.errors import CheckpointError
from deltart.export.checkpoint import Checkpoint
from deltart.export.regions import PACKED
from deltart.export.spec import ModelSpec

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
PREFIXES = ("model.language_model.", "model.", "language_model.model.", "language_model.", "")
MTP_PREFIXES = ("mtp.", "model.mtp.", "model.language_model.mtp.", "language_model.mtp.")
HEAD_PREFIXES = ("lm_head.", "language_model.lm_head.", "model.lm_head.", "model.language_model.lm_head.")
VISION_PREFIXES = ("model.visual.", "visual.")
CHUNK = 1 << 24  # bytes compared at once

# Prefixes of training frameworks, whose checkpoints hold what a framework needs rather than the model alone.
_WRAPPERS = {
    "base_model.model.": ("a PEFT model", "merge it: model.merge_and_unload().save_pretrained(folder)"),
    "module.": ("DistributedDataParallel", "save the model inside: model.module.save_pretrained(folder)"),
    "_orig_mod.": ("torch.compile", "save the model inside: model._orig_mod.save_pretrained(folder)"),
    "_fsdp_wrapped_module.": ("FullyShardedDataParallel", "save the full state dict of the model inside"),
    "_forward_module.": ("Lightning Fabric", "save the model inside: model.module.save_pretrained(folder)"),
    "student.": ("a distillation trainer", "save the student alone"),
}


@dataclass(frozen=True)
class Settled:
    """A spec that the checkpoint's tensors agree with.

    Attributes:
        notes: what is worth knowing, a sentence each.
        contradictions: what config.json says that the tensors do not bear out, a sentence each.
    """

    spec: ModelSpec
    notes: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        """All sentences."""
        return iter((*self.notes, *self.contradictions))


def settle(spec: ModelSpec, tensors: Checkpoint) -> Settled:
    """`spec` with the prefixes, tying and MTP head that the checkpoint has. Settling twice changes nothing.

    Raises:
        CheckpointError: the tensors have names of a training framework, or of two models.
    """
    _refuse_frameworks(tensors)
    settled = replace(spec, text_prefix=_text_prefix(spec, tensors), head_prefix=_head_prefix(tensors))
    notes, contradictions = [], []
    if settled.defaults:
        notes.append(f"config.json leaves out, and transformers takes: {', '.join(settled.defaults)}")
    if settled.mtp_num_hidden_layers:
        mtp = next((prefix for prefix in MTP_PREFIXES if any(name.startswith(prefix) for name in tensors)), None)
        settled = replace(settled, mtp_prefix=mtp or "mtp.", mtp_num_hidden_layers=1 if mtp else 0)
        if mtp is None:
            notes.append("config.json names an MTP head, but no tensor of one is there: exported without it")
    if settled.vision:
        tower = next((prefix for prefix in VISION_PREFIXES if any(name.startswith(prefix) for name in tensors)), None)
        settled = replace(settled, vision_prefix=tower or VISION_PREFIXES[0], vision=settled.vision if tower else None)
        if tower is None:
            notes.append("config.json names a vision tower, but no tensor of one is there: exported for text alone")
    if settled.tie_word_embeddings and _has_own_head(settled, tensors):
        settled = replace(settled, tie_word_embeddings=False)
        contradictions.append(
            f"config.json ties the output head to the embedding, but {settled.head_prefix}weight differs from it: "
            "the head in the file is used, as in transformers"
        )
    return Settled(settled, tuple(notes), tuple(contradictions))


def _text_prefix(spec: ModelSpec, tensors: Checkpoint) -> str:
    """The prefix under which the embedding is; the config's own where there is none, for the ledger to miss it."""
    found = sorted({name.removesuffix(EMBEDDING) for name in tensors if name.endswith(EMBEDDING)} & {*PREFIXES})
    others = sorted(
        name for name in tensors if name.endswith(f".{EMBEDDING}") and name.removesuffix(EMBEDDING) not in PREFIXES
    )
    if len(found) > 1:
        names = " and ".join(f"'{prefix}{EMBEDDING}'" for prefix in found)
        raise CheckpointError(f"the checkpoint holds {names}", "one text model", "save one of them alone")
    if not found and others:
        raise CheckpointError(
            f"the embedding is named '{others[0]}'",
            " or ".join(f"'{prefix}{EMBEDDING}'" for prefix in PREFIXES[:3]),
            "rename the tensors to the names that transformers writes",
        )
    return found[0] if found else spec.text_prefix


def _head_prefix(tensors: Checkpoint) -> str:
    found = [prefix for prefix in HEAD_PREFIXES if f"{prefix}weight" in tensors or f"{prefix}{PACKED}" in tensors]
    if len(found) > 1:
        names = " and ".join(f"'{prefix}weight'" for prefix in found)
        raise CheckpointError(f"the checkpoint holds {names}", "one output head", "save one of them alone")
    return found[0] if found else HEAD_PREFIXES[0]


def _has_own_head(spec: ModelSpec, tensors: Checkpoint) -> bool:
    """Whether a head is there that is no copy of the embedding."""
    head, embedding = tensors.get(f"{spec.head_prefix}weight"), tensors.get(f"{spec.text_prefix}{EMBEDDING}")
    if f"{spec.head_prefix}{PACKED}" in tensors:
        return True
    if head is None or embedding is None:
        return False
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return True
    files = [
        np.memmap(tensors.folder / info.file, np.uint8, "r", info.offset, info.nbytes) for info in (head, embedding)
    ]
    return not all(
        np.array_equal(files[0][at : at + CHUNK], files[1][at : at + CHUNK]) for at in range(0, head.nbytes, CHUNK)
    )


def _refuse_frameworks(tensors: Checkpoint) -> None:
    lora = next((name for name in tensors if ".lora_" in name or ".base_layer." in name), None)
    if lora is not None:
        raise CheckpointError(
            f"tensor '{lora}' belongs to a LoRA adapter",
            "a model with its adapter merged",
            "merge it: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)",
        )
    for name in tensors:
        for prefix, (framework, hint) in _WRAPPERS.items():
            if name.startswith(prefix):
                raise CheckpointError(
                    f"tensor names begin with '{prefix}' ({framework}), such as '{name}'",
                    "names that transformers writes, such as 'model.layers.0.input_layernorm.weight'",
                    hint,
                )
