"""`deltart serve` as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(artifact: Path, *flags: str) -> Iterator[str]:
    """http://HOST:PORT of a server."""
    command = [sys.executable, "-m", "deltart", "serve", str(artifact), "--port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": os.environ.get("DELTART_TEST_PATH", str(ROOT))}
    process = subprocess.Popen(
        [*command, "--served-model-name", "deltart-nano"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        ready = re.search(r"at (http://\S+)", process.stdout.readline())
        assert ready
        yield ready[1]
    finally:
        process.terminate()
        process.wait(20)
