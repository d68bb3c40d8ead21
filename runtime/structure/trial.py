"""Grammars are tried in a process of their own first: one that takes too long or too much memory harms nobody.

llguidance compiles in one go that nothing can interrupt, and some short schemas take it minutes, or crash it. The
process compiles for a vocabulary of bytes, which is what compiling for the real one costs but for a small rest.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from typing import Any

from deltart.errors import GenerationError

_MAIN = """
import json, sys
sys.path[:], memory = json.loads(sys.argv[1])
from deltart.runtime.structure.trial import main
main(memory)
"""


class Trial:
    """Compiles grammars in a child process, one at a time; started by the first, and again after one that failed.

    Args:
        seconds, memory: what a grammar may take; memory in bytes of the child's whole address space.
    """

    def __init__(self, seconds: float, memory: int = 1 << 31) -> None:
        self._seconds, self._memory = seconds, memory
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def refusal(self, grammar: str) -> str | None:
        """Why `grammar` can't be compiled, in llguidance's words; None if it can.

        Raises:
            GenerationError: it takes too long or too much memory.
        """
        with self._lock:
            child = self._running()
            late = threading.Timer(self._seconds, child.kill)
            late.start()
            try:
                answer = _ask(child, grammar)
            finally:
                in_time = late.is_alive()
                late.cancel()
            if answer:
                reason: str | None = json.loads(answer)
                return reason
            self._child = None
            child.kill()
            died = child.wait()
        if not in_time:
            found = f"takes more than {self._seconds:g} s to compile"
        elif died == -signal.SIGSEGV:
            found = "llguidance crashes on"
        else:
            found = f"needs more than {self._memory >> 20} MiB to compile"
        raise GenerationError(f"a grammar that {found}", "a simpler one", "make it smaller")

    def close(self) -> None:
        """End the child."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-c", _MAIN, json.dumps([sys.path, self._memory])]
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            _ask(self._child, "start: ")  # imports take longer than a grammar may
        return self._child


def _ask(child: subprocess.Popen[str], grammar: str) -> str:
    stdin, stdout = child.stdin, child.stdout
    assert stdin is not None and stdout is not None
    try:
        stdin.write(json.dumps(grammar) + "\n")
        stdin.flush()
        return stdout.readline()
    except BrokenPipeError:
        return ""


def main(memory: int) -> None:
    """The child: a grammar a line, as JSON; for each, null or the reason against it."""
    import llguidance  # alone: nothing else of the runtime's is needed

    _limit_memory(memory)
    tokenizer = llguidance.LLTokenizer("byte")
    for line in sys.stdin:
        matcher = llguidance.LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits(llguidance))
        print(json.dumps(matcher.get_error() or None), flush=True)


def limits(llguidance: Any) -> Any:
    """llguidance's own bounds: less memory than by default, wider objects, no state of the parser in messages."""
    return llguidance.LLParserLimits(verbose_errors=False, max_lexer_states=100_000, max_items_in_row=4_000)


def _limit_memory(memory: int) -> None:
    try:
        import resource
    except ImportError:  # not on this system
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
