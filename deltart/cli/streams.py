"""The standard streams: open whatever the shell closed, writable whatever the locale, quiet when a reader goes away."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

from deltart.errors import GenerationError
from deltart.text_files import MAX_BYTES, decode

# What a terminal acts on: C0 and C1 controls but tab and newline, and the marks that reorder a line.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def prepare() -> None:
    """Make all three streams usable: one that is closed reads and writes nothing, and no character is an error."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which no other file may get
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for name, errors in (("stdin", "surrogateescape"), ("stdout", "backslashreplace"), ("stderr", "backslashreplace")):
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors=errors)


def flush() -> None:
    """Write what standard output still holds back, or nothing more where that is an error."""
    try:
        sys.stdout.flush()
    except OSError:
        abandon()


def abandon() -> None:
    """Write nothing more to standard output, whose reader has gone: Python would complain at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # it is no file
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends


def read_stdin() -> str:
    """All of standard input. Raises GenerationError where it is not UTF-8 or beyond all measure."""
    raw = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise GenerationError(f"standard input is larger than {MAX_BYTES} bytes", "a prompt", "check what is piped in")
    return decode(raw, "standard input", GenerationError)


def plain(text: str) -> str:
    """`text` with what would steer a terminal written out, as in \\x1b."""
    return STEERING.sub(lambda match: ascii(match[0])[1:-1], text)


def shown_to_people(text: str) -> str:
    """Text as it goes to standard output: as it is into a file or pipe, `plain` on a terminal."""
    return plain(text) if sys.stdout.isatty() else text


def print_json(value: Any) -> None:
    """One line of JSON that is valid in whatever encoding standard output has."""
    wide = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not wide, allow_nan=False))
