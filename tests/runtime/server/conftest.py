"""The built-in checkpoint behind HTTP, once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from deltart.export.pipeline import export_checkpoint
from deltart.runtime.engine import Engine, EngineOptions
from support.serving import Served, served

NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of the built-in checkpoint."""
    folder = tmp_path_factory.mktemp("nano") / "nano"
    export_checkpoint(NANO, folder)
    return folder


@pytest.fixture(scope="session")
def engine(nano: Path) -> Iterator[Engine]:
    """Four slots of 2048 tokens."""
    with Engine.open(nano, options=EngineOptions(slots=4, max_model_len=2048)) as engine:
        yield engine


@pytest.fixture(scope="session")
def server(engine: Engine) -> Iterator[Served]:
    """The engine served with the default settings."""
    with served(engine) as server:
        yield server
