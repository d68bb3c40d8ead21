"""Base checkpoints of merges, written once per session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.adapters import Base, linears, write_adapter
from support.calibration import write_tiny
from support.seeing import write_seeing_checkpoint


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A text model of 4 layers with an MTP head, by the type of its weights; "sees": the vendor's layout; "tied"."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("base") / kind
            if kind == "sees":
                write_seeing_checkpoint(made[kind])
            else:
                tied = kind == "tied"
                write_tiny(made[kind], "BF16" if tied else kind, tied=tied)
        return made[kind]

    return make


@pytest.fixture
def own(base: Base, tmp_path: Path) -> Path:
    """A copy of the BF16 base, to change."""
    return shutil.copytree(base("BF16"), tmp_path / "own")


@pytest.fixture
def adapter(base: Base, tmp_path: Path) -> Path:
    """Of every linear of the text model."""
    return write_adapter(tmp_path / "adapter", base("BF16"), linears(base("BF16")))
