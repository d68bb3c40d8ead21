"""The TensorRT backend over a GPU made of host memory, against ONNX Runtime on the same artifact."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deltart.artifact import load_manifest
from deltart.cli import main
from deltart.errors import ArtifactError, BuildError, GenerationError
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.runtime.backends.gpu import backend, cuda
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.engine_manifest import PlanEntry, load_engine
from deltart.runtime.backends.ort import OrtBackend
from deltart.verify import tensorrt_exposed
from deltart.verify.exposed import ExposedBackend
from deltart.verify.ort_executor import OrtExecutor
from deltart.verify.runners import backend_points
from deltart.verify.tensorrt_exposed import GRAPH, points
from deltart.verify.tolerances import NATIVE_ON_SHIM
from support.cases import VOCAB
from support.host_gpu import write_engine, write_exposed
from support.twins import Twins, error

SLOTS, CHUNK = 3, 16
TOLERANCE = 1e-4  # relative RMS, float32 against float32


class Twin(Twins):
    """The artifact's engine by ONNX Runtime, and its CPU twin."""

    def __init__(self, artifact: Path, rows: int, capacity: int = 96, graph: str = "model") -> None:
        self.cuda = HostCuda()
        manifest = load_manifest(artifact)
        self.executors: dict[str, OrtExecutor] = {}

        def load(path: Path, entry):
            self.executors[entry.phase] = OrtExecutor(
                artifact, entry, manifest.graphs.get(entry.graph, manifest.graphs["model"])
            )
            return self.executors[entry.phase]

        self.gpu = TensorRtBackend(artifact, "rtx", cuda=self.cuda, load=load)
        super().__init__(self.gpu, OrtBackend(artifact), rows, capacity, graph)


def ids(rows: int, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length))


@pytest.fixture(scope="module")
def artifact(lowered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(lowered, tmp_path_factory.mktemp("engine") / "artifact"))
    write_engine(folder, SLOTS, max_context=128, chunk=CHUNK)
    return folder


@pytest.mark.parametrize("rows", [1, SLOTS])
def test_prefill_then_decode_equals_ort(artifact: Path, rows: int) -> None:
    twin = Twin(artifact, rows)
    index = np.tile(np.array([[39, 0, 21, 21]]), (rows, 1))  # unordered, repeated, in several pieces
    assert twin.call(ids(rows, 40, 0), np.full(rows, 40), index) <= TOLERANCE
    last = np.zeros((rows, 1), np.int64)
    for step in range(5):
        assert twin.call(ids(rows, 1, step), np.ones(rows, np.int64), last) <= TOLERANCE
    assert twin.executors["decode"].enqueued == 2  # once plainly, once into the graph
    assert twin.cuda.launched == 4


def test_bfloat16_borders(artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "copy"))
    write_engine(folder, 1, max_context=64, chunk=CHUNK, exact=False)
    twin = Twin(folder, 1, capacity=64)
    assert twin.call(ids(1, 30, 0), np.array([30]), np.array([[29, 3]])) <= 3e-2


def test_ragged_rows(artifact: Path) -> None:
    twin = Twin(artifact, SLOTS)
    for length, counts in ((20, [20, 0, 7]), (4, [4, 3, 0]), (1, [0, 1, 1]), (33, [1, 33, 17])):
        index = np.maximum(np.array(counts)[:, None] - 1, 0)
        assert twin.call(ids(SLOTS, length, length), np.array(counts), index) <= TOLERANCE


def test_drafts_are_for_short_calls_only(artifact: Path) -> None:
    """Prefill's kernels commit all tokens of a call: drafts in one that long are refused, and nothing advances."""
    twin = Twin(artifact, SLOTS)
    index = np.zeros((SLOTS, 1), np.int64)
    with pytest.raises(GenerationError, match="at most 8 tokens"):
        twin.call(ids(SLOTS, 9, 0), np.full(SLOTS, 9), index, n_commit=np.array([9, 8, 9], np.int32))
    with pytest.raises(GenerationError, match="at most n_tokens"):
        twin.call(ids(SLOTS, 4, 0), np.full(SLOTS, 4), index, n_commit=np.array([4, 5, 4], np.int32))
    n_commit = np.array([1, 0, 4], np.int32)
    for step in range(3):
        assert twin.call(ids(SLOTS, 4, step), np.full(SLOTS, 4), index, n_commit=n_commit) <= TOLERANCE


