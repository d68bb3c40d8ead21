"""Output folders: made beside their final name, and put in place of nothing but a folder of the same kind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from deltart import renames
from deltart.errors import OutputError
from deltart.files import clear, private

MOVING, REPLACED = "moving", "replaced"  # in a holder: what is being taken, and what was taken, out of the output
MOUNTS = Path("/proc/self/mountinfo")
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Marker:
    """What tells the folders of one kind that our commands write from all others.

    Args:
        noun: their name in messages, with its article.
        file: the file that gets its name last: a folder with it is whole.
        written: patterns, by component, of every path that our commands write into such a folder; None for a folder
            of another kind. It may be asked about any folder, and must look at contents, not at names alone.
    """

    noun: str
    file: str
    written: Callable[[Path], Sequence[str] | None]


@contextmanager
def staged(output: Path, marker: Marker, *, overwrite: bool = False, sources: Sequence[Path] = ()) -> Iterator[Path]:
    """A folder that becomes `output` when the block succeeds, and vanishes when it fails.

    `output` may be new or empty, a mount point too. With `overwrite` it may be a folder of the same kind in which
    there is nothing that our commands did not write: it is exchanged for the new one, so that a kill leaves the one
    or the other. What killed runs left is settled and removed first.

    Args:
        sources: folders that are read. They, the working directory and the home are never replaced, nor is a folder
            that contains one of them or a file that a source links to, or that is inside a source.

    Raises:
        OutputError: `output` must not be replaced or can't be written; it is as it was.
    """
    try:
        target = Path(os.path.realpath(output))
        with _parents(target.parent):
            place = place_of(target)
            recover(target, marker)
            check(target, marker, overwrite=overwrite, sources=sources)
            with private(place, target.name, lambda holder: settle(holder, target, marker)) as holder:
                fresh = holder / target.name
                fresh.mkdir()
                yield fresh
                check(target, marker, overwrite=overwrite, sources=sources, own=holder)
                put(holder, target, marker)
    except OSError as error:
        raise OutputError(f"cannot write {output} ({error})", "a writable place with room", "choose another") from error


def place_of(target: Path) -> Path:
    """The folder in which to make `target`: its parent, or itself where it can't be renamed."""
    if not os.path.isdir(target):
        return target.parent
    fixed = _is_mount(target) or any(_within(path, target) for path in _ours_to_keep())
    return target if fixed or not os.access(target.parent, os.W_OK | os.X_OK) else target.parent


def recover(target: Path, marker: Marker) -> None:
    """Settle and remove what killed runs left beside or inside `target`."""
    for place in (target.parent, target):
        clear(place, target.name, lambda holder: settle(holder, target, marker))


def check(
    target: Path, marker: Marker, *, overwrite: bool = False, sources: Sequence[Path] = (), own: Path | None = None
) -> None:
    """Raises OutputError unless `target` may be made or, with `overwrite`, replaced; see `staged`.

    Args:
        own: the holder of this run, which does not count.
    """
    if os.path.lexists(target) and not os.path.isdir(target):
        raise OutputError(f"{target} is a file", "a folder, or a path that does not exist", "choose another output")
    if not contents(target, own):
        return
    if not overwrite or marker.written(target) is None:
        raise OutputError(
            f"{target} is already in use" + (f" and is not {marker.noun}" if overwrite else ""),
            "an empty or new folder",
            f"choose another, or --overwrite {marker.noun}",
        )
    _check_apart(target, sources)
    _check_strangers(target, target, marker, own)


def contents(target: Path, own: Path | None = None) -> list[Path]:
    """What `target` has inside but the holder `own`, and the lost+found of a file system's root."""
    if not os.path.isdir(target):
        return []
    ignored = {own} | ({target / "lost+found"} if _is_mount(target) else set())
    return sorted(entry for entry in target.iterdir() if entry not in ignored)


def remove(target: Path, marker: Marker) -> None:
    """Remove a folder of this kind under the conditions of `staged`, in one step for whoever looks at its name.

    Raises:
        OutputError: it must not be removed; it is as it was.
    """
    check(target, marker, overwrite=True)
    if place_of(target) == target:
        raise OutputError(f"{target} is or contains a mount point, the home or the working directory")
    with private(target.parent, target.name, lambda holder: settle(holder, target, marker)) as holder:
        os.rename(target, holder / target.name)
        try:
            _check_strangers(holder / target.name, target, marker)
        except BaseException:
            renames.rename_new(holder / target.name, target)
            raise


def put(holder: Path, target: Path, marker: Marker) -> None:
    """Give the folder in `holder` its final name; what was there, having been checked, is in `holder` afterwards."""
    fresh = holder / target.name
    if holder.parent == target:
        _put_inside(holder, target, marker)
    elif not contents(target):
        os.rename(fresh, target)  # over an empty folder, but nothing else
    elif renames.exchange(fresh, target):
        try:
            _check_strangers(fresh, target, marker)
        except BaseException:
            renames.exchange(fresh, target)
            raise
    else:
        os.rename(target, holder / REPLACED)
        _check_strangers(holder / REPLACED, target, marker)
        os.rename(fresh, target)


