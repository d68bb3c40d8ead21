"""Files of pictures and videos decoded in a process of their own: one that hangs, crashes or bloats it harms nobody.

A server is sent files by strangers, and libraries of codecs fail in their own ways: they spin, take all memory, or end
the process. Here that is a child, which has bounds on time and memory, may write no file, and is replaced when it is
lost. What it answers is read as numbers and bytes, never as objects.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from deltart.errors import DeltaRTError, GenerationError, MissingDependencyError
from deltart.manifest import VisionEntry
from deltart.runtime.vision.images import MediaLimits
from deltart.runtime.vision.load import Processing, as_medium, load_medium
from deltart.runtime.vision.medium import Kind, Medium
from deltart.typed import typed

MEMORY = 4 << 30  # bytes of address space: the largest picture that is allowed takes 2
_IDLE = 2  # children that are kept
_START_SECONDS = 60.0  # for the imports of a child
_DEATH_SECONDS = 1.0  # until a child that broke off has died, and one can tell of what
_LINE = 64 << 20  # bytes of an answer's head: the times of a long video
_PIPE = 1 << 20  # bytes that a pipe holds, where the system lets it
_ERRORS = {error.__name__: error for error in (GenerationError, MissingDependencyError)}
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_NOUNS: Mapping[Kind, str] = {"image": "picture", "video": "video"}
_MAIN = """
import json, sys
sys.path[:], memory = json.loads(sys.argv[1])
from deltart.runtime.vision.decoder import main
main(memory)
"""


class Decoder:
    """Loads media as `load_medium` does, files in children: a file a child at a time. Any thread may call it.

    Args:
        memory: bytes of address space that a child may take.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._closed = False

    def start(self) -> None:
        """Begin a child, so that it is ready when the first file comes."""
        self._give_back(_Child(self._memory))

    def load(
        self, kind: Kind, source: Any, entry: VisionEntry, fps: float | None = None,
        processing: Processing | None = None, limits: MediaLimits | None = None,
    ) -> Medium:  # fmt: skip
        """See `load_medium`.

        Raises:
            GenerationError: besides, the file takes too long or too much memory to decode, or crashes its decoder.
        """
        if not isinstance(source, (str, Path, bytes, bytearray, memoryview)):
            return load_medium(kind, source, entry, fps, processing, limits)
        child = self._take()
        try:
            medium = child.load(kind, source, entry, processing or Processing(), limits or MediaLimits())
        except DeltaRTError:
            self._give_back(child)
            raise
        except BaseException:  # it may be in the middle of an answer
            child.end()
            raise
        self._give_back(child)
        return medium

    def close(self) -> None:
        """End the children; those at work when they are done."""
        with self._lock:
            children, self._idle, self._closed = self._idle, [], True
        for child in children:
            child.end()

    def _take(self) -> _Child:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.alive:
                    return child
                child.end()
        return _Child(self._memory)

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            kept = child.alive and not self._closed and len(self._idle) < _IDLE
            if kept:
                self._idle.append(child)
        if not kept:
            child.end()