def test_no_call_is_captured_straight_after_a_change_of_shapes(artifact: Path) -> None:
    """Calls of T = 4, 5, 4, ... by turns never are: the executor's own check would end them. Two alike are."""
    twin = Twin(artifact, 1)
    for length in (4, 5, 4, 5, 4, 4, 4):
        assert twin.call(ids(1, length, length), np.array([length]), np.array([[length - 1]])) <= TOLERANCE
    assert twin.executors["speculate"].enqueued == 6 and twin.cuda.launched == 2


def test_every_token_scored_over_pieces(artifact: Path) -> None:
    twin = Twin(artifact, 1)
    index = np.arange(50)[None]
    assert twin.call(ids(1, 50, 3), np.array([50]), index) <= TOLERANCE


def test_mtp_graph(artifact: Path) -> None:
    twin = Twin(artifact, 2, graph="mtp")
    rng = np.random.default_rng(5)
    for length in (18, 3, 1, 1):
        hidden = rng.standard_normal((2, length, 320)).astype(np.float32)
        index = np.full((2, 1), length - 1)
        assert twin.call(ids(2, length, length), np.full(2, length), index, previous_hidden=hidden) <= TOLERANCE


@pytest.mark.parametrize("prefill", [1, 17, 40])
def test_exposed_plans_agree_with_ort_block_by_block(artifact: Path, tmp_path: Path, prefill: int) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "copy"))
    names = points(write_exposed(folder, load_engine(folder, "rtx")))
    twin = Twin(folder, 1)
    cpu = ExposedBackend(folder)
    assert names == cpu.points == ["embed.h", *(f"layers.{n}.h" for n in range(4))]
    tokens = ids(1, 46, 8)[0]
    found = backend_points(twin.gpu, names, prefill, GRAPH)(tokens)
    expected = backend_points(cpu, names, prefill)(tokens)
    assert [*found] == [*names, "hidden", "logits"] == [p for p in expected if not p.startswith("mtp.")]
    for point in found:
        array = expected[point]
        assert found[point].shape == array.shape and found[point].dtype == np.float32
        assert error(found[point], array) <= TOLERANCE, point
    steps = 46 if prefill == 1 else 46 - prefill
    assert twin.cuda.launched == steps - 1  # decode steps with five more outputs, captured at the second


@pytest.mark.parametrize("prefill", [1, 20, 30])
def test_the_mtp_head_follows_the_text_model(artifact: Path, prefill: int) -> None:
    twin, tokens = Twin(artifact, 1), ids(1, 30, 4)[0]
    found, expected = (backend_points(backend, [], prefill)(tokens) for backend in (twin.gpu, twin.cpu))
    assert [*found] == ["hidden", "logits", "mtp.hidden", "mtp.logits"] and len(found["mtp.hidden"]) == 29
    assert all(error(found[point], expected[point]) <= TOLERANCE for point in found)


def test_verify_command_compares_the_engine(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`deltart verify` as it runs where a GPU is: all five runners, the engine's plans and its exposed ones."""
    folder = Path(shutil.copytree(artifact, tmp_path / "copy"))
    graphs, built = load_manifest(folder).graphs, []

    def build_nothing(artifact: Path, flavour: str, cache: Path) -> None:
        built.append(write_exposed(artifact, load_engine(artifact, flavour)))

    def load(path: Path, entry: PlanEntry) -> OrtExecutor:
        return OrtExecutor(folder, entry, graphs.get(entry.graph, graphs["model"]))

    monkeypatch.setattr(cuda, "CudaDriver", HostCuda)
    monkeypatch.setattr(tensorrt_exposed, "build_exposed", build_nothing)
    monkeypatch.setattr(backend, "executors", lambda engine, plugins, device: load)
    monkeypatch.setattr(backend, "built_flavour", lambda artifact: "rtx")
    monkeypatch.setattr("deltart.runtime.backends.tensorrt.load.built_flavour", lambda artifact: "rtx")
    assert main(["verify", str(folder), "--tokens", "30", "--json", "--html", str(tmp_path / "page.html")]) == 0
    report = json.loads(capsys.readouterr().out)
    runners = {
        name: [d["point"] for d in report["differences"] if d["runner"] == name] for name in report["tolerances"]
    }
    assert [*report["skipped"]] == [NATIVE_ON_SHIM] and len(built) == 1 and report["reference"] == "transformers"
    assert runners["engine"] == ["hidden", "logits", "mtp.hidden", "mtp.logits"]
    assert runners["engine by block"] == ["embed.h", *(f"layers.{n}.h" for n in range(4)), "hidden", "logits"]


def test_exposed_plans_share_the_weights(artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "copy"))
    plain = Twin(folder, 1).cuda.copied
    write_exposed(folder, load_engine(folder, "rtx"))
    assert Twin(folder, 1).cuda.copied == plain


