"""Linux's renameat2: two names change places at once, or a name is taken only if it is free."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD = -100
NOREPLACE, EXCHANGE = 1, 2  # linux/fs.h
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # by the kernel, the C library or the file system


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of one file system change places in one step. False where that can't be done. Raises OSError."""
    return _renameat2(one, other, EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Rename, but never onto anything. Raises OSError, FileExistsError above all."""
    if _renameat2(source, target, NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))
