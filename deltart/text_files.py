"""Reading what users name: regular files of bounded size, text in UTF-8, folders that are folders."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deltart.errors import ConfigError, DeltaRTError

MAX_BYTES = 100_000_000  # of a file that is read whole


def open_regular(path: Path, error: type[DeltaRTError] = ConfigError) -> BinaryIO:
    """The regular file `path`, open for reading.

    Raises:
        DeltaRTError: of class `error`; it is absent, unreadable, a folder, a device, or a pipe: it is not waited for.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as problem:
        raise unreadable(path, problem, error, "a file") from None
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise error(f"{path} is {kind}", "a file", "check the path")
    return os.fdopen(number, "rb")


def read_bytes(path: Path, error: type[DeltaRTError] = ConfigError) -> bytes:
    """The content of the regular file `path`. Raises as `open_regular` does, and for more than MAX_BYTES."""
    try:
        with open_regular(path, error) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as problem:
        raise unreadable(path, problem, error, "a file") from None
    if len(content) > MAX_BYTES:
        raise error(f"{path} is larger than {MAX_BYTES} bytes", "a smaller file", "check the path")
    return content


def read_text(path: Path, error: type[DeltaRTError] = ConfigError) -> str:
    """The text of the regular file `path`. Raises as `read_bytes` and `decode` do."""
    return decode(read_bytes(path, error), str(path), error)


def lines(raw: bytes, where: str, error: type[DeltaRTError] = ConfigError) -> Iterator[tuple[str, str]]:
    """(place for messages, text) of every line of `raw` that is not blank. Raises as `decode` does."""
    for number, line in enumerate(decode(raw, where, error).split("\n"), 1):
        if line.strip():
            yield f"{where}, line {number}", line


def decode(raw: bytes, where: str, error: type[DeltaRTError] = ConfigError) -> str:
    """`raw` as UTF-8, without its byte-order mark. Raises a DeltaRTError of class `error` where it is not UTF-8."""
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as problem:
        found = f"byte {raw[problem.start]:#04x} at {problem.start}"
        raise error(f"{where} is not UTF-8 ({found})", "UTF-8 text", "save it as UTF-8") from None


def check_folder(path: Path, error: type[DeltaRTError], expected: str) -> None:
    """Raises a DeltaRTError of class `error` unless `path` is a folder that can be listed.

    Args:
        expected: what it should be: "a folder written by `deltart export`".
    """
    try:
        os.scandir(path).close()
    except NotADirectoryError:
        raise error(f"{path} is a file", expected, "name the folder that it is in") from None
    except (OSError, ValueError) as problem:
        raise unreadable(path, problem, error, expected) from None


def unreadable(path: Path, problem: Exception, error: type[DeltaRTError], expected: str) -> DeltaRTError:
    """The error, of class `error`, for a `path` whose opening raised `problem`."""
    if isinstance(problem, FileNotFoundError):
        return error(f"{path} does not exist", expected, "check the path")
    hint = "check its permissions" if isinstance(problem, PermissionError) else "check the path"
    reason = problem.strerror if isinstance(problem, OSError) else str(problem)
    return error(f"{path} can't be read ({reason})", expected, hint)
