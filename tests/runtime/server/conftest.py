"""The built-in checkpoint behind HTTP, once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from deltart.runtime.engine import Engine, EngineOptions
from support.serving import Served, served


@pytest.fixture(scope="session")
def engine(nano_artifact: Path) -> Iterator[Engine]:
    """Four slots of 8192 tokens."""
    with Engine.open(nano_artifact, threads=1, options=EngineOptions(slots=4, max_model_len=8192)) as engine:
        yield engine


@pytest.fixture(scope="session")
def server(engine: Engine) -> Iterator[Served]:
    """The engine served with the default settings."""
    with served(engine) as server:
        yield server
