"""Checkpoint folder in, artifact folder out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from deltart import manifest
from deltart.artifact import load_manifest
from deltart.errors import ExportError
from deltart.export.bound import bind
from deltart.export.check import check_graphs
from deltart.export.checkpoint import Checkpoint
from deltart.export.compressed_tensors import Int4Scheme
from deltart.export.describe import describe
from deltart.export.ledger import Ledger, ledger_of
from deltart.export.spec import ModelSpec, read_spec
from deltart.export.structure import settle
from deltart.export.targets import EXPORTED, EXPORTED_INT8, PORTABLE, write_graphs
from deltart.export.text import bring_text, check_text
from deltart.export.vision_settings import read_settings
from deltart.export.weights import WEIGHTS_FOLDER
from deltart.folders import staged
from deltart.plurals import counted

Log = Callable[[str], None]


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    max_context: int | None = None,
    yarn: float | None = None,
    mtp: bool = True,
    vision: bool = True,
    int4_activations: manifest.Int4Activations = "exact",
    overwrite: bool = False,
    log: Log = lambda step: None,
) -> manifest.Manifest:
    """Export `checkpoint` to the artifact folder `output`; no tensor is read or copied.

    Args:
        max_context: longest sequence the runtime may serve, in tokens; the model's own limit when None.
        yarn: static YaRN factor, or None for the checkpoint's own RoPE.
        mtp: whether to export the MTP head where the checkpoint has one.
        vision: whether to export the vision tower where the checkpoint has one.
        int4_activations: "int8" rounds what goes into packed int4 linears, on target `ort`: faster, not exact.
        overwrite: replace an artifact that is already there, with nothing in it that deltart did not write.
        log: called with a line for every step.

    Raises:
        ConfigError, CheckpointError: the input is broken or unsupported; nothing is written.
        ExportError: the options can't be served.
        OutputError: the output can't be written or must not be replaced; it is as it was.
    """
    spec = read_spec(checkpoint)
    if yarn is not None:
        spec = spec.with_yarn(yarn)
    if int4_activations == "int8" and not (spec.compressed and spec.compressed.has(Int4Scheme)):
        raise ExportError(
            "int8 activations asked for, of a checkpoint without int4 linears",
            "one that compressed-tensors packed",
            "leave int4_activations (--int4-activations) out",
        )
    context = _context(spec, max_context)
    lacks = check_text(checkpoint)
    tensors = Checkpoint(checkpoint)
    settled = settle(spec, tensors)
    size = f"{counted(len(tensors), 'tensor')} in {counted(len(tensors.files), 'file')}"
    log(f"{spec.architecture}: {counted(len(spec.layer_types), 'layer')}, {size}")
    for sentence in (*settled, *lacks):
        log(sentence)
    model = bind(settled.spec, tensors, mtp=mtp, vision=vision)
    ledger = ledger_of(model)
    tower = model.spec.vision if vision else None
    settings = read_settings(checkpoint, tower) if tower else None
    with staged(output, manifest.ARTIFACT, overwrite=overwrite, sources=[checkpoint]) as staging:
        graphs = write_graphs(model, EXPORTED_INT8 if int4_activations == "int8" else EXPORTED, staging, log)
        _link_weights(tensors, staging, log)
        log("checking the ONNX graphs")
        check_graphs(staging / graph.files[PORTABLE] for graph in graphs)
        text_files = bring_text(checkpoint, staging)
        describe(ledger, model, graphs, context, text_files, settings, int4_activations).save(staging)
    return load_manifest(output)


def account(spec: ModelSpec, tensors: Checkpoint, mtp: bool = True, vision: bool = True) -> Ledger:
    """The fate of every tensor; raises what stops an export before it traces or writes anything."""
    return ledger_of(bind(spec, tensors, mtp=mtp, vision=vision))


def _context(spec: ModelSpec, requested: int | None) -> int:
    limit = spec.context_limit
    if requested is None:
        return limit
    if not 1 <= requested <= limit:
        stretch = "rope_parameters.factor in config.json" if spec.rope.yarn else "yarn=FACTOR (--yarn FACTOR)"
        raise ExportError(
            f"a context of {requested} tokens", f"1 to {limit}, the model's limit", f"a larger one needs {stretch}"
        )
    return requested


def _link_weights(tensors: Checkpoint, staging: Path, log: Log) -> None:
    """Hard-link the vendor's files into the artifact, so that any runtime finds them; no byte is copied."""
    folder = staging / WEIGHTS_FOLDER
    folder.mkdir()
    for file in tensors.files:
        try:
            os.link((tensors.folder / file.name).resolve(), folder / file.name)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            log(f"{file.name} can't be hard-linked ({error.strerror}): deltart will map it from {tensors.folder}")
