"""Gives a loaded shared library a second name, for one that is looked up by a name it is not shipped under."""

from __future__ import annotations

import ctypes
import platform
import struct
import tempfile
from pathlib import Path

from deltart.errors import MissingDependencyError

_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine
_NEEDED, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME = 1, 5, 6, 10, 11, 14  # dynamic tags
_HEADER, _SEGMENT, _TAG, _SYMBOL = 64, 56, 16, 24  # sizes in bytes


def load_alias(library: Path, name: str) -> None:
    """Load a library called `name` that holds nothing and needs `library`: dlopen(name) then finds its symbols.

    Raises:
        MissingDependencyError: this machine is no 64-bit Linux on x86 or Arm.
    """
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in _MACHINES:
        raise MissingDependencyError(
            f"{library.name} can't be found as {name} on {platform.system()} {machine}",
            "Linux on x86_64 or aarch64",
            f"put a link called {name} beside it, in a folder of the library search path",
        )
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(stub(str(library).encode(), name.encode(), _MACHINES[machine]))
        file.flush()
        ctypes.CDLL(file.name)


def stub(needed: bytes, soname: bytes, machine: int) -> bytes:
    """A little-endian ELF64 shared object with a soname, one needed library and no symbols."""
    strings = b"\0" + soname + b"\0" + needed + b"\0"
    dynamic = _HEADER + 2 * _SEGMENT
    strings_at = dynamic + 7 * _TAG
    symbols_at = -(-(strings_at + len(strings)) // 8) * 8
    size = symbols_at + _SYMBOL
    tags = [
        (_NEEDED, 2 + len(soname)), (_SONAME, 1), (_STRTAB, strings_at), (_STRSZ, len(strings)),
        (_SYMTAB, symbols_at), (_SYMENT, _SYMBOL), (0, 0),
    ]  # fmt: skip
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, _HEADER, 0, 0, _HEADER, _SEGMENT, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 6, 0, 0, 0, size, size, 4096)
    link = struct.pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, dynamic, 7 * _TAG, 7 * _TAG, 8)
    body = identity + header + load + link + b"".join(struct.pack("<QQ", *tag) for tag in tags) + strings
    return body.ljust(size, b"\0")