def test_exposed_bfloat16_states(artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "copy"))
    names = points(write_exposed(folder, write_engine(folder, 1, 64, CHUNK, exact=False), exact=False))
    twin, tokens = Twin(folder, 1, capacity=64), ids(1, 20, 8)[0]
    found = backend_points(twin.gpu, names, 17, GRAPH)(tokens)
    expected = backend_points(ExposedBackend(folder), names, 17)(tokens)
    assert max(error(found[point], expected[point]) for point in names) <= 3e-2
    assert error(found["layers.3.h"], expected["layers.3.h"]) > 0


def test_two_states_do_not_mix(artifact: Path) -> None:
    first = Twin(artifact, 1)
    second = Twin.__new__(Twin)
    second.__dict__ |= first.__dict__
    second.states = [b.new_state("model", 1, 64) for b in (first.gpu, first.cpu)]
    second.past = np.zeros(1, np.int32)
    one = np.zeros((1, 1), np.int64)
    for step in range(6):
        for twin in (first, second):
            assert twin.call(ids(1, 1, 10 * step + (twin is first)), np.ones(1, np.int64), one) <= TOLERANCE


def test_a_dropped_state_gives_its_memory_back(artifact: Path) -> None:
    twin = Twin(artifact, 1)
    before = len(twin.cuda.blocks)
    twin.states = []
    gc.collect()
    assert len(twin.cuda.blocks) == before - 1


def test_weights_are_streamed_once_and_buffers_given_back(artifact: Path) -> None:
    cuda = HostCuda()
    backend = TensorRtBackend(artifact, "rtx", cuda=cuda, load=lambda path, entry: pytest.fail("loaded too early"))
    bound = [t for t in backend.manifest.tensors.values() if t.fate == "bound"]
    assert cuda.copied == sum(t.nbytes for t in bound)
    assert not cuda.pins and len(cuda.blocks) == 1


@pytest.mark.parametrize(("slots", "capacity"), [(SLOTS + 1, 10), (1, 129)])
def test_state_beyond_the_plan(artifact: Path, slots: int, capacity: int) -> None:
    backend = TensorRtBackend(artifact, "rtx", cuda=HostCuda(), load=lambda path, entry: None)
    with pytest.raises(ArtifactError, match="as built"):
        backend.new_state("model", slots, capacity)


def test_tokens_beyond_the_capacity(artifact: Path) -> None:
    twin = Twin(artifact, 1, capacity=8)
    with pytest.raises(GenerationError, match="8, the state's capacity"):
        twin.call(ids(1, 9, 0), np.array([9]), np.array([[8]]))


def test_misshapen_input(artifact: Path) -> None:
    twin = Twin(artifact, 2)
    with pytest.raises(GenerationError, match="logit_index"):
        twin.call(ids(2, 1, 0), np.ones(2, np.int64), np.zeros((1, 1), np.int64))


def test_no_plans(artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "copy", ignore=shutil.ignore_patterns("engine")))
    with pytest.raises(ArtifactError, match="deltart build"):
        TensorRtBackend(folder, "rtx", cuda=HostCuda(), load=lambda path, entry: None)


def test_a_failure_while_capturing_is_the_one_reported(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Twin(artifact, 1)
    one = (ids(1, 1, 0), np.ones(1, np.int64), np.zeros((1, 1), np.int64))
    assert twin.call(*one) <= TOLERANCE

    def fail(self: OrtExecutor, stream: HostCuda) -> None:
        raise BuildError("the kernel refused")

    monkeypatch.setattr(OrtExecutor, "enqueue", fail)
    with pytest.raises(BuildError, match="the kernel refused"):
        twin.call(*one)
    assert twin.cuda.recording is None
