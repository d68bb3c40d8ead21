"""Compilers as child processes: what they said when they fail, and all of them stopped when the parent is."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from deltart.errors import BuildError

V = TypeVar("V")
T = TypeVar("T")
_running: set[subprocess.Popen[Any]] = set()


def compile_with(command: Sequence[str], source: Path, expected: str = "") -> str:
    """What a compiler writes while it makes something of `source`.

    Raises:
        BuildError: it fails, with its own words, or is killed.
    """
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{command[0]} can't be run ({error.strerror})", "a working compiler") from None
    _running.add(child)
    try:
        said, _ = child.communicate()
    finally:
        _running.discard(child)
    name = Path(command[0]).name
    if child.returncode < 0:
        raise BuildError(
            f"{name} was ended by {signal.Signals(-child.returncode).name} while it compiled {source.name}",
            "a compiler that runs to its end",
            "look whether memory was short, and try again",
        )
    if child.returncode:
        raise BuildError(f"{name} could not compile {source.name}:\n{said}", expected)
    return said


def in_parallel(function: Callable[[V], T], values: Iterable[V], workers: int | None) -> list[T]:
    """`function` of every value, `workers` at a time; an interrupt ends the compilers that run, and starts no other.

    Raises whatever `function` raises for the first value that fails, when the others are through.
    """
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(function, value) for value in values]
        try:
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(_running):
                os.killpg(child.pid, signal.SIGKILL)  # nvcc's own children too
            raise
