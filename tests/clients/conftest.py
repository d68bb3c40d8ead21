"""The server that other people's clients talk to: `deltart serve` on the built-in checkpoint, as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = Path(os.environ.get("DELTART_CLIENTS", ROOT / ".clients"))


@contextmanager
def serving(artifact: Path, *flags: str) -> Iterator[str]:
    """http://HOST:PORT of a server."""
    command = [sys.executable, "-m", "deltart", "serve", str(artifact), "--port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
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


@pytest.fixture(scope="session")
def address(nano_artifact: Path) -> Iterator[str]:
    """A server with the defaults."""
    with serving(nano_artifact) as address:
        yield address


@pytest.fixture(scope="session")
def short(nano_artifact: Path) -> Iterator[str]:
    """A server whose replies are short, whatever is asked."""
    with serving(nano_artifact, "--max-tokens", "16", "--max-model-len", "8192") as address:
        yield address


@pytest.fixture(scope="session")
def installed() -> Path:
    """Where tests/clients/install.sh put the clients."""
    if not CLIENTS.is_dir():
        pytest.skip(f"no clients at {CLIENTS} (make clients)")
    return CLIENTS
