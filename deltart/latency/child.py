"""A worker process from the outside: started under a given Python, asked one thing at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from deltart.errors import BenchError

ROOT = Path(__file__).absolute().parents[2]  # where this process found the package: its children find the same
WORKER = Path(__file__).with_name("worker.py")
ERROR_LINES = 12  # of a worker that died


class Child:
    """A process that runs an engine; see `worker.Worker` for what it can be asked.

    Args:
        python: interpreter with a deltart of its own; this one when None.
        worker: the script it runs.
        environment: variables besides those of this process.

    Raises:
        BenchError: by every method, when the process can't be started, dies, or answers with an error.
    """

    def __init__(
        self, python: str | None = None, worker: Path = WORKER, environment: Mapping[str, str] | None = None
    ) -> None:
        self.python = python or sys.executable
        self._doing = "start"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # read when the process has died
        variables = os.environ | dict(environment or {}) | {"PYTHONUNBUFFERED": "1"}
        inherited = variables.pop("PYTHONPATH", "")  # another Python has a deltart of its own
        if python is None:
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), inherited]))
        try:
            self._process = subprocess.Popen(
                [self.python, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                text=True, env=variables,
            )  # fmt: skip
        except OSError as error:
            raise BenchError(f"{self.python} can't be started ({error.strerror})", "a Python interpreter") from error

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one operation."""
        self.tell(do, **arguments)
        return self.answer()

    def tell(self, do: str, **arguments: Any) -> None:
        """Begin an operation; its answer is to be taken before the next."""
        assert self._process.stdin is not None
        self._doing = do
        with suppress(BrokenPipeError):  # there will be no answer, which says more
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """The answer to what it was told last."""
        assert self._process.stdout is not None
        answer, do = self._process.stdout.readline(), self._doing
        if not answer:
            self._process.wait()
            raise BenchError(
                f"the measured process ended with {self._process.returncode} during '{do}':\n{self._last_words()}",
                "one that answers",
                f"run {self.python} with an installed deltart",
            )
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise BenchError(f"{found['kind']}: {found['error']}", f"'{do}' to run")
        return found

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        return "\n".join(self._errors.read().decode(errors="replace").splitlines()[-ERROR_LINES:])
