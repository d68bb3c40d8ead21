"""Pictures through a GPU engine over host memory: the tower's plan, and its rows in prefill, as on ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltart.artifact import load_manifest
from deltart.errors import GenerationError
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.calls import seen_rows
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.runtime.vision.tower import grid_inputs
from deltart.verify.exposed import ExposedBackend
from deltart.verify.ort_executor import OrtExecutor
from deltart.verify.runners import backend_sees
from deltart.verify.shown import shown_media
from support.host_gpu import write_engine
from support.vision import photograph

CHUNK = 24  # tokens of a prefill call: pictures are cut
GREEDY = SamplingParams(temperature=0, max_new_tokens=20, ignore_eos=True)
PICTURE = {"type": "image", "image": photograph(33, 50)}
VIDEO = {"type": "video", "video": np.stack([photograph(24, 36, seed) for seed in range(6)]), "fps": 2.0}
CASES: dict[str, list[Any]] = {
    "text": [{"type": "text", "text": "nothing to see"}],
    "picture": [PICTURE, {"type": "text", "text": "what?"}],
    "picture at the end": [{"type": "text", "text": "what?"}, {"type": "image", "image": photograph(90, 20, 3)}],
    "mix": [{"type": "text", "text": "a"}, VIDEO, {"type": "image", "image": photograph(40, 30, 9)}, PICTURE],
}


@pytest.fixture(scope="module")
def artifact(lowered_seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(lowered_seeing, tmp_path_factory.mktemp("seeing") / "artifact"))
    write_engine(folder, 2, 512, CHUNK)
    return folder


@pytest.fixture(scope="module")
def gpu(artifact: Path) -> TensorRtBackend:
    """Plans run by ONNX Runtime in float32."""
    graphs = load_manifest(artifact).graphs
    load = lambda path, entry: OrtExecutor(artifact, entry, graphs[entry.graph])  # noqa: E731
    return TensorRtBackend(artifact, "rtx", cuda=HostCuda(), load=load)


def opened(backend: TensorRtBackend | OrtBackend, artifact: Path, **options: Any) -> Engine:
    chosen = EngineOptions(slots=2, max_model_len=400, **options)
    return Engine(backend, Tokenizer.from_folder(artifact), ChatTemplate.found_in(artifact), chosen)


@pytest.fixture(scope="module")
def expected(artifact: Path) -> dict[str, tuple[int, ...]]:
    """ONNX Runtime's replies."""
    with opened(OrtBackend(artifact), artifact, draft_tokens=0) as engine:
        return {name: said(engine, name) for name in CASES}


@pytest.fixture(scope="module", params=[0, None], ids=["on the device", "with drafts"])
def engine(request: pytest.FixtureRequest, gpu: TensorRtBackend, artifact: Path) -> Iterator[Engine]:
    options = {} if request.param is None else {"draft_tokens": request.param}
    with opened(gpu, artifact, **options) as made:
        yield made


def said(engine: Engine, name: str) -> tuple[int, ...]:
    prompt = Chats(engine).prompt([{"role": "user", "content": CASES[name]}])
    return tuple(engine.submit(prompt.request(GREEDY)).result()[0].tokens)


@pytest.mark.parametrize(("frames", "rows", "columns"), [(1, 2, 2), (3, 8, 14)])
def test_the_tower(frames: int, rows: int, columns: int, gpu: TensorRtBackend, artifact: Path) -> None:
    entry = gpu.manifest.vision
    assert entry is not None and gpu.sees
    patches = np.random.default_rng(0).standard_normal((frames, rows * columns, 6 * entry.patch**2)).astype(np.float32)
    inputs = {"patches": patches, **grid_inputs(rows, columns, entry)}
    found, right = gpu.see(inputs), OrtBackend(artifact, "portable").see(inputs)
    assert found.shape == right.shape == (frames, rows * columns // 4, entry.out)
    assert relative_rms(found, right) < 1e-6


def test_a_frame_beyond_the_plan(gpu: TensorRtBackend) -> None:
    entry = gpu.manifest.vision
    assert entry is not None
    patches = np.zeros((1, entry.max_patches + 4, 6 * entry.patch**2), np.float32)
    with pytest.raises(GenerationError, match=f"a frame of {entry.max_patches + 4} patches"):
        gpu.see({"patches": patches, **grid_inputs(2, entry.max_patches // 2 + 2, entry)})


@pytest.mark.parametrize("name", CASES)
def test_replies_are_those_of_onnx_runtime(name: str, engine: Engine, expected: dict[str, tuple[int, ...]]) -> None:
    assert said(engine, name) == expected[name]


def test_what_is_shown_is_seen(expected: dict[str, tuple[int, ...]], engine: Engine) -> None:
    prompt = Chats(engine).prompt([{"role": "user", "content": CASES["picture"]}])
    blind = engine.generate(prompt.ids, GREEDY)
    assert tuple(blind.tokens) != expected["picture"]


def test_verify_sees_as_the_engine_does(gpu: TensorRtBackend, artifact: Path) -> None:
    """What `deltart verify` compares of an engine's pictures, beside ONNX Runtime's."""
    entry, ort = gpu.manifest.vision, ExposedBackend(artifact)
    assert entry is not None
    for one in shown_media(entry, Tokenizer.from_folder(artifact), np.arange(5, 60)):
        found = backend_sees(gpu, lambda inputs: {"embeds": gpu.see(inputs)})(one)
        right = backend_sees(ort, ort.tower)(one)
        assert [*found] == ["embeds", "positions", "hidden", "logits"]
        assert all(relative_rms(array, right[point]) < 1e-5 for point, array in found.items())


def test_prompts_side_by_side(engine: Engine, expected: dict[str, tuple[int, ...]]) -> None:
    chats = Chats(engine)
    names = ["mix", "text", "picture", "mix"]
    prompts = [chats.prompt([{"role": "user", "content": CASES[name]}]) for name in names]
    handles = [engine.submit(prompt.request(GREEDY)) for prompt in prompts]
    assert [tuple(handle.result()[0].tokens) for handle in handles] == [expected[name] for name in names]


def test_a_piece_takes_the_rows_of_its_own_tokens() -> None:
    embeds = np.arange(12, dtype=np.float32).reshape(6, 2)
    found = seen_rows(embeds, np.array([[-1, 3, 4, -1]]))
    assert np.array_equal(found["vision_embeds"], embeds[3:5])
    assert np.array_equal(found["vision_index"], [[-1, 0, 1, -1]])
    found = seen_rows(embeds, np.array([[-1, -1]]))
    assert found["vision_embeds"].shape == (1, 2) and np.array_equal(found["vision_index"], [[-1, -1]])
