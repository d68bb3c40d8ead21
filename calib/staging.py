"""A calibration's output folder under construction; see `deltart.staging`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltart import staging
from deltart.calib.formats import Format
from deltart.calib.scales import Quantized
from deltart.errors import CalibrationError
from deltart.folders import Marker
from deltart.staging import OutputFile, Work

CALIBRATION = Work(
    noun="calibration",
    folder=".calibration",
    marker=Marker("a calibrated checkpoint", "report.json", lambda folder: None),  # none is ever replaced
    error=CalibrationError,
    order="the same checkpoint, text and arguments",
)


class BackgroundWriter:
    """Calls a function one call behind; a call raises what the one before it raised."""

    def __init__(self, pool: ThreadPoolExecutor, function: Callable[..., None]) -> None:
        self._pool, self._function = pool, function
        self._last: Future[None] | None = None

    def __call__(self, *arguments: Any) -> None:
        self.wait()
        self._last = self._pool.submit(self._function, *arguments)

    def wait(self) -> None:
        """Until every call is through."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


class Staging(staging.Staging):
    """The journal's entries are modules, each with what its format stores of it."""

    def __init__(self, output: Path, files: Sequence[OutputFile], order: Mapping[str, Any], form: Format) -> None:
        super().__init__(output, files, order, CALIBRATION)
        self._form = form

    def tensors_of(self, name: str) -> Sequence[str]:
        """What is stored of the module `name`."""
        return [f"{name}.{leaf}" for leaf in self._form.leaves]

    def write(self, module: str, quantized: Quantized, figures: dict[str, Any]) -> None:
        """Store a module's tensors, and journal them with `figures`."""
        pieces = ([_raw(tensor)] for tensor in self._form.tensors(quantized))
        self.store(module, dict(zip(self.tensors_of(module), pieces, strict=True)), figures)

    @contextmanager
    def in_background(self) -> Iterator[BackgroundWriter]:
        """`write` on a thread of its own, so that a weight is stored while the next is quantized."""
        with ThreadPoolExecutor(1) as pool:
            writer = BackgroundWriter(pool, self.write)
            yield writer
            writer.wait()

    def write_scalar(self, name: str, value: float) -> None:
        """Store a float32 number."""
        with self.at(name) as file:
            file.write(np.float32(value).tobytes())


def staged(
    output: Path, files: Sequence[OutputFile], order: Mapping[str, Any], form: Format
) -> AbstractContextManager[Staging]:
    """A Staging that becomes `output` when the block succeeds; raises as `deltart.staging.staged` does."""
    return staging.staged(Staging(output, files, order, form))


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
