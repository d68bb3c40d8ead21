"""An output folder under construction: resumable after a kill, and under its final name only when complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltart.calib.layout import OutputFile
from deltart.calib.scales import Quantized
from deltart.errors import CalibrationError
from deltart.export.checkpoint import Checkpoint

JOURNAL, ORDER = "journal.jsonl", "order.json"
WORK_FOLDER = ".calibration"  # inside the staging folder, gone from the output
MARGIN_BYTES = 64 << 20
PIECE = 16 << 20


class UnfinishedError(CalibrationError):
    """The output's hidden folder holds work that this run can't go on with."""


class Behind:
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


class Staging:
    """The hidden folder beside `output`. Finished weights are journaled with their hash.

    Args:
        order: what is being made of what; work of the same order goes on.
    """

    def __init__(self, output: Path, files: Sequence[OutputFile], order: Mapping[str, Any]) -> None:
        self.output, self.files = output, files
        self.folder = output.parent / f".{output.name}.partial"
        self.work = self.folder / WORK_FOLDER
        self._places = {name: info for file in files for name, info in file.tensors.items()}
        self._order = order
        self.done: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Go on with the work that is there, or start afresh. Raises CalibrationError for work of another order."""
        if not self._continues():
            self._start()
        entries = list(self._intact())
        (self.work / JOURNAL).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        self.done = {entry["name"]: entry["figures"] for entry in entries}

    def write(self, module: str, quantized: Quantized, figures: dict[str, Any]) -> None:
        """Store a module's weight and scale, and journal them with `figures`."""
        data = _raw(quantized.weight), _raw(quantized.scale)
        for name, raw in zip(_names(module), data, strict=True):
            info = self._places[name]
            with (self.folder / info.file).open("r+b") as file:
                file.seek(info.offset)
                file.write(raw)
        self._record(module, hashlib.sha256(data[0] + data[1]).hexdigest(), figures)

    @contextmanager
    def behind(self) -> Iterator[Behind]:
        """`write` on a thread of its own, so that a weight is stored while the next is quantized."""
        with ThreadPoolExecutor(1) as pool:
            behind = Behind(pool, self.write)
            yield behind
            behind.wait()

    def note(self, name: str, figures: dict[str, Any]) -> None:
        """Journal `figures` about something that has no tensors."""
        self._record(name, None, figures)

    def write_scalar(self, name: str, value: float) -> None:
        """Store a float32 number."""
        info = self._places[name]
        with (self.folder / info.file).open("r+b") as file:
            file.seek(info.offset)
            file.write(np.float32(value).tobytes())

    def copy_rest(self, tensors: Checkpoint) -> None:
        """Carry over every tensor that is not quantized; whole files by hard link where that is possible."""
        for file in self.files:
            if file.linked:
                link_or_copy(tensors.folder / file.name, self.folder / file.name)
        for name, info in self._places.items():
            if name in tensors and tensors[name].dtype == info.dtype:
                source = tensors[name]
                _copy_range(
                    tensors.folder / source.file, source.offset, self.folder / info.file, info.offset, info.nbytes
                )

    def commit(self) -> None:
        """Give the folder its final name."""
        shutil.rmtree(self.work)
        if self.output.exists():
            self.output.rmdir()
        self.folder.rename(self.output)

    def discard(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, name: str, digest: str | None, figures: dict[str, Any]) -> None:
        with (self.work / JOURNAL).open("a") as journal:
            journal.write(json.dumps({"name": name, "sha256": digest, "figures": figures}) + "\n")
        self.done[name] = figures

    def _continues(self) -> bool:
        try:
            found = json.loads((self.work / ORDER).read_text())
        except (OSError, ValueError):
            return False  # it was killed before there was any work
        other = [name for name, value in json.loads(json.dumps(self._order)).items() if found.get(name) != value]
        if other:
            raise UnfinishedError(
                f"{self.folder} holds unfinished work on the same output with other {', '.join(other)}",
                "the same checkpoint, text and arguments, to go on with it",
                "delete that folder to start afresh, or choose another output",
            )
        return True

    def _start(self) -> None:
        self.discard()
        _check_room(self.output.parent, sum(file.size for file in self.files if not file.linked))
        self.work.mkdir(parents=True)
        for file in self.files:
            if not file.linked:
                (self.folder / file.name).write_bytes(file.header)
                os.truncate(self.folder / file.name, file.size)
        temporary = self.work / f"{ORDER}.new"
        temporary.write_text(json.dumps(self._order))
        os.replace(temporary, self.work / ORDER)

    def _intact(self) -> Iterator[dict[str, Any]]:
        """Journal entries whose bytes are still what was journaled."""
        journal = self.work / JOURNAL
        for line in journal.read_text().splitlines() if journal.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut off by the kill
            if entry["sha256"] is None or entry["sha256"] == self._digest(entry["name"]):
                yield entry

    def _digest(self, module: str) -> str:
        digest = hashlib.sha256()
        for name in _names(module):
            info = self._places[name]
            with (self.folder / info.file).open("rb") as file:
                file.seek(info.offset)
                digest.update(file.read(info.nbytes))
        return digest.hexdigest()


@contextmanager
def staged(output: Path, files: Sequence[OutputFile], order: Mapping[str, Any]) -> Iterator[Staging]:
    """A Staging that becomes `output` when the block succeeds.

    A kill or Ctrl-C leaves it to go on from, and so does a disk that refuses after some weights were done. Any
    other error leaves nothing.

    Raises:
        CalibrationError: `output` is in use, not writable, or the disk has no room.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CalibrationError(f"{output} is already in use", "an empty or new folder", "choose another output")
    staging = Staging(output, files, order)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging.begin()
        yield staging
        staging.commit()
    except UnfinishedError:
        raise
    except OSError as error:
        hint = "choose another output"
        if staging.done:
            hint = f"make room and run it again to go on, or delete {staging.folder}"
        else:
            staging.discard()
        raise CalibrationError(f"cannot write {output} ({error})", "a writable place with room", hint) from error
    except Exception:  # whatever went wrong, nothing half-written stays
        staging.discard()
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link `source`, or copy it where links don't reach."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _names(module: str) -> tuple[str, str]:
    return f"{module}.weight", f"{module}.weight_scale_inv"


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + MARGIN_BYTES:
        raise CalibrationError(
            f"{folder} has {free / 1e9:.2f} GB free",
            f"{(needed + MARGIN_BYTES) / 1e9:.2f} GB",
            "make room, or choose another output",
        )


def _copy_range(source: Path, start: int, target: Path, offset: int, count: int) -> None:
    with source.open("rb") as reader, target.open("r+b") as writer:
        reader.seek(start)
        writer.seek(offset)
        while count:
            piece = reader.read(min(count, PIECE))
            if not piece:
                raise OSError(f"{source} ended early")
            writer.write(piece)
            count -= len(piece)
