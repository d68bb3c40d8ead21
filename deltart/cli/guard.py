"""The outermost guard of a command: whatever happens ends in a message of a few lines and an exit code.

| code | when |
|---|---|
| 0 | the command did what it was asked |
| 1 | it ran, and what it checks is not so |
| 2 | a deliberate error: what was found, what was expected, what to do |
| 70 | a fault of deltart itself; the traceback is in a log file |
| 128 + N | signal N ended it |
"""

from __future__ import annotations

import platform
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from deltart.cli import streams
from deltart.cli.signals import ending
from deltart.errors import DeltaRTError
from deltart.version import __version__

ERROR, FAULT = 2, 70
SHOWN = 200  # characters of a foreign exception's message


def guarded(command: Callable[[], int]) -> int:
    """The exit code of `command`, all it wrote being written."""
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except DeltaRTError as error:
        return say(f"error: {error}")
    except KeyboardInterrupt as stop:
        return say(*ending(stop))
    except BrokenPipeError:
        streams.abandon()
        return 128 + signal.SIGPIPE
    except OSError as error:
        streams.flush()
        found = f"{_where(error)}{error.strerror or error}"
        return say(f"error: {DeltaRTError(found, '', 'check the path, its permissions and the disk')}")
    except MemoryError:
        return say(f"error: {DeltaRTError('this needs more memory than there is', '', 'ask for less at once')}")
    except Exception as error:
        return say(_fault(error), FAULT)


def say(text: str, code: int = ERROR) -> int:
    """Write `text` to standard error; returns `code`."""
    print(f"deltart: {streams.plain(text)}", file=sys.stderr)
    return code


def _where(error: OSError) -> str:
    return f"{error.filename}: " if error.filename is not None else ""


def _fault(error: Exception) -> str:
    """Three lines about an exception that nobody foresaw, and a log file for those who can mend it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())[:SHOWN]
    report = "report it with what you ran, and"
    return (
        f"internal error: {type(error).__name__}: {message}\n"
        f"  at {frame.filename}, line {frame.lineno}; this is a fault of deltart, not of your input\n"
        f"  hint: {report} {_log(error)}"
    )


def _log(error: Exception) -> str:
    """Where the traceback is."""
    said = [
        f"deltart {__version__}, Python {platform.python_version()}, {platform.platform()}",
        shlex.join(sys.argv),
        *traceback.format_exception(error),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="deltart-", suffix=".log", delete=False
        ) as file:
            file.write("\n".join(said))
    except OSError as problem:
        return f"the traceback, which could not be kept ({problem.strerror})"
    return str(Path(file.name))
