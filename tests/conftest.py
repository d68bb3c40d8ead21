"""Shared fixtures: synthetic checkpoints, exported once per session.

What they need is imported where it is used: with `-m gpu` the tests also run on machines that lack some of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.cases import Export, Exported
    from support.seeing import Seeing

with suppress(ModuleNotFoundError):
    from hypothesis import settings

    # Machines differ in speed, and a failure must come back on the next run.
    settings.register_profile("deltart", deadline=None, derandomize=True)
    settings.load_profile("deltart")

# Processes side by side share the cores: torch's threads would wait for one another. Set before torch is imported.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

NANO = Path(__file__).resolve().parents[1] / "tools" / "nano" / "checkpoint"
REAL_FILES = Path(__file__).resolve().parents[2] / "shared" / "qwen3_6"
OURS = ("deltart", "support", "bench", "tools")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu`, folders without such a test are left alone: what their conftest needs may not be there."""
    if config.getoption("markexpr") != "gpu" or not collection_path.is_dir():
        return None
    texts = (path.read_text(encoding="utf-8") for path in collection_path.rglob("test_*.py"))
    return None if any("mark.gpu" in text for text in texts) else True


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """With `-m gpu`, a module that can't be imported for want of somebody's package is skipped, and named."""
    report = yield
    missing = re.search(r"No module named '([\w.]+)'", str(report.longrepr)) if report.failed else None
    if missing and collector.config.getoption("markexpr") == "gpu" and missing[1].split(".")[0] not in OURS:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {missing[1]} is not installed")
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where TensorRT's headers are, if not in one of the system's folders."""
    parser.addoption("--tensorrt-include", type=Path, metavar="DIR", help="folder of NvInfer.h")


@pytest.fixture(scope="session")
def tensorrt_include(pytestconfig: pytest.Config) -> Path:
    """The folder of TensorRT's headers, where this machine has them."""
    from deltart.errors import MissingDependencyError
    from deltart.plugins.native.library import find_headers

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
    from deltart.export.pipeline import export_checkpoint

    folder = tmp_path_factory.mktemp("nano") / "artifact"
    export_checkpoint(NANO, folder)
    return folder


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    """A small random checkpoint with a vision tower, exported."""
    from deltart.export.pipeline import export_checkpoint
    from support.seeing import Seeing, write_seeing_checkpoint

    folder = tmp_path_factory.mktemp("seeing")
    write_seeing_checkpoint(folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "artifact")
    return Seeing(folder / "checkpoint", folder / "artifact")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Writes and exports a case by name, once per session."""
    from deltart.export.pipeline import export_checkpoint
    from deltart.export.synthetic.presets import causal_lm, text_config
    from deltart.export.synthetic.write import write_checkpoint
    from support.cases import CASES, SPARSE_CASES, VOCAB, Exported

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
