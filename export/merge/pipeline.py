"""Base checkpoint and adapter folder in, merged checkpoint folder out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltart.errors import CheckpointError, DeltaRTError, MergeError
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.ledger import ledger_of
from deltart.export.merge.adapter import CONFIG, WEIGHTS, Adapter, read_adapter
from deltart.export.merge.updates import QUANTIZED_HINT, Update, left_out, updates_of
from deltart.export.merge.weights import merged, one_thread
from deltart.export.spec import ModelSpec, read_spec
from deltart.export.text import FILES, TEMPLATES
from deltart.folders import Marker
from deltart.json_files import read_json
from deltart.plurals import counted
from deltart.safetensors import TensorInfo
from deltart.staging import OutputFile, Staging, Work, sha256_of, staged
from deltart.typed import typed
from deltart.version import __version__

Log = Callable[[str], None]
Progress = Callable[[float], None]

RECORD = "merge.json"
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx")  # not of the merged model
TEXT_FILES = tuple(name for name in FILES if name not in ("config.json", "generation_config.json"))


@dataclass(frozen=True)
class MergeRecord:
    """What was merged into what: the content of RECORD.

    Attributes:
        adapter: SHA-256 of the adapter's weights and of its config.
        base_model: the base by the name that the adapter's config gives it.
        weights: by tensor, how it came about: "lora", "dora", "embedding", "whole".
        files: every other path of the folder.
    """

    adapter: Mapping[str, str]
    base_model: str
    weights: Mapping[str, str]
    files: Sequence[str]
    notes: Sequence[str] = ()

    def counts(self) -> Counter[str]:
        """How many tensors came about how."""
        return Counter(self.weights.values())


def written(folder: Path) -> list[str] | None:
    """The paths that a merge wrote into `folder`; None where it wrote none."""
    try:
        files = typed(read_json(folder / RECORD), MergeRecord, RECORD).files
    except DeltaRTError:
        return None
    return [*files, RECORD]


MERGE = Work(
    noun="merge",
    folder=".merge",
    marker=Marker("a merged checkpoint", RECORD, written),
    error=MergeError,
    order="the same base, adapter and version",
)


def merge(
    base: Path,
    adapter: Path,
    output: Path,
    *,
    overwrite: bool = False,
    log: Log = lambda line: None,
    progress: Progress = lambda share: None,
) -> MergeRecord:
    """Write `base` with the LoRA adapter in the folder `adapter` merged, as PEFT's merge_and_unload does, to `output`.

    Every file of the base comes along, weight files without a merged tensor and large others as hard links. Weights
    pass through memory in blocks. A run that was killed goes on where it was when started again.

    Args:
        overwrite: replace a merged checkpoint that is already there, with nothing in it that deltart did not write.
        log: called with a line for every step.
        progress: called with the share of the bytes to merge that is done.

    Raises:
        ConfigError, CheckpointError: the base is broken, unsupported or quantized, or the adapter's files are broken.
        MergeError: the adapter can't be merged or does not fit the base, or the output can't be written.
        OutputError: the output is in use, or must not be replaced.
    """
    spec, tensors = _open(base)
    found = read_adapter(adapter)
    updates = updates_of(found, spec, tensors)
    notes = list(_notes(found, updates, spec, tensors))
    files = list(_files(tensors, updates))
    digests = {name: sha256_of(adapter / name) for name in (WEIGHTS, CONFIG)}
    staging = Staging(output, files, _order(tensors, digests), MERGE, overwrite=overwrite, sources=(base, adapter))
    with staged(staging):
        done = f", {len(staging.done)} of them done before" if staging.done else ""
        log(f"{counted(len(updates), 'tensor')} of {len(tensors)} to merge{done}")
        for note in notes:
            log(note)
        _merge_all(updates, tensors, found, staging, progress)
        log("copying what stays as it is")
        staging.copy_rest(base, tensors, skip=updates)
        brought = _bring(base, tensors, staging)
        record = MergeRecord(
            adapter=digests,
            base_model=found.config.base_model,
            weights={name: update.kind for name, update in updates.items()},
            files=sorted([*brought, *(file.name for file in files)]),
            notes=notes,
        )
        (staging.folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    return record


def _open(base: Path) -> tuple[ModelSpec, Checkpoint]:
    quantization = read_json(base / "config.json").get("quantization_config")
    if quantization is not None:
        kind = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(f"{base} is quantized (quant_method '{kind}')", "a BF16, F16 or F32 base", QUANTIZED_HINT)
    tensors = Checkpoint(base)
    model = bind(read_spec(base), tensors)
    ledger_of(model)
    return model.spec, tensors


def _order(tensors: Checkpoint, digests: Mapping[str, str]) -> dict[str, Any]:
    """What determines the output's bytes; the names are for people."""
    stamps = [(tensors.folder / file.name).stat().st_mtime_ns for file in tensors.files]
    return {
        "base": [[asdict(file), stamp] for file, stamp in zip(tensors.files, stamps, strict=True)],
        "adapter": dict(digests),
        "version of deltart": __version__,
    }


