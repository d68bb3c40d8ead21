"""Runs a checkpoint over calibration text one block at a time, so that only one block's weights are in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltart.calib.bodies import FastBodies
from deltart.calib.selection import block_key
from deltart.errors import CalibrationError
from deltart.export.checkpoint import Checkpoint
from deltart.export.graph import Block, ModelGraph, State
from deltart.export.layers import RMSNorm
from deltart.export.models.registry import graphs_of
from deltart.export.spec import ModelSpec
from deltart.export.weights import build_module, load_parameters

BATCH_TOKENS = 1024
VALIDATION = "validation"  # a value that marks batches which nothing may be fitted to
ALWAYS = {"input_ids", "position_ids", "past_len", "n_tokens"}  # values that are read beside the blocks
Values = dict[str, Tensor]  # a batch's tensors by the graph's value names


def batches_of(rows: Sequence[Sequence[int]]) -> list[Values]:
    """Token rows as right-padded batches of at most BATCH_TOKENS tokens (or one row), rows of like length together."""
    groups: list[list[Sequence[int]]] = []
    for row in sorted(rows, key=len):
        if not groups or len(row) * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(row)
    return [_batch(group) for group in groups]


def validation_batches(rows: Sequence[Sequence[int]]) -> list[Values]:
    """The same, marked as VALIDATION."""
    return [values | {VALIDATION: torch.tensor(True)} for values in batches_of(rows)]


def real_tokens(values: Values) -> Tensor:
    """Which positions [B, T] hold tokens rather than padding."""
    return torch.arange(values["input_ids"].shape[1]) < values["n_tokens"][:, None]


@dataclass
class LayerPass:
    """A layer with its weights, and the batches at its entrance. `current` is the batch that is running."""

    key: str
    block: Block
    module: nn.Module
    batches: list[Values]
    current: Values = field(default_factory=dict)

    def run(self, spent: Set[str] = frozenset()) -> None:
        """Take the batches through the layer; they lose the values `spent` on the way.

        Raises:
            CalibrationError: an output is not finite.
        """
        for values in self.batches:
            self.current = values
            results = run_block(self.block, self.module, values)
            values.update({name: results[name] for name in self.block.outputs})
            for name in spent:
                del values[name]
            if not all(bool(results[name].isfinite().all()) for name in self.block.outputs):
                raise CalibrationError(
                    f"block '{self.key}' of the checkpoint gives inf or NaN on the calibration text",
                    "finite activations",
                    "check the checkpoint: it can't be calibrated",
                )


def sweep(
    spec: ModelSpec, tensors: Checkpoint, batches: Sequence[Values], saved: Path | None = None
) -> Iterator[LayerPass]:
    """Every layer in turn, the MTP head's last; the caller runs it. The final normed state is value `hidden`.

    Args:
        saved: file that keeps the batches between layers; a sweep that finds it goes on where it was written.
    """
    done, batches = _resume(saved, batches)
    blocks = [(graph, block) for graph in graphs_of(spec, torch.float32, mtp=True) for block in graph.blocks]
    for number, (graph, block) in enumerate(blocks[done:], done + 1):
        if block.name == "embed":
            batches = _embed(graph, block, tensors, batches)
        elif block.name == "head":
            normalise(spec, tensors, batches)
        elif block.states:
            yield _step(block, spec, tensors, batches)  # no name here keeps its weights once the caller lets go
            if saved is not None:
                store(saved, {"step": number, "batches": list(batches)})
        else:
            later = {name for _, other in blocks[number:] for name in other.inputs}
            _step(block, spec, tensors, batches).run(spent=set(block.inputs) - later - ALWAYS)


def _step(block: Block, spec: ModelSpec, tensors: Checkpoint, batches: Sequence[Values]) -> LayerPass:
    module = build_module(block, spec, tensors).eval()
    load_parameters(module, block, tensors)
    return LayerPass(block_key(block), block, module, list(batches))


@torch.no_grad()
def run_block(block: Block, module: nn.Module, values: Values) -> Values:
    """The block's outputs and states of one batch, from empty states."""
    rows, length = values["input_ids"].shape
    states = [_empty(state, rows, length) for state in block.states]
    with FastBodies():
        results = module(*(values[name] for name in block.inputs), *states)
    results = results if isinstance(results, tuple) else (results,)
    return dict(zip([*block.outputs, *(state.name for state in block.states)], results, strict=True))


def _batch(rows: Sequence[Sequence[int]]) -> Values:
    length, counts = max(len(row) for row in rows), torch.tensor([len(row) for row in rows], dtype=torch.int32)
    return {
        "input_ids": torch.tensor([[*row, *[0] * (length - len(row))] for row in rows]),
        "position_ids": torch.arange(length).expand(3, len(rows), length),
        "past_len": torch.zeros(len(rows), dtype=torch.int32),
        "n_tokens": counts,
        "n_commit": counts,
    }


def _embed(graph: ModelGraph, block: Block, tensors: Checkpoint, batches: Sequence[Values]) -> list[Values]:
    """The batches at the graph's entrance. The MTP head reads the hidden state before each token but the first."""
    if "previous_hidden" in graph.inputs:
        batches = [_shifted(values) for values in batches if values["input_ids"].shape[1] > 1]
    table = tensors.read(block.tensor_name("embed_tokens.weight"))
    for values in batches:
        rows = table[values["input_ids"].numpy()].astype(np.float32)
        values[block.outputs[0]] = torch.from_numpy(rows)
    return list(batches)


def _shifted(values: Values) -> Values:
    ids = values["input_ids"][:, 1:]
    kept = {name: values[name] for name in (VALIDATION,) if name in values}
    return kept | {
        "input_ids": ids,
        "position_ids": values["position_ids"][:, :, 1:] - 1,
        "past_len": values["past_len"],
        "n_tokens": (values["n_tokens"] - 1).clamp(min=0),
        "previous_hidden": values["hidden"][:, :-1],
    }


def normalise(spec: ModelSpec, tensors: Checkpoint, batches: Sequence[Values]) -> None:
    """Replace `h` of batches that left the last text layer by the final normed state, `hidden`."""
    block = graphs_of(spec, torch.float32, mtp=False)[0].blocks[-1]
    norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
    weight = np.asarray(tensors.read(block.tensor_name("norm.weight"))).astype(np.float32)
    norm.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    for values in batches:
        values["hidden"] = norm(values.pop("h"))


def _empty(state: State, rows: int, length: int) -> Tensor:
    return torch.zeros(state.shape({"B": rows, "capacity": length}))


def store(path: Path, value: Any) -> None:
    """Write tensors to `path`, whole or not at all. Raises OSError when the disk refuses."""
    temporary = path.with_suffix(".new")
    try:
        torch.save(value, temporary)
    except RuntimeError as error:  # how torch reports a full disk
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} can't be written: {str(error).splitlines()[0]}") from None
    os.replace(temporary, path)


def _resume(path: Path | None, batches: Sequence[Values]) -> tuple[int, Sequence[Values]]:
    if path is None or not path.exists():
        return 0, [dict(values) for values in batches]
    kept = torch.load(path, weights_only=True)
    return kept["step"], kept["batches"]