class _Child:
    def __init__(self, memory: int) -> None:
        self._memory, self._ready = memory, False
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, json.dumps([sys.path, memory])], stdin=pipe, stdout=pipe,
            stderr=subprocess.DEVNULL, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        for pipe_end in (self._requests, self._answers):
            _widen(pipe_end)

    @property
    def alive(self) -> bool:
        """Whether it may be asked."""
        return self._process.poll() is None

    def end(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        with suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        self._process.wait()

    def load(
        self, kind: Kind, source: Any, entry: VisionEntry, processing: Processing, limits: MediaLimits
    ) -> Medium:  # fmt: skip
        """The medium of a file. The child is dead after an error that it did not tell of itself."""
        seconds, late = limits.seconds if kind == "image" else limits.video_seconds, False
        if self._begin():
            timer = threading.Timer(seconds, self._process.kill)
            timer.start()
            try:
                answer = self._ask(kind, source, entry, processing, limits, seconds)
                return as_medium(kind, self._frames(answer, entry), entry, tuple(map(float, answer["times"])))
            except (OSError, KeyError, TypeError, ValueError):  # no answer, or not one of `main`
                late = not timer.is_alive()
            finally:
                timer.cancel()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DEATH_SECONDS)
        self._process.kill()
        raise self._lost(_NOUNS[kind], late, seconds)

    def _begin(self) -> bool:
        """Wait for the imports; whether the child lives."""
        if not self._ready:
            timer = threading.Timer(_START_SECONDS, self._process.kill)
            timer.start()
            self._ready = bool(self._answers.readline(2))
            timer.cancel()
        return self._ready

    def _ask(
        self, kind: Kind, source: Any, entry: VisionEntry, processing: Processing, limits: MediaLimits, seconds: float
    ) -> dict[str, Any]:
        """The head of the child's answer. Raises the error that the child tells of."""
        path = os.path.abspath(source) if isinstance(source, (str, Path)) else None
        content = b"" if path is not None else source
        head = {
            "kind": kind, "path": path, "bytes": memoryview(content).nbytes, "entry": asdict(entry),
            "processing": asdict(processing), "limits": asdict(limits), "alarm": math.ceil(seconds) + 5,
        }  # fmt: skip
        self._requests.write(json.dumps(head).encode() + b"\n")
        self._requests.write(content)
        self._requests.flush()
        answer: dict[str, Any] = json.loads(self._answers.readline(_LINE))
        if "memory" in answer:
            raise self._lost(_NOUNS[kind], False, seconds, memory=True)
        if "error" in answer:
            raise _ERRORS[answer["error"]](*(str(answer[part]) for part in ("found", "expected", "hint")))
        return answer

    def _frames(self, answer: Mapping[str, Any], entry: VisionEntry) -> np.ndarray:
        """uint8 [n, height, width, 3] as the child sends them. Raises ValueError for what can't be such."""
        count, height, width = (int(size) for size in answer["shape"])
        block = entry.patch * entry.merge
        if min(count, height, width) < 1 or height % block or width % block or count * height * width > self._memory:
            raise ValueError("no frames")
        frames = np.empty((count, height, width, 3), np.uint8)
        left = frames.data.cast("B")
        while left.nbytes:
            got = cast(Any, self._answers).readinto(left)
            if not got:
                raise ValueError("fewer frames than were told of")
            left = left[got:]
        return frames

    def _lost(self, noun: str, late: bool, seconds: float, memory: bool = False) -> GenerationError:
        if memory:
            found = f"needs more than {self._memory >> 20} MiB of memory to decode"
        elif late:
            found = f"takes more than {seconds:g} s to decode"
        else:
            died = -self._process.wait()
            found = "crashes its decoder" if died in _CRASHES else "its decoder could not finish"
        return GenerationError(f"a {noun} that {found}", "one of a common format and size", f"send a smaller {noun}")


def main(memory: int) -> None:
    """The child: a request's head as a line of JSON and the bytes of the file; answers likewise, frames behind."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print is no answer
    with suppress(ImportError):
        import av  # noqa: F401
    _limit(memory)
    answers.write(b"\n")
    answers.flush()
    while line := requests.readline():
        head = json.loads(line)
        content = requests.read(head["bytes"])
        signal.alarm(head["alarm"])  # ends it where nobody is left to do so
        frames: memoryview | bytes = b""
        try:
            medium = load_medium(
                head["kind"], content if head["path"] is None else head["path"],
                typed(head["entry"], VisionEntry, "the request"), None, Processing(**head["processing"]),
                MediaLimits(**head["limits"]),
            )  # fmt: skip
            answer: dict[str, Any] = {"shape": medium.frames.shape[:3], "times": medium.times}
            frames = np.ascontiguousarray(medium.frames).data
        except (GenerationError, MissingDependencyError) as error:
            short = isinstance(error.__cause__, MemoryError)
            named = {
                "error": type(error).__name__,
                "found": error.found,
                "expected": error.expected,
                "hint": error.hint,
            }
            answer = {"memory": True} if short else named
        except MemoryError:
            answer = {"memory": True}
        signal.alarm(0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(frames)
        answers.flush()


def _limit(memory: int) -> None:
    """No more than so much address space, and no file written."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def _widen(pipe: BinaryIO) -> None:
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