def _files(tensors: Checkpoint, updates: Mapping[str, Update]) -> Iterator[OutputFile]:
    """The base's files: their headers stay, since no merge changes a name, a type or a shape."""
    infos: dict[str, dict[str, TensorInfo]] = {file.name: {} for file in tensors.files}
    for name, info in tensors.items():
        infos[info.file][name] = info
    for file in tensors.files:
        own = infos[file.name]
        if updates.keys().isdisjoint(own):
            yield OutputFile(file.name, b"", {}, file.size, linked=True)
        else:
            start = min(info.offset for info in own.values())
            with (tensors.folder / file.name).open("rb") as source:
                yield OutputFile(file.name, source.read(start), own, file.size, linked=False)


def _merge_all(
    updates: Mapping[str, Update], base: Checkpoint, adapter: Adapter, staging: Staging, progress: Progress
) -> None:
    total, done = sum(update.tensor.nbytes for update in updates.values()), 0
    with one_thread():
        for name, update in updates.items():
            if name not in staging.done:
                staging.store(name, {name: merged(update, base, adapter.tensors)}, {})
            done += update.tensor.nbytes
            progress(done / total)


def _notes(adapter: Adapter, updates: dict[str, Update], spec: ModelSpec, base: Checkpoint) -> Iterator[str]:
    """What is worth knowing, a sentence each."""
    config, left = adapter.config, left_out(adapter, updates, spec, base)
    if config.unknown:
        yield f"{CONFIG} has fields that are not PEFT's, which are left aside: {', '.join(config.unknown)}"
    if left:
        yield f"the adapter has nothing for {counted(len(left), 'linear')} that it targets, such as {left[0]}"
    for name in TEXT_FILES:
        own, other = base.folder / name, adapter.folder / name
        if other.is_file() and (not own.is_file() or own.read_bytes() != other.read_bytes()):
            yield f"{name} of the adapter differs from the base's, which is the one that is carried over"
    for path in _other_weights(base):
        yield f"{path.name} holds weights of the base alone, and is not carried over"


def _other_weights(base: Checkpoint) -> list[Path]:
    own = {file.name for file in base.files}
    return sorted(p for p in base.folder.iterdir() if p.suffix in OTHER_WEIGHTS and p.name not in own)


def _bring(base: Path, tensors: Checkpoint, staging: Staging) -> list[str]:
    """Carry over all that is no weights: tokenizer, templates, settings, index; returns the paths."""
    own = {file.name for file in tensors.files} | {path.name for path in _other_weights(tensors)} | {RECORD}
    paths = [path for path in base.iterdir() if path.is_file() and path.name not in own and path.name[0] != "."]
    paths += (base / TEMPLATES).glob("*.jinja")
    names = [str(path.relative_to(base)) for path in sorted(paths)]
    for name in names:
        (staging.folder / name).parent.mkdir(exist_ok=True)
        staging.bring(base / name, name)
    return names
