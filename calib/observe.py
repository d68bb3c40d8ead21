"""Statistics of what flows into the linears and the KV cache, gathered block by block on calibration text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltart.calib.dataset import Dataset
from deltart.calib.forward import VALIDATION, LayerPass, batches_of, real_tokens, store, sweep, validation_batches
from deltart.calib.memory import release
from deltart.calib.selection import Site
from deltart.errors import CalibrationError
from deltart.export.checkpoint import Checkpoint
from deltart.export.spec import ModelSpec
from deltart.files import clear, write_atomically

# Widest column range whose second moments are kept together: bounds memory and work for wide inputs.
MAX_WIDTH = 4096
BAND = 1024  # moments are summed from the diagonal on, in bands of so many rows
SOURCE, BATCHES = "source.json", "batches.pt"


@dataclass
class InputStatistics:
    """Of one input.

    Attributes:
        moments: X^T X of X [tokens, K] by column range, float32.
        validation: inputs [tokens, K] that are not in `moments`, bfloat16.
        amax: the largest |x| of both.
        tokens: how many rows X has.
    """

    moments: list[Tensor]
    validation: Tensor
    amax: float
    tokens: int

    @property
    def importance(self) -> Tensor:
        """The second moment of each input [K], times tokens."""
        return torch.cat([H.diagonal() for H in self.moments])

    @property
    def rms(self) -> float:
        """Of x, over X."""
        width = sum(len(H) for H in self.moments)
        return math.sqrt(float(self.importance.double().sum()) / max(1, self.tokens * width))


@dataclass
class KvStatistics:
    """Largest |k| and |v| of each KV head, k after norm and RoPE: [num_kv_heads] each."""

    k: list[float]
    v: list[float]


@dataclass
class BlockStatistics:
    """Of one layer: inputs by the first module that reads them, and the KV cache if it has one."""

    inputs: dict[str, InputStatistics]
    kv: KvStatistics | None


class Statistics:
    """The folder that keeps one file per layer; usable again for the same checkpoint and text.

    Raises:
        CalibrationError: the folder holds statistics of another checkpoint or text.
    """

    def __init__(self, folder: Path, source: dict[str, Any], transient: bool) -> None:
        self.folder, self.transient = folder, transient
        folder.mkdir(parents=True, exist_ok=True)
        clear(folder)
        if any(folder.iterdir()) and _source(folder) != json.loads(json.dumps(source)):
            raise CalibrationError(
                f"{folder} holds something else than statistics of this checkpoint and text",
                "a new or empty folder, or those statistics",
                "choose another folder",
            )
        write_atomically(folder / SOURCE, json.dumps(source).encode())

    def gather(
        self,
        spec: ModelSpec,
        tensors: Checkpoint,
        dataset: Dataset,
        sites: Sequence[Site],
        wanted: set[str],
    ) -> Iterator[tuple[str, BlockStatistics]]:
        """Statistics of the `wanted` layers in the order of `sites`, read from the folder where it has them.

        Transient statistics are deleted once the caller asks for the next.
        """

        def start() -> Iterator[LayerPass]:  # no name here keeps the batches beside the sweep
            batches = [*batches_of(dataset.calibration), *validation_batches(dataset.validation)]
            return sweep(spec, tensors, batches, self.folder / BATCHES)

        steps = start()
        for key in dict.fromkeys(site.block for site in sites if site.block in wanted):
            path = self.folder / f"{key}.pt"
            if not path.exists():
                found = _reach(steps, sites, key)
                if found is None:  # the saved batches are past this layer: its weights were lost
                    (self.folder / BATCHES).unlink(missing_ok=True)
                    steps = start()
                    found = _reach(steps, sites, key)
                assert found is not None
                store(path, _plain(found))
                del found
                release()
            yield key, _load(path)
            if self.transient:
                path.unlink()
        (self.folder / BATCHES).unlink(missing_ok=True)


def _source(folder: Path) -> Any:
    try:
        return json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _reach(steps: Iterator[LayerPass], sites: Sequence[Site], key: str) -> BlockStatistics | None:
    """Run the steps up to the layer `key` and observe that one; None when it does not come."""
    for step in steps:
        if step.key == key:
            return observe(step, [site for site in sites if site.block == key])
        step.run()
        del step  # or it stays in memory beside the next
    return None


def observe(step: LayerPass, sites: Sequence[Site]) -> BlockStatistics:
    """Run the step and watch the inputs of `sites` and its KV cache."""
    result = BlockStatistics({}, None)
    handles = []
    for site in sites:
        linear = step.module.get_submodule(site.modules[0].removeprefix(f"{step.key}."))
        statistics = result.inputs[site.modules[0]] = _empty(linear.weight.shape[1])
        handles.append(linear.register_forward_pre_hook(_input_hook(step, statistics)))
    attention = getattr(step.module, "self_attn", None)
    peaks: list[Tensor] = []
    if attention is not None:
        handles.append(attention.register_forward_hook(_kv_hook(peaks)))
    step.run()
    for handle in handles:
        handle.remove()
    for own in result.inputs.values():
        for H in own.moments:
            _mirror(H)
    if peaks:
        k, v = torch.stack(peaks).amax(0).tolist()
        result.kv = KvStatistics(k, v)
    return result


def _empty(width: int) -> InputStatistics:
    widths = [min(MAX_WIDTH, width - begin) for begin in range(0, width, MAX_WIDTH)]
    return InputStatistics([torch.zeros(w, w) for w in widths], torch.empty(0, width, dtype=torch.bfloat16), 0.0, 0)


def _input_hook(step: LayerPass, statistics: InputStatistics) -> Any:
    def hook(module: Any, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0][real_tokens(step.current)]  # [tokens, K]
        statistics.amax = max(statistics.amax, float(x.abs().max()) if len(x) else 0.0)
        if VALIDATION in step.current:
            statistics.validation = torch.cat([statistics.validation, x.bfloat16()])
            return
        for H, part in zip(statistics.moments, x.split(MAX_WIDTH, dim=1), strict=True):
            for rows in _bands(H):
                H[rows, rows.start :].addmm_(part[:, rows].T, part[:, rows.start :])
        statistics.tokens += len(x)

    return hook


def _bands(H: Tensor) -> Iterator[slice]:
    return (slice(begin, begin + BAND) for begin in range(0, len(H), BAND))


def _mirror(H: Tensor) -> None:
    """Fill in what lies below the bands."""
    for rows in _bands(H):
        H[rows.stop :, rows] = H[rows, rows.stop :].T


def _kv_hook(peaks: list[Tensor]) -> Any:
    def hook(module: Any, arguments: Any, results: tuple[Tensor, ...]) -> None:
        _, k, v = results  # [B, num_kv_heads, T, head_dim], zero where there is no token
        peaks.append(torch.stack([k.abs().amax((0, 2, 3)), v.abs().amax((0, 2, 3))]))

    return hook


def _plain(statistics: BlockStatistics) -> dict[str, Any]:
    inputs = {name: vars(own) for name, own in statistics.inputs.items()}
    return {"inputs": inputs, "kv": vars(statistics.kv) if statistics.kv else None}


def _load(path: Path) -> BlockStatistics:
    """The statistics, mapped: what is not touched takes no memory."""
    raw = torch.load(path, weights_only=True, mmap=True)
    inputs = {name: InputStatistics(**fields) for name, fields in raw["inputs"].items()}
    return BlockStatistics(inputs, KvStatistics(**raw["kv"]) if raw["kv"] else None)
