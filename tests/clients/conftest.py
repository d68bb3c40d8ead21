"""The server that other people's clients talk to: `deltart serve` on the built-in checkpoint, as a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_process import serving

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = Path(os.environ.get("DELTART_CLIENTS", ROOT / ".clients"))


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
