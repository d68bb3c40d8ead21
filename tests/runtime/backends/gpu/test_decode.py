"""Decoding on the device against decoding on the host: same engine values, sampler kernel on the CPU shim."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deltart.artifact import load_manifest
from deltart.errors import ArtifactError
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.runtime.backends.base import ServingBackend
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.cuda import captured
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.slots import Row, Slots
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sampling.sampler import Sampler
from deltart.verify.ort_executor import OrtExecutor
from support.cases import VOCAB
from support.host_gpu import write_engine

SLOTS, CAPACITY = 3, 64
PROMPTS = [[5, 17, 200, 4], [9, 9]]
GREEDY = SamplingParams(temperature=0)
PARAMS = {
    "greedy": GREEDY,
    "plain": SamplingParams(seed=3),
    "top-k": SamplingParams(seed=4, top_k=9, temperature=0.7),
    "penalties": SamplingParams(
        seed=5, temperature=0.5, presence_penalty=0.7, frequency_penalty=0.3, repetition_penalty=1.4
    ),
}


@pytest.fixture(scope="module")
def artifact(lowered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(lowered, tmp_path_factory.mktemp("decode") / "artifact"))
    write_engine(folder, SLOTS, max_context=CAPACITY, chunk=16)
    return folder


@pytest.fixture(scope="module")
def cpu(artifact: Path) -> OrtBackend:
    return OrtBackend(artifact)


@pytest.fixture
def gpu(artifact: Path) -> TensorRtBackend:
    graphs = load_manifest(artifact).graphs
    return TensorRtBackend(
        artifact, "rtx", cuda=HostCuda(), load=lambda path, entry: OrtExecutor(artifact, entry, graphs[entry.graph])
    )


def admitted(
    backend: ServingBackend, all_params: Sequence[SamplingParams], slots_of: Sequence[int] = (0, 1, 2)
) -> tuple[Slots, dict[int, Row]]:
    """Slots of prompts of different length, each with its first token drawn on the host."""
    slots, rows = backend.open_slots(SLOTS, CAPACITY - 10, VOCAB - 5), dict[int, Row]()
    for slot, prompt, params in zip(slots_of, PROMPTS, all_params, strict=False):
        logits = slots.prefill(slot, prompt, 0, np.array([len(prompt) - 1]))
        sampler = Sampler(params, prompt, VOCAB - 5)
        rows[slot] = Row(len(prompt), [sampler.sample(logits[-1])], sampler)
        slots.admit(slot, rows[slot])
    return slots, rows


def tokens(slots: Slots, steps: int) -> list[dict[int, tuple[int, ...]]]:
    return [{slot: drawn.tokens for slot, drawn in slots.step().items()} for _ in range(steps)]


@pytest.mark.parametrize("name", PARAMS)
def test_one_row_draws_the_host_samplers_tokens(cpu: OrtBackend, gpu: TensorRtBackend, name: str) -> None:
    (found, rows), (expected, _) = (admitted(backend, [PARAMS[name]]) for backend in (gpu, cpu))
    assert tokens(found, 20) == tokens(expected, 20)
    assert rows[0].sampler.step == 21 and rows[0].past == len(PROMPTS[0]) + 20


def test_rows_keep_to_themselves(cpu: OrtBackend, gpu: TensorRtBackend) -> None:
    """Two rows of different lengths and settings, and a slot that is idle between them."""
    both = [PARAMS["penalties"], PARAMS["plain"]]
    found, expected = (admitted(backend, both, (0, 2))[0] for backend in (gpu, cpu))
    assert tokens(found, 12) == tokens(expected, 12)


def test_rows_come_and_go_under_one_captured_graph(cpu: OrtBackend, gpu: TensorRtBackend) -> None:
    """A row leaves, another takes its slot, a third asks for what only the host can do and stops asking."""
    assert isinstance(gpu.cuda, HostCuda)
    (found, mine), (expected, theirs) = (
        admitted(backend, [PARAMS["penalties"], PARAMS["plain"]]) for backend in (gpu, cpu)
    )
    assert tokens(found, 4) == tokens(expected, 4)
    for slots in (found, expected):
        slots.retire(0)
    assert tokens(found, 2) == tokens(expected, 2)
    for slots in (found, expected):
        logits = slots.prefill(0, PROMPTS[1], 0, np.array([1]))
        sampler = Sampler(PARAMS["top-k"], PROMPTS[1], VOCAB - 5)
        slots.admit(0, Row(len(PROMPTS[1]), [sampler.sample(logits[-1])], sampler))
    assert tokens(found, 3) == tokens(expected, 3)
    for wanted in (2, None):
        mine[1].logprobs = theirs[1].logprobs = wanted
        assert tokens(found, 3) == tokens(expected, 3)
    launched = gpu.cuda.launched
    tokens(found, 3)
    assert gpu.cuda.launched == launched + 3, "a step is a launch of the graph"


def test_a_step_that_changes_no_row_copies_nothing_to_the_device(gpu: TensorRtBackend) -> None:
    slots, _ = admitted(gpu, [GREEDY])
    assert isinstance(gpu.cuda, HostCuda)
    tokens(slots, 2)
    copied = gpu.cuda.copied
    tokens(slots, 5)
    assert gpu.cuda.copied == copied


def test_other_calls_of_the_plan_in_between(cpu: OrtBackend, gpu: TensorRtBackend) -> None:
    (found, _), (expected, _) = (admitted(backend, [GREEDY]) for backend in (gpu, cpu))
    other = gpu.new_state("model", 1, CAPACITY)
    for past in range(8):
        assert tokens(found, 1) == tokens(expected, 1)
        gpu.run("model", other, text_inputs(np.array([[past]]), np.array([past], np.int32)), ["logits"])


def test_the_state_is_the_hosts(cpu: OrtBackend, gpu: TensorRtBackend) -> None:
    """After steps on the device: saved, loaded into another slot, and gone on with there."""
    (found, rows), (expected, _) = (admitted(backend, [PARAMS["plain"]]) for backend in (gpu, cpu))
    assert tokens(found, 6) == tokens(expected, 6)
    kept = found.save(0)
    row = found.retire(0)
    found.load(2, kept)
    found.admit(2, row)
    assert kept.past == rows[0].past
    assert [drawn[2] for drawn in tokens(found, 6)] == [drawn[0] for drawn in tokens(expected, 6)]


def test_a_broken_model_is_reported(gpu: TensorRtBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = OrtExecutor._compute

    def broken(self: OrtExecutor, bound: dict) -> None:
        compute(self, bound)
        address, shape = bound["logits"]
        np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * shape[-1]).from_address(address))[7] = np.nan

    slots, _ = admitted(gpu, [GREEDY])
    monkeypatch.setattr(OrtExecutor, "_compute", broken)
    assert "no finite largest logit" in str(slots.step()[0].error)


def test_more_than_the_engine_was_built_for(gpu: TensorRtBackend) -> None:
    with pytest.raises(ArtifactError, match="at most 3 slots"):
        gpu.open_slots(SLOTS + 1, CAPACITY, VOCAB)
    assert gpu.open_slots(1, 10 * CAPACITY, VOCAB).limits.capacity == CAPACITY


def test_dropped_slots_give_their_memory_back(gpu: TensorRtBackend) -> None:
    assert isinstance(gpu.cuda, HostCuda)
    admitted(gpu, [GREEDY])[0].close()
    gc.collect()
    blocks, pins = len(gpu.cuda.blocks), len(gpu.cuda.pins)
    slots, _ = admitted(gpu, [GREEDY])
    tokens(slots, 4)
    slots.close()
    del slots
    gc.collect()
    assert (len(gpu.cuda.blocks), len(gpu.cuda.pins)) == (blocks, pins)


class Cycle:
    """Something on the device in a cycle of references: only the cyclic collector releases it."""

    def __init__(self, cuda: HostCuda, released: list[bool]) -> None:
        self.self = self
        weakref.finalize(self, lambda: released.append(cuda.recording is not None))


def test_nothing_is_released_while_a_step_is_captured() -> None:
    """What a finalizer synchronizes would end the capture: it runs behind it."""
    cuda, threshold, released = HostCuda(), gc.get_threshold(), list[bool]()

    def work() -> None:
        gc.set_threshold(1)
        Cycle(cuda, released)
        _ = [[] for _ in range(100)]

    try:
        assert captured(cuda, work) == [] and gc.isenabled()
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert released == [False]


@pytest.mark.parametrize("error", [TypeError, KeyboardInterrupt, ArtifactError])
def test_whatever_breaks_a_capture_ends_it(error: type[BaseException]) -> None:
    def work() -> None:
        raise error("as it happens")

    cuda = HostCuda()
    with pytest.raises(error):
        captured(cuda, work)
    assert cuda.recording is None and gc.isenabled()
    assert captured(cuda, lambda: None) == []
