"""An artifact with its TensorRT graphs, apart from the one that other tests share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.cases import Export
    from support.seeing import Seeing


@pytest.fixture(scope="session")
def lowered(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The "fp8" case, lowered; copy it before writing to it."""
    from deltart.export.targets import lower_artifact

    folder = Path(shutil.copytree(exported("fp8").artifact, tmp_path_factory.mktemp("lowered") / "artifact"))
    lower_artifact(folder, "tensorrt")
    return folder


@pytest.fixture(scope="session")
def lowered_seeing(seeing: Seeing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact that sees, lowered; copy it before writing to it."""
    from deltart.export.targets import lower_artifact

    folder = Path(shutil.copytree(seeing.artifact, tmp_path_factory.mktemp("lowered_seeing") / "artifact"))
    lower_artifact(folder, "tensorrt")
    return folder
