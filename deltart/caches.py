"""The user's own cache folder. What lies there is loaded as code, so nobody else may be able to write it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from deltart.errors import CacheError

VARIABLE = "DELTART_CACHE"  # read by the command line
ELSEWHERE = f"another folder: --cache DIR, or {VARIABLE} in the environment"
KERNELS, PLANS = "kernels", "plans"
_moved: Path | None = None


def move(folder: Path | None) -> None:
    """Keep caches in `folder` from now on; None: in the place that the system has for them."""
    global _moved
    _moved = None if folder is None else folder.expanduser().absolute()


def root() -> Path:
    """The folder of all caches, which need not exist. Raises CacheError where the user has no home to keep one in."""
    if _moved is not None:
        return _moved
    with suppress(RuntimeError):  # what platformdirs raises for a user without a home
        found = platformdirs.user_cache_path("deltart", appauthor=False)
        if found.is_absolute():
            return found
    raise CacheError("this user has no home folder", "a place for compiled kernels and plans", ELSEWHERE)


def folder(name: str) -> Path:
    """The cache `name`, made where it is missing, with no access for others.

    Raises:
        CacheError: it can't be made, is another user's, or others can write it.
    """
    path = root() / name
    with writing(path):
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        path.mkdir(0o700, exist_ok=True)
    for each in (path.parent, path):
        check_own(each)
    return path


def check_own(path: Path) -> None:
    """Raises CacheError unless `path` is this user's, no link, and nobody else can write it."""
    try:
        found = path.lstat()
    except OSError as error:
        raise CacheError(f"{path} can't be read ({error.strerror})", "a cache of this user", ELSEWHERE) from None
    if stat.S_ISLNK(found.st_mode) and path == root():
        found = path.stat()  # the user may well keep it elsewhere
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid():
        who = "a link" if stat.S_ISLNK(found.st_mode) else f"of user {found.st_uid}"
        raise CacheError(f"{path} is {who}", f"a cache of user {os.geteuid()}, since it is loaded as code", ELSEWHERE)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(f"others can write {path}", "a cache that is this user's alone", f"chmod go-w {path}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError in the block becomes a CacheError about `path`."""
    try:
        yield
    except OSError as error:
        raise CacheError(f"can't write {path} ({error.strerror or error})", "room to write", ELSEWHERE) from error
