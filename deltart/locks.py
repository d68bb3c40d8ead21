"""Locks between processes that write into one folder. A kill releases them, and they leave no file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deltart.files import try_lock


@contextmanager
def locked(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Be the only process in such a block on `folder`; where the file system knows no locks, be one of them.

    Args:
        waiting: called when another process is in one, before waiting for it.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if try_lock(number) is False:
            waiting()
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
