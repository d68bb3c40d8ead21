"""The trained nano on native plans, every kernel on the CPU shim, against ONNX Runtime on the same artifact."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from deltart.cli.plugins import called_sources
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.runtime.backends.base import ServingBackend
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.cuda import Run
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.native.builder import compile as native_compile
from deltart.runtime.backends.native.executor import NativeExecutor
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.verify import tensorrt_exposed as exposed
from deltart.verify.exposed import ExposedBackend
from deltart.verify.runners import backend_points, read_prompts
from support.native_engine import BAR, HELDOUT, NANO, heldout_ids
from support.twins import Twins, error

Open, Nano = Callable[[str], TensorRtBackend], Callable[[str], Path]
STORED = ("bf16", "fp8", "int4")


@pytest.mark.parametrize("stored", STORED)
def test_every_block_equals_its_twin(engine: Open, stored: str) -> None:
    """A prompt in two pieces, then decode steps, the MTP head over all of it."""
    gpu, ids = engine(stored), heldout_ids(56)
    twin = ExposedBackend(gpu.artifact)
    names = exposed.points(gpu.engine)
    found = backend_points(gpu, names, 48, exposed.GRAPH)(ids)
    found |= {name: array for name, array in backend_points(gpu, [], 48)(ids).items() if name.startswith("mtp.")}
    expected = backend_points(twin, twin.points, 48)(ids)
    assert [*found] == [*twin.points, "hidden", "logits", "mtp.hidden", "mtp.logits"]
    errors = {point: error(found[point], expected[point]) for point in found}
    assert max(errors.values()) <= BAR, errors
    assert errors.pop("embed.h") == 0 and min(errors.values()) > 0


def replies(backend: ServingBackend, prompts: Sequence[Sequence[int]], drafts: int) -> list[list[int]]:
    """Greedy replies of all prompts at once, by the engine that serves users; decode steps draw on the device."""
    greedy = SamplingParams(temperature=0, max_new_tokens=24)
    options = EngineOptions(slots=2, draft_tokens=drafts, cache_bytes=0)
    with Engine(backend, Tokenizer.from_folder(NANO), None, options) as serving:
        asked = [serving.submit(serving.request(prompt, greedy)) for prompt in prompts]
        return [handle.result()[0].drawn for handle in asked]


@pytest.mark.parametrize(
    "stored", ["fp8", *(pytest.param(other, marks=pytest.mark.slow) for other in ("bf16", "int4"))]
)
def test_replies_are_its_twins_token_for_token(engine: Open, stored: str) -> None:
    """Two rows at a time and a third that waits; without drafts, where tokens never leave the device, and with the MTP
    head's."""
    gpu, prompts = engine(stored), read_prompts(HELDOUT, NANO, 3)
    expected = replies(OrtBackend(gpu.artifact), prompts, 0)
    for drafts in (0, 2):
        assert replies(gpu, prompts, drafts) == expected
    assert isinstance(gpu.cuda, HostCuda) and gpu.cuda.launched > 10, "decode steps are launches of a captured graph"


class Recording(HostCuda):
    """Keeps the sources of the kernels that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: set[Path] = set()

    def kernels(self, source: Path) -> Run:
        self.sources.add(source.resolve())
        return super().kernels(source)


@pytest.mark.parametrize("stored, others", [("bf16", {"fp8_linear", "int4_linear"}), ("fp8", {"int4_linear"})])
def test_the_kernels_of_its_plans_are_named(native_nano: Nano, stored: str, others: set[str]) -> None:
    """Those that a reply launches, and no other format's."""
    cuda = Recording()
    replies(TensorRtBackend(native_nano(stored), "native", cuda=cuda), read_prompts(HELDOUT, NANO, 1), 2)
    called = set(called_sources(native_nano(stored)))
    assert cuda.sources <= called
    assert not {source.parent.name for source in called} & (others | {"moe_experts"})


def test_ragged_rows_and_idle_slots(engine: Open) -> None:
    gpu = engine("fp8")
    twins = Twins(gpu, OrtBackend(gpu.artifact), 3, 96)
    ids = heldout_ids(300)
    for turn, (length, counts) in enumerate(((20, [20, 0, 7]), (4, [4, 3, 0]), (1, [0, 1, 1]), (33, [0, 33, 9]))):
        fed = ids[turn * 60 :][: 3 * length].reshape(3, length)
        index = np.maximum(np.array(counts)[:, None] - 1, 0)
        assert twins.call(fed, np.array(counts), index) <= 1.5 * BAR


def test_drafts_leave_no_trace(engine: Open) -> None:
    gpu = engine("fp8")
    twins, ids = Twins(gpu, OrtBackend(gpu.artifact), 3, 64), heldout_ids(60).reshape(3, 20)
    index = np.tile(np.arange(4), (3, 1))
    for step in range(3):
        n_commit = np.array([1, 0, 4], np.int32)
        fed = ids[:, 4 * step : 4 * step + 4]
        assert twins.call(fed, np.full(3, 4), index, n_commit=n_commit) <= 1.5 * BAR


def test_two_states_keep_apart(engine: Open) -> None:
    """Their calls by turns: each has what it has alone, bit for bit, the captured steps too."""
    gpu, ids = engine("bf16"), heldout_ids(40).reshape(2, 20)

    def step(state: object, row: int, begin: int, end: int) -> np.ndarray:
        inputs = text_inputs(ids[row : row + 1, begin:end], np.array([begin], np.int32))
        return gpu.run("model", state, inputs, ["logits"])[0]  # type: ignore[arg-type]

    calls = [(0, 12), *((at, at + 1) for at in range(12, 17))]
    alone = []
    for row in range(2):
        state = gpu.new_state("model", 1, 32)
        alone.append([step(state, row, *call) for call in calls])
    states = [gpu.new_state("model", 1, 32 + 16 * row) for row in range(2)]
    together = [[step(states[row], row, *call) for row in range(2)] for call in calls]
    for turn, pair in enumerate(together):
        for row in range(2):
            np.testing.assert_array_equal(pair[row], alone[row][turn])


def test_a_block_without_room_is_seen(native_nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of all of the above: tensors that overlap in memory break the numbers."""
    artifact = Path(shutil.copytree(native_nano("bf16"), tmp_path / "artifact", symlinks=True))
    place = native_compile.place

    def crowded(lives: Sequence[native_compile.Life]) -> tuple[dict[str, int], int]:
        offsets, nbytes = place(lives)
        return {name: at // 512 * 256 for name, at in offsets.items()}, nbytes

    monkeypatch.setattr(native_compile, "place", crowded)
    shutil.rmtree(artifact / "engine")
    build_engine(artifact, BuildOptions("native", None, 1, 64, 32))
    gpu = TensorRtBackend(artifact, "native", cuda=HostCuda())
    twins = Twins(gpu, OrtBackend(artifact), 1, 64)
    assert not twins.call(heldout_ids(8)[None], np.array([8]), np.array([[7]])) <= BAR


def test_the_launches_of_a_bound_call_are_made_once(engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, made = engine("bf16"), []
    make = NativeExecutor._made

    def counted(self: NativeExecutor) -> object:
        made.append(self)
        return make(self)

    monkeypatch.setattr(NativeExecutor, "_made", counted)
    state, ids = gpu.new_state("model", 1, 64), heldout_ids(40)
    for begin in (0, 10, 20):
        inputs = text_inputs(ids[None, begin : begin + 10], np.array([begin], np.int32))
        gpu.run("model", state, inputs, ["logits"])
    assert len(made) == 1
    del state
    gc.collect()