def settle(holder: Path, target: Path, marker: Marker) -> bool:
    """Finish or undo what `put` had begun. Whether all that is left in `holder` is of no use."""
    if holder.parent == target:
        _settle_inside(holder, target, marker)
    elif (holder / REPLACED).exists() and not os.path.lexists(target):
        os.rename(holder / REPLACED, target)
    old = (holder / REPLACED, holder / target.name)
    return not any(marker.written(p) is not None and next(_strangers(p, marker), None) for p in old)


def _put_inside(holder: Path, target: Path, marker: Marker) -> None:
    """Entry by entry, where the folder itself can't be renamed. Without its marker's file it is not taken for whole."""
    old = contents(target, own=holder)
    (holder / MOVING).mkdir()
    for entry in sorted(old, key=lambda entry: entry.name != marker.file):
        renames.rename_new(entry, holder / MOVING / entry.name)
    if old:
        _check_strangers(holder / MOVING, target, marker)
    os.rename(holder / MOVING, holder / REPLACED)
    fresh = holder / target.name
    names = [entry.name for entry in fresh.iterdir()]
    try:
        _move_all(fresh, target, marker)
    except OSError:  # then the old one comes back
        for name in names:
            if not os.path.lexists(fresh / name):
                os.rename(target / name, fresh / name)
        os.rename(holder / REPLACED, holder / MOVING)
        raise


def _settle_inside(holder: Path, target: Path, marker: Marker) -> None:
    if (holder / MOVING).exists():
        _move_all(holder / MOVING, target, marker)
    elif (holder / REPLACED).exists() and (holder / target.name / marker.file).exists():
        _move_all(holder / target.name, target, marker)


def _move_all(source: Path, target: Path, marker: Marker) -> None:
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name == marker.file):
        renames.rename_new(entry, target / entry.name)


def _check_apart(target: Path, sources: Sequence[Path]) -> None:
    """Raises OutputError for a folder whose loss would take something else with it."""
    inside = [(path, f"is or contains {path}, which is to be read") for path in sources]
    inside += [(path, f"is or contains {path}, {role}") for path, role in _ours_to_keep().items()]
    for source in sources:
        for file in source.iterdir() if os.path.isdir(source) else ():
            inside.append((file.resolve(), f"contains {file.resolve()}, a file of {source}"))
    reasons = [f"is inside {source}" for source in sources if _within(target, source) and not _within(source, target)]
    reasons += [why for path, why in inside if _within(path, target)]
    reasons += [f"contains the mount point {path}" for path in _mounts() if path != target and target in path.parents]
    if reasons:
        raise OutputError(f"{target} {reasons[0]}", "a folder that nothing depends on", "choose another output")


def _check_strangers(folder: Path, target: Path, marker: Marker, own: Path | None = None) -> None:
    """Raises OutputError, naming them, when `folder`, which is or was `target`, holds what no command wrote."""
    found = list(islice(_strangers(folder, marker, own), SHOWN + 1))
    if found:
        names = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        raise OutputError(
            f"{target} is {marker.noun}, but holds what deltart did not write: {names}",
            "nothing else in a folder that is replaced",
            "move that elsewhere, or choose another output",
        )


def _strangers(folder: Path, marker: Marker, own: Path | None = None) -> Iterator[str]:
    """Paths in `folder`, relative, that our commands do not write there. Links are not followed."""
    patterns = [pattern.split("/") for pattern in marker.written(folder) or ()]

    def known(parts: Sequence[str], whole: bool) -> bool:
        return any(
            (len(pattern) == len(parts) if whole else len(pattern) > len(parts))
            and all(map(fnmatchcase, parts, pattern))
            for pattern in patterns
        )

    def visit(path: Path, above: tuple[str, ...]) -> Iterator[str]:
        clear(path, settle=lambda holder: settle(holder, folder, marker))
        for entry in sorted(path.iterdir()):
            parts, is_folder = (*above, entry.name), entry.is_dir() and not entry.is_symlink()
            if entry == own or (not above and entry.name == "lost+found" and _is_mount(folder)):
                continue
            if not known(parts, whole=not is_folder):
                yield "/".join(parts) + ("/" if is_folder else "")
            elif is_folder:
                yield from visit(entry, parts)

    yield from visit(folder, ())


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """`folder` exists in the block. When the block fails, those that were made for it are removed again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


def _within(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or inside it, by identity: other spellings and bind mounts are seen through."""
    with suppress(OSError):
        wanted, path = folder.stat(), path.resolve()
        for candidate in (path, *path.parents):
            with suppress(OSError):
                if os.path.samestat(candidate.stat(), wanted):
                    return True
    return False


def _ours_to_keep() -> dict[Path, str]:
    kept = {Path(os.path.expanduser("~")): "the home folder"}
    with suppress(FileNotFoundError):  # it was deleted
        kept[Path.cwd()] = "the working directory"
    return kept


def _is_mount(folder: Path) -> bool:
    return os.path.ismount(folder) or folder in _mounts()


def _mounts() -> list[Path]:
    """Mount points, bind mounts of one file system too, which os.path.ismount does not see."""
    with suppress(OSError):
        fields = [line.split(b" ")[4] for line in MOUNTS.read_bytes().splitlines()]
        return [Path(os.fsdecode(re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), field))) for field in fields]
    return []
