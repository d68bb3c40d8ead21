"""Calibrations of the tiny checkpoint, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deltart.calib.pipeline import calibrate
from support.calibration import write_text, write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


@pytest.fixture(scope="session")
def calibrated(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The output of a method, with everything that can be written."""
    made: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in made:
            made[method] = tmp_path_factory.mktemp(method) / "out"
            calibrate(tiny, made[method], method=method, data=text, kv_cache=True, activations=True)  # type: ignore
        return made[method]

    return make
