"""Shared fixtures: synthetic checkpoints, exported once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from deltart.artifact import load_manifest
from deltart.errors import MissingDependencyError
from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.plugins.native.library import find_headers
from support.cases import CASES, SPARSE_CASES, VOCAB, Export, Exported
from support.seeing import Seeing, write_seeing_checkpoint

# Machines differ in speed, and a failure must come back on the next run.
settings.register_profile("deltart", deadline=None, derandomize=True)
settings.load_profile("deltart")

NANO = Path(__file__).resolve().parents[1] / "tools" / "nano" / "checkpoint"
REAL_FILES = Path(__file__).resolve().parents[2] / "shared" / "qwen3_6"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where TensorRT's headers are, if not in one of the system's folders."""
    parser.addoption("--tensorrt-include", type=Path, metavar="DIR", help="folder of NvInfer.h")


@pytest.fixture(scope="session")
def tensorrt_include(pytestconfig: pytest.Config) -> Path:
    """The folder of TensorRT's headers, where this machine has them."""
    given = pytestconfig.getoption("--tensorrt-include")
    try:
        return find_headers([given] if given else [])
    except MissingDependencyError as error:
        if given:
            raise
        pytest.skip(f"{error.found} (pytest --tensorrt-include DIR)")


@pytest.fixture(scope="session")
def real_files() -> Path:
    """Configs, tensor maps, tokenizer and template of the real models, where this machine has them."""
    if not REAL_FILES.is_dir():
        pytest.skip(f"the real model's files are not at {REAL_FILES}")
    return REAL_FILES


@pytest.fixture(scope="session")
def nano_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in checkpoint, exported."""
    folder = tmp_path_factory.mktemp("nano") / "artifact"
    export_checkpoint(NANO, folder)
    return folder


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    """A small random checkpoint with a vision tower, exported."""
    folder = tmp_path_factory.mktemp("seeing")
    write_seeing_checkpoint(folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "artifact")
    if load_manifest(folder / "artifact").vision is None:
        pytest.skip("the exporter makes no vision graphs")
    return Seeing(folder / "checkpoint", folder / "artifact")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Writes and exports a case by name, once per session."""
    made: dict[str, Exported] = {}

    def make(case: str) -> Exported:
        if case not in made:
            sizes, storage = (CASES | SPARSE_CASES)[case]
            folder = tmp_path_factory.mktemp(case)
            config = causal_lm(text_config(**sizes, vocab=VOCAB, max_position=2048))
            write_checkpoint(config, folder / "checkpoint", **{"dtype": "F32", **storage})
            export_checkpoint(folder / "checkpoint", folder / "artifact")
            made[case] = Exported(config, folder / "checkpoint", folder / "artifact")
        return made[case]

    return make
