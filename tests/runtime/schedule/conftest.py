"""The built-in model on both kinds of backend, and chats to ask it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deltart.artifact import load_manifest
from deltart.export.targets import lower_artifact
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.engine_manifest import PlanEntry
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.schedule.positions import Marks
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.verify.ort_executor import OrtExecutor
from support.host_gpu import write_engine
from support.schedules import CONTEXT, Bench

HELDOUT = Path(__file__).resolve().parents[3] / "tools" / "nano" / "heldout.jsonl"


@pytest.fixture(scope="module")
def prompts(nano_artifact: Path) -> list[list[int]]:
    """Chats, as the model was trained on them; short enough to leave room for a reply."""
    tokenizer, template = Tokenizer.from_folder(nano_artifact), ChatTemplate.from_folder(nano_artifact)
    lines = [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()[::7]]
    ids = [tokenizer.encode(template.render(line["messages"], tools=line.get("tools"))) for line in lines]
    return [each for each in ids if len(each) < 150][:40]


def bench_of(backend: OrtBackend | TensorRtBackend, artifact: Path) -> Bench:
    tokenizer = Tokenizer.from_folder(artifact)
    start = tokenizer.id_of("<|im_start|>")
    assert start is not None
    return Bench(backend, tokenizer, Marks(start, tokenizer.encode("user")[0]))


@pytest.fixture(scope="module")
def cpu(nano_artifact: Path) -> Bench:
    return bench_of(OrtBackend(nano_artifact, threads=1), nano_artifact)


@pytest.fixture(scope="module")
def gpu(nano_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A GPU engine over host memory, its plans run by ONNX Runtime in float32."""
    folder = Path(shutil.copytree(nano_artifact, tmp_path_factory.mktemp("gpu") / "artifact"))
    lower_artifact(folder, "tensorrt")
    write_engine(folder, 5, CONTEXT + 10, 64)
    graphs = load_manifest(folder).graphs

    def load(path: Path, entry: PlanEntry) -> OrtExecutor:
        return OrtExecutor(folder, entry, graphs[entry.graph])

    return bench_of(TensorRtBackend(folder, "rtx", cuda=HostCuda(), load=load), folder)
