"""Kept prefixes as files: a conversation goes on after a restart, and what memory has no room for.

A file is a safetensors file: the ids, the recurrent states, and the caches of all its blocks joined.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from deltart.errors import ArtifactError
from deltart.files import write_atomically
from deltart.manifest import Manifest
from deltart.runtime.backends.slots import Block, Snapshot
from deltart.runtime.backends.snapshots import MTP

FORMAT = "deltart.prefix.1"
SUFFIX = ".prefix.safetensors"


def model_name(manifest: Manifest) -> str:
    """Names weights, states and sizes: what a state depends on."""
    parts = [
        [[file.name, file.size, file.header_sha256] for file in manifest.files],
        {name: [asdict(state) for state in graph.states] for name, graph in manifest.graphs.items()},
        manifest.spec,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def write_prefix(path: Path, ids: np.ndarray, snapshot: Snapshot, model: str) -> None:
    """Write the state after ids int64 [n] to `path`, whole or not at all.

    Args:
        model: names the weights and graphs; a file of another model is refused.

    Raises:
        OSError: there is no room or no permission.
    """
    tensors = {"ids": np.asarray(ids, np.int64), "hidden": snapshot.hidden}
    tensors |= {f"recurrent.{name}": np.ascontiguousarray(array) for name, array in snapshot.recurrent.items()}
    for name in snapshot.blocks[0].caches if snapshot.blocks else ():
        tensors[f"cache.{name}"] = np.concatenate([block.caches[name] for block in snapshot.blocks], axis=1)
    metadata = {
        "format": FORMAT,
        "model": model,
        "blocks": json.dumps([[b.tokens, {n: a.shape[1] for n, a in b.caches.items()}] for b in snapshot.blocks]),
    }
    write_atomically(path, save(tensors, metadata))


def read_prefix(path: Path, model: str, mtp: bool) -> tuple[np.ndarray, Snapshot]:
    """The ids and the state of a file that `write_prefix` wrote.

    Args:
        mtp: whether the state of the MTP head is needed; an engine that never drafts keeps none.

    Raises:
        ArtifactError: it is no such file, is damaged, or is of another model.
    """
    try:
        with safe_open(str(path), "numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ArtifactError(f"{path} holds no saved prefix", f"a file in the format {FORMAT}")
            if metadata.get("model") != model:
                raise ArtifactError(
                    f"{path} was saved with another model", "a prefix of this artifact", "load it with its own artifact"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        if mtp and not any(name.startswith(f"cache.{MTP}") for name in tensors):
            raise ArtifactError(
                f"{path} was saved by an engine that makes no drafts",
                "a prefix with the state of the MTP head",
                "open the engine with 0 draft tokens, or save the prefix with drafts",
            )
        blocks = _cut(tensors, json.loads(metadata["blocks"]))
        recurrent = {n.removeprefix("recurrent."): a for n, a in tensors.items() if n.startswith("recurrent.")}
        return tensors["ids"], Snapshot(len(tensors["ids"]), recurrent, blocks, tensors["hidden"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} can't be read: {error}", "a file that was saved whole", "save it again") from None


def _cut(tensors: Mapping[str, np.ndarray], sizes: list[tuple[int, dict[str, int]]]) -> tuple[Block, ...]:
    begin = dict.fromkeys((n.removeprefix("cache.") for n in tensors if n.startswith("cache.")), 0)
    blocks = []
    for tokens, rows in sizes:
        caches = {n: tensors[f"cache.{n}"][:, at : at + rows[n]] for n, at in begin.items()}
        blocks.append(Block(tokens, caches))
        begin = {n: at + rows[n] for n, at in begin.items()}
    return tuple(blocks)
