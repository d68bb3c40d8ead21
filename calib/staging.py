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
from deltart.errors import CalibrationError, OutputError
from deltart.export.checkpoint import Checkpoint
from deltart.files import link_or_copy, try_lock, write_atomically
from deltart.folders import Marker, check, place_of, put, recover, settle

JOURNAL, ORDER, LOCK = "journal.jsonl", "order.json", "lock"
WORK_FOLDER = ".calibration"  # beside the folder that becomes the output
CALIBRATED = Marker("a calibrated checkpoint", "report.json", lambda folder: None)  # none is ever replaced
MARGIN_BYTES = 64 << 20
PIECE = 16 << 20


class UnfinishedError(CalibrationError):
    """The output's hidden folder holds work that this run can't go on with."""


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


class Staging:
    """The hidden `holder` beside `output`: what becomes the output, and the work. Finished weights are journaled.

    Args:
        output: its real path.
        order: what is being made of what; work of the same order goes on.
    """

    def __init__(self, output: Path, files: Sequence[OutputFile], order: Mapping[str, Any]) -> None:
        self.output, self.files = output, files
        self.holder = place_of(output) / f".{output.name}.partial"
        self.folder, self.work = self.holder / output.name, self.holder / WORK_FOLDER
        self._lock: int | None = None
        self._places = {name: info for file in files for name, info in file.tensors.items()}
        self._order = order
        self.done: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Go on with the work that is there, or start afresh.

        Raises:
            UnfinishedError: the work is another's, or of another order.
        """
        self.take()
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
    def in_background(self) -> Iterator[BackgroundWriter]:
        """`write` on a thread of its own, so that a weight is stored while the next is quantized."""
        with ThreadPoolExecutor(1) as pool:
            writer = BackgroundWriter(pool, self.write)
            yield writer
            writer.wait()

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
        check(self.output, CALIBRATED, own=self.holder)
        put(self.holder, self.output, CALIBRATED)
        self.discard()

    def discard(self) -> None:
        """Remove everything, unless another run is at work there."""
        if self._lock is not None:
            shutil.rmtree(self.holder, ignore_errors=True)

    def leave(self) -> None:
        """Let another run go on with the work."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def take(self) -> None:
        """Make the holder this run's own. Raises UnfinishedError where it is no calibration's, or one is at work."""
        if self._lock is not None:
            return
        if self.holder.is_symlink() or (self.holder.exists() and any(self.holder.iterdir()) and not self.work.is_dir()):
            raise UnfinishedError(
                f"{self.holder} is no unfinished calibration", "that path free", "move it, or choose another output"
            )
        self.work.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.work / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if try_lock(lock) is False:
            os.close(lock)
            raise UnfinishedError(f"another run is at work in {self.holder}", "one at a time", "wait until it is done")
        self._lock = lock
        settle(self.holder, self.output, CALIBRATED)

    def _record(self, name: str, digest: str | None, figures: dict[str, Any]) -> None:
        with (self.work / JOURNAL).open("a") as journal:
            journal.write(json.dumps({"name": name, "sha256": digest, "figures": figures}) + "\n")
        self.done[name] = figures

    def _continues(self) -> bool:
        try:
            found = json.loads((self.work / ORDER).read_text())
        except (OSError, ValueError):
            return False  # it was killed before there was any work
        if not self.folder.is_dir():
            return False  # the work became an output
        other = [name for name, value in json.loads(json.dumps(self._order)).items() if found.get(name) != value]
        if other:
            raise UnfinishedError(
                f"{self.holder} holds unfinished work on the same output with other {', '.join(other)}",
                "the same checkpoint, text and arguments, to go on with it",
                "delete that folder to start afresh, or choose another output",
            )
        return True

    def _start(self) -> None:
        for entry in [self.folder, *self.work.iterdir()]:
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        _check_room(self.holder.parent, sum(file.size for file in self.files if not file.linked))
        self.folder.mkdir()
        for file in self.files:
            if not file.linked:
                (self.folder / file.name).write_bytes(file.header)
                os.truncate(self.folder / file.name, file.size)
        write_atomically(self.work / ORDER, json.dumps(self._order).encode())

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
        OutputError: `output` is in use.
        CalibrationError: it is not writable, or the disk has no room.
    """
    target = Path(os.path.realpath(output))
    staging = Staging(target, files, order)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target, CALIBRATED)
        if staging.holder.exists():
            staging.take()
        check(target, CALIBRATED, own=staging.holder)
        staging.begin()
        yield staging
        staging.commit()
    except (UnfinishedError, OutputError):
        raise
    except OSError as error:
        hint = "choose another output"
        if staging.done:
            hint = f"make room and run it again to go on, or delete {staging.holder}"
        else:
            staging.discard()
        raise CalibrationError(f"cannot write {output} ({error})", "a writable place with room", hint) from error
    except Exception:  # whatever went wrong, nothing half-written stays
        staging.discard()
        raise
    finally:
        staging.leave()


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
