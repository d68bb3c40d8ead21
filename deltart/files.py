"""Files that are written whole or not at all, and the hidden folders in which that is done."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "deltart.lock"
HOLDER = re.compile(r"\.(?P<name>.+)\.partial-[0-9a-f]{8}", re.DOTALL)

Settle = Callable[[Path], bool]  # puts in order what a holder has inside; whether the holder may be removed then


def removable(holder: Path) -> bool:
    """The Settle of holders whose content is nothing but ours, and of no use once their owner is gone."""
    return True


@contextmanager
def private(place: Path, name: str, settle: Settle = removable) -> Iterator[Path]:
    """A new hidden folder `place`/.NAME.partial-xxxxxxxx (a holder), locked while it is used, then removed.

    A kill leaves it unlocked, for `clear` to find; process ids, which repeat in containers, play no part.
    """
    holder, lock = _make_holder(place, name)
    try:
        yield holder
    finally:
        try:
            if settle(holder):
                shutil.rmtree(holder, ignore_errors=True)
        finally:
            os.close(lock)


def clear(place: Path, name: str | None = None, settle: Settle = removable) -> None:
    """Remove what killed runs left in `place`: holders of `name`, or all, whose owner is gone and `settle` lets go."""
    with suppress(OSError):
        for holder in [entry for entry in place.iterdir() if _holds(entry, name)]:
            _clear(holder, settle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write that becomes `path` when the block succeeds, in place of what is there.

    A symbolic link at `path` is replaced, never followed. Streams of /dev and /proc are written as they are.
    """
    if _is_stream(path):
        yield path
        return
    clear(path.parent, path.name)
    with private(path.parent, path.name) as holder:
        yield holder / path.name
        os.replace(holder / path.name, path)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """`content` under its final name at once, or nothing; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def link_or_copy(source: Path, target: Path) -> None:
    """`target` becomes `source`'s content, as a second name where the file system can."""
    with replacing(target) as partial:
        try:
            os.link(source.resolve(), partial)
        except OSError:
            shutil.copyfile(source, partial)


def try_lock(file: int) -> bool | None:
    """Take the exclusive lock of an open file. The end of the process, whatever it is, releases it.

    False when another process has it, None when the file system knows no locks and nobody can tell.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno == errno.EWOULDBLOCK else None
    return True


def _make_holder(place: Path, name: str) -> tuple[Path, int]:
    while True:
        holder = place / f".{name}.partial-{secrets.token_hex(4)}"
        try:
            holder.mkdir()
        except FileExistsError:
            continue
        try:
            lock = os.open(holder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except (FileExistsError, FileNotFoundError):
            continue  # another run took or cleared it before there was a lock
        except BaseException:
            with suppress(OSError):
                holder.rmdir()
            raise
        try_lock(lock)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(holder / LOCK)):
                return holder, lock
        os.close(lock)  # cleared before it was locked


def _holds(entry: Path, name: str | None) -> bool:
    match = HOLDER.fullmatch(entry.name)
    return match is not None and name in (None, match["name"]) and entry.is_dir() and not entry.is_symlink()


def _clear(holder: Path, settle: Settle) -> None:
    """Remove one holder, if it is one and nobody has its lock."""
    try:
        lock = os.open(holder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            with suppress(OSError):
                holder.rmdir()  # killed before the lock was there; with anything else inside it is not ours
        return
    try:
        if try_lock(lock):
            with suppress(OSError):
                if settle(holder):
                    shutil.rmtree(holder, ignore_errors=True)
    finally:
        os.close(lock)


def _is_stream(path: Path) -> bool:
    folder = path.parent.resolve()
    return folder == Path("/dev") or folder.parts[1:2] == ("proc",)
