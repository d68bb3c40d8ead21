"""Decoding on the device against decoding on the host: same engine values, sampler kernel on the CPU shim."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deltart.errors import GenerationError
from deltart.manifest import load_manifest
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.runtime.backends.base import Backend, Decoder, DecodeRow
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.generate import step
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


def start(backend: Backend, all_params: Sequence[SamplingParams], steps: int) -> tuple[Decoder, list[DecodeRow]]:
    """Slots of prompts of different length, each with its first token drawn on the host."""
    prompts = PROMPTS[: len(all_params)]
    length = max(map(len, prompts))
    ids = np.array([prompt + [0] * (length - len(prompt)) for prompt in prompts])
    counts = np.array([len(prompt) for prompt in prompts], np.int32)
    state = backend.new_state("model", len(prompts), CAPACITY)
    inputs = text_inputs(ids, np.zeros(len(prompts), np.int32), counts)
    (logits,) = backend.run("model", state, inputs, ["logits"])
    rows = []
    for prompt, params, scores in zip(prompts, all_params, logits[:, -1], strict=True):
        sampler = Sampler(params, prompt, VOCAB - 5)
        rows.append(DecodeRow(sampler.sample(scores), len(prompt), sampler))
    return backend.decoder(state, rows, steps), rows


@pytest.mark.parametrize("name", PARAMS)
def test_one_row_draws_the_host_samplers_tokens(cpu: OrtBackend, gpu: TensorRtBackend, name: str) -> None:
    (found, rows), (expected, _) = (start(backend, [PARAMS[name]], 20) for backend in (gpu, cpu))
    assert [found.step() for _ in range(20)] == [expected.step() for _ in range(20)]
    assert rows[0].sampler.step == 21 and rows[0].past == len(PROMPTS[0]) + 20


def test_rows_keep_to_themselves(cpu: OrtBackend, gpu: TensorRtBackend) -> None:
    """Two rows of different lengths and settings, and a slot that is idle."""
    both = [PARAMS["penalties"], PARAMS["plain"]]
    found, expected = (start(backend, both, 12)[0] for backend in (gpu, cpu))
    assert [found.step() for _ in range(12)] == [expected.step() for _ in range(12)]


def test_a_step_is_one_graph_launch_and_two_are_on_their_way(gpu: TensorRtBackend) -> None:
    decoder, _ = start(gpu, [GREEDY], 10)
    assert isinstance(gpu.cuda, HostCuda)
    launched, copied = gpu.cuda.launched, gpu.cuda.copied
    decoder.step()
    assert gpu.cuda.launched - launched == 1  # the first ran plainly, the second as a graph, ahead of its turn
    for _ in range(9):
        decoder.step()
    assert gpu.cuda.launched - launched == 9  # none beyond the last step
    assert gpu.cuda.copied == copied  # nothing goes to the device any more
    with pytest.raises(GenerationError, match="a step more"):
        decoder.step()


def test_other_calls_of_the_plan_in_between(cpu: OrtBackend, gpu: TensorRtBackend) -> None:
    (found, _), (expected, _) = (start(backend, [GREEDY], 8) for backend in (gpu, cpu))
    other = gpu.new_state("model", 1, CAPACITY)
    for past in range(8):
        assert found.step() == expected.step()
        step(gpu, other, [past], past)


def test_a_broken_model_is_reported(gpu: TensorRtBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = OrtExecutor._compute

    def broken(self: OrtExecutor, bound: dict) -> None:
        compute(self, bound)
        address, shape = bound["logits"]
        np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * shape[-1]).from_address(address))[7] = np.nan

    decoder, _ = start(gpu, [GREEDY], 3)
    monkeypatch.setattr(OrtExecutor, "_compute", broken)
    with pytest.raises(GenerationError, match="no finite largest logit"):
        decoder.step()


def test_steps_beyond_the_state(gpu: TensorRtBackend) -> None:
    with pytest.raises(GenerationError, match="64, the state's"):
        start(gpu, [GREEDY], CAPACITY - 3)


def test_a_dropped_decoder_gives_its_memory_back(gpu: TensorRtBackend) -> None:
    assert isinstance(gpu.cuda, HostCuda)
    decoder, _ = start(gpu, [GREEDY], 4)
    decoder.step()
    blocks, pins = len(gpu.cuda.blocks), len(gpu.cuda.pins)
    del decoder
    gc.collect()
    assert len(gpu.cuda.blocks) == blocks - 2 and len(gpu.cuda.pins) == pins - 1  # its buffers, and the state
