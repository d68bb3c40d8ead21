"""Reads what an artifact says of itself, and the graphs that it holds, checked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from deltart.errors import ArtifactError
from deltart.json_files import read_json, shown
from deltart.manifest import AGAIN, DIGEST, FILE_NAME, FORMAT, WRITTEN_BY, GraphEntry, Manifest, WeightEntry, digest
from deltart.manifest_check import check
from deltart.text_files import check_folder, read_bytes
from deltart.typed import typed


def load_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json.

    Raises:
        ArtifactError: it is absent, malformed or of another format version.
    """
    path = folder / FILE_NAME
    check_folder(folder, ArtifactError, WRITTEN_BY)
    if not os.path.lexists(path):
        raise ArtifactError(f"{folder} holds no {FILE_NAME}", WRITTEN_BY, "export a checkpoint there first")
    raw = read_json(path, ArtifactError, AGAIN)
    if raw.get("format") != FORMAT:
        found = f"{path} has format {shown(raw.get('format'))}"
        raise ArtifactError(found, f"format {FORMAT}", f"{AGAIN} with this version")
    stated, found = raw.pop(DIGEST, None), digest(raw)
    for part, kind in (("tensors", WeightEntry), ("graphs", GraphEntry)):
        entries = raw.get(part)
        if isinstance(entries, dict):
            where = f"{path}: {part}"
            raw[part] = {n: typed(e, kind, f"{where} {shown(n)}", ArtifactError, AGAIN) for n, e in entries.items()}
    manifest = typed(raw, Manifest, str(path), ArtifactError, AGAIN)
    check(manifest, path)
    if stated != found:
        raise ArtifactError(f"{path} was changed after it was written", "the manifest of an export or build", AGAIN)
    return manifest


def read_graph(folder: Path, manifest: Manifest, graph: str, target: str) -> bytes:
    """The ONNX file of a graph for a target, as it was exported.

    Raises:
        ArtifactError: there is none, or it is another.
    """
    entry = manifest.graphs.get(graph)
    if entry is None or target not in entry.files:
        raise ArtifactError(
            f"{folder} has no '{graph}' graph for target '{target}'",
            f"one of {', '.join(manifest.graphs)}",
            "export again, with the MTP head if the checkpoint has one",
        )
    path = folder / entry.files[target]
    content = read_bytes(path, ArtifactError)
    if hashlib.sha256(content).hexdigest() != entry.sha256.get(target):
        raise ArtifactError(f"{path} is not the graph that was exported", "the same bytes", AGAIN)
    return content
