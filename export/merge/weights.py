"""Merged weights, a block of rows at a time, with the sums and roundings of PEFT's merge_and_unload.

PEFT holds adapters in float32, whatever they are stored as. A linear's B A is added in float32 and the sum rounded to
the weight's type once; an embedding's is rounded to that type first. DoRA then scales every row to its magnitude over
the norm of the row before rounding (https://arxiv.org/abs/2402.09353).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import torch

from deltart.dtypes import BY_STORED
from deltart.errors import MergeError
from deltart.export.checkpoint import Checkpoint
from deltart.export.merge.updates import Lora, Update
from deltart.export.weights import read_tensor, torch_dtype
from deltart.safetensors import TensorInfo

BLOCK = 2 << 20  # values of a block: their sums in float32 stay in the cores' caches


@contextmanager
def one_thread() -> Iterator[None]:
    """In the block torch runs on one thread: operations on a block are too short to be shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def merged(update: Update, base: Checkpoint, adapter: Checkpoint) -> Iterator[memoryview]:
    """The bytes of the updated tensor, in order.

    Raises:
        MergeError: a merged value is infinite or no number.
    """
    kind = torch_dtype(BY_STORED[update.tensor.dtype])
    delta = _Delta(update.lora, adapter) if update.lora else None
    for start, count in _blocks(update.tensor):
        if update.whole is not None:
            weight = _rows(adapter, update.whole, start, count).to(kind)
        else:
            weight = _rows(base, update.tensor, start, count)
        if delta is not None:
            weight = delta.added(weight, start, count)
        if not _is_finite(weight):
            raise MergeError(
                f"'{update.tensor.name}' has values after the merge that are infinite or no numbers",
                "finite weights",
                "the training diverged, or a file is damaged: merge an earlier adapter",
            )
        yield weight.contiguous().view(-1).view(torch.uint8).numpy().data


class _Delta:
    """B A of one module, by rows of its weight."""

    def __init__(self, lora: Lora, adapter: Checkpoint) -> None:
        self._lora, self._adapter = lora, adapter
        self._a = read_tensor(adapter, lora.a)  # [r, in]
        if not lora.table:
            self._a = self._a.float()

    def added(self, weight: torch.Tensor, start: int, count: int) -> torch.Tensor:
        """Rows [count, in] of the base weight with the adapter's."""
        lora = self._lora
        if lora.table:
            b = read_tensor(self._adapter, lora.b).float()
            product = b @ self._a[:, start : start + count].float()
            return weight + product.T.mul_(lora.scaling).to(weight.dtype)
        sums = _rows(self._adapter, lora.b, start, count).float() @ self._a
        sums.mul_(lora.scaling).add_(weight.float())
        if lora.magnitude is not None:
            factor = _rows(self._adapter, lora.magnitude, start, count).float() / torch.linalg.norm(sums, dim=1)
            sums.mul_(factor.view(-1, 1))
        return sums.to(weight.dtype)


def _is_finite(values: torch.Tensor) -> bool:
    """By their sum, which takes a tenth of the time; a sum may overflow where no value has."""
    return bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())


def _blocks(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """(first row, rows) of blocks of nearly equal size: a last one of a single row would sum in another order."""
    rows = info.shape[0] if info.shape else 1
    values = info.nbytes // BY_STORED[info.dtype].itemsize
    count = max(1, min(rows, -(-values // BLOCK)))
    edges = [rows * number // count for number in range(count + 1)]
    return ((start, end - start) for start, end in pairwise(edges))


def _rows(tensors: Checkpoint, info: TensorInfo, start: int, count: int) -> torch.Tensor:
    """Rows of a tensor in its stored type, read into memory."""
    if not info.shape or not info.shape[0]:
        return read_tensor(tensors, info)
    row = info.nbytes // info.shape[0]
    part = replace(info, offset=info.offset + start * row, nbytes=count * row, shape=(count, *info.shape[1:]))
    return read_tensor(tensors, part)
