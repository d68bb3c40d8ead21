"""Weight files under construction: resumable after a kill, and under their folder's final name only when complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deltart.errors import DeltaRTError, OutputError
from deltart.files import link_or_copy, try_lock, write_atomically
from deltart.folders import Marker, check, place_of, put, recover, settle
from deltart.safetensors import TensorInfo

JOURNAL, ORDER, LOCK = "journal.jsonl", "order.json", "lock"
PLACING = "placing"  # names the folder that is to become the output: another under its name was the output before
MARGIN_BYTES = 64 << 20
EDITED_BYTES = 64 << 20  # people edit smaller files in place: those are copied, not linked
PIECE = 16 << 20

S = TypeVar("S", bound="Staging")


@dataclass(frozen=True)
class OutputFile:
    """One output shard: its tensors with offsets from the start of the file, and the header that says so."""

    name: str
    header: bytes
    tensors: Mapping[str, TensorInfo]
    size: int
    linked: bool  # equal to the input's file of this name


@dataclass(frozen=True)
class Work:
    """A kind of work that is done in a holder.

    Args:
        noun: its name in messages.
        folder: of its own files, beside the folder that becomes the output.
        marker: what tells its outputs from other folders.
        error: what to raise.
        order: what must be the same to go on with unfinished work.
    """

    noun: str
    folder: str
    marker: Marker
    error: type[DeltaRTError]
    order: str


class Staging:
    """The hidden `holder` beside `output`: what becomes the output, and the work. What is finished is journaled.

    Args:
        output: any path to it.
        order: what is being made of what; work of the same order goes on.
        overwrite: exchange an output of the same kind that is already there; see `deltart.folders.staged`.
        sources: folders that are read.
    """

    def __init__(
        self, output: Path, files: Sequence[OutputFile], order: Mapping[str, Any], kind: Work, *,
        overwrite: bool = False, sources: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self.asked, self.output = output, Path(os.path.realpath(output))
        self.files, self.kind = files, kind
        self.holder = place_of(self.output) / f".{self.output.name}.partial"
        self.folder, self.work = self.holder / self.output.name, self.holder / kind.folder
        self.places = {name: info for file in files for name, info in file.tensors.items()}
        self.done: dict[str, dict[str, Any]] = {}
        self._order, self._overwrite, self._sources = order, overwrite, sources
        self._lock: int | None = None

    def tensors_of(self, name: str) -> Sequence[str]:
        """The tensors that the journal's entry `name` stands for."""
        return (name,)

    def begin(self) -> None:
        """Go on with the work that is there, or start afresh. Raises kind.error where it is of another order."""
        self.take()
        if not self._continues():
            self._start()
        entries = list(self._intact())
        (self.work / JOURNAL).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        self.done = {entry["name"]: entry["figures"] for entry in entries}

    def store(self, name: str, data: Mapping[str, Iterable[bytes | memoryview]], figures: dict[str, Any]) -> None:
        """Store the tensors of the entry `name`, each piece by piece, and journal them with `figures`."""
        digest = hashlib.sha256()
        for tensor, pieces in data.items():
            with self.at(tensor) as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
        self._record(name, digest.hexdigest(), figures)

    def note(self, name: str, figures: dict[str, Any]) -> None:
        """Journal `figures` about something that has no tensors."""
        self._record(name, None, figures)

    @contextmanager
    def at(self, tensor: str) -> Iterator[Any]:
        """The tensor's file, open for reading and writing at its first byte."""
        info = self.places[tensor]
        with (self.folder / info.file).open("r+b") as file:
            file.seek(info.offset)
            yield file

    def copy_rest(self, folder: Path, tensors: Mapping[str, TensorInfo], skip: Collection[str] = ()) -> None:
        """Carry over what of the input keeps its name and type; whole files by hard link where that is possible.

        Args:
            folder: the input's, whose tensors these are.
            skip: tensors that are not carried over.
        """
        for file in self.files:
            if file.linked:
                link_or_copy(folder / file.name, self.folder / file.name)
        for name, info in self.places.items():
            if name in tensors and tensors[name].dtype == info.dtype and name not in skip:
                source = tensors[name]
                _copy_range(folder / source.file, source.offset, self.folder / info.file, info.offset, info.nbytes)

    def bring(self, path: Path, name: str = "") -> None:
        """A file of the input that is no weights, under `name` or its own; large ones by hard link where possible."""
        carry = link_or_copy if path.stat().st_size > EDITED_BYTES else shutil.copyfile
        carry(path, self.folder / (name or path.name))

    def check(self) -> None:
        """Raises OutputError unless the output may be made or replaced."""
        check(self.output, self.kind.marker, overwrite=self._overwrite, sources=self._sources, own=self.holder)

    def commit(self) -> None:
        """Give the folder its final name."""
        self.check()
        write_atomically(self.work / PLACING, str(self.folder.stat().st_ino).encode())
        put(self.holder, self.output, self.kind.marker)
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
        """Make the holder this run's own. Raises kind.error where it is not of this kind, or one is at work."""
        if self._lock is not None:
            return
        if self.holder.is_symlink() or (self.holder.exists() and any(self.holder.iterdir()) and not self.work.is_dir()):
            raise self.kind.error(
                f"{self.holder} is no unfinished {self.kind.noun}",
                "that path free",
                "move it, or choose another output",
            )
        self.work.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.work / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if try_lock(lock) is False:
            os.close(lock)
            raise self.kind.error(f"another run is at work in {self.holder}", "one at a time", "wait until it is done")
        self._lock = lock
        if not settle(self.holder, self.output, self.kind.marker):
            self.leave()
            raise self.kind.error(f"{self.holder} holds what deltart did not write", "nothing else", "move it")

    def _record(self, name: str, digest: str | None, figures: dict[str, Any]) -> None:
        with (self.work / JOURNAL).open("a") as journal:
            journal.write(json.dumps({"name": name, "sha256": digest, "figures": figures}) + "\n")
        self.done[name] = figures

    def _continues(self) -> bool:
        try:
            found = json.loads((self.work / ORDER).read_text())
        except (OSError, ValueError):
            return False  # it was killed before there was any work
        if not self.folder.is_dir() or self._is_another():
            return False  # the work became an output
        other = [name for name, value in json.loads(json.dumps(self._order)).items() if found.get(name) != value]
        if other:
            self.leave()  # it is not this run's to discard
            raise self.kind.error(
                f"{self.holder} holds unfinished work on the same output with other {', '.join(other)}",
                f"{self.kind.order}, to go on with it",
                "delete that folder to start afresh, or choose another output",
            )
        return all((self.folder / file.name).is_file() for file in self.files if not file.linked)

    def _is_another(self) -> bool:
        """Whether the folder is what the output was before, of which the work has taken the place."""
        placing = self.work / PLACING
        return placing.exists() and placing.read_text() != str(self.folder.stat().st_ino)

    def _start(self) -> None:
        for entry in [self.folder, *self.work.iterdir()]:
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        self._check_room(sum(file.size for file in self.files if not file.linked))
        self.folder.mkdir()
        for file in self.files:
            if not file.linked:
                (self.folder / file.name).write_bytes(file.header)
                os.truncate(self.folder / file.name, file.size)
        write_atomically(self.work / ORDER, json.dumps(self._order).encode())

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.holder.parent).free
        if free < needed + MARGIN_BYTES:
            raise self.kind.error(
                f"{self.holder.parent} has {free / 1e9:.2f} GB free",
                f"{(needed + MARGIN_BYTES) / 1e9:.2f} GB",
                "make room, or choose another output",
            )

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

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        for tensor in self.tensors_of(name):
            with self.at(tensor) as file:
                left = self.places[tensor].nbytes
                while piece := file.read(min(left, PIECE)):
                    digest.update(piece)
                    left -= len(piece)
        return digest.hexdigest()


@contextmanager
def staged(staging: S) -> Iterator[S]:
    """`staging`, which becomes its output when the block succeeds.

    A kill or Ctrl-C leaves it to go on from, and so does a disk that refuses after some weights were done. Any
    other error leaves nothing.

    Raises:
        OutputError: the output is in use.
        DeltaRTError: of class kind.error; it is not writable, the disk has no room, or the holder is not this run's.
    """
    try:
        staging.output.parent.mkdir(parents=True, exist_ok=True)
        recover(staging.output, staging.kind.marker)
        if staging.holder.exists():
            staging.take()
        staging.check()
        staging.begin()
        yield staging
        staging.commit()
    except OutputError:
        raise
    except OSError as error:
        hint = "choose another output"
        if staging.done:
            hint = f"make room and run it again to go on, or delete {staging.holder}"
        else:
            staging.discard()
        found = f"cannot write {staging.asked} ({error})"
        raise staging.kind.error(found, "a writable place with room", hint) from error
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
