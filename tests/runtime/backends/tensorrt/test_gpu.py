"""What needs a GPU: the driver calls, single ops as plans, and whole engines against ONNX Runtime. Run with -m gpu."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deltart.errors import MissingDependencyError
from deltart.export.pipeline import export_checkpoint
from deltart.export.targets import lower_artifact
from deltart.manifest import WeightEntry
from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.cuda import CudaDriver
from deltart.runtime.backends.gpu.weight_stream import layout, reads, stream_weights
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.runtime.backends.tensorrt.builder.makers import PRESENT_GPU
from deltart.runtime.backends.tensorrt.executor import TensorRtExecutor
from deltart.runtime.backends.tensorrt.library import installed
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.verify import tensorrt_exposed as exposed
from deltart.verify.compare import Runner, collect, judge
from deltart.verify.exposed import ExposedBackend
from deltart.verify.runners import backend_points, backend_reply, read_prompts
from deltart.verify.tensorrt_exposed import build_exposed
from support.one_op import BF16, check_gated_delta_rule, run_op

pytestmark = pytest.mark.gpu
Record = Callable[[str, object], None]  # figures: pytest -m gpu --junit-xml FILE keeps them
PRESENT = (PRESENT_GPU,)
BAR = 2e-2  # relative RMS of bfloat16 activations against float32
NANO = Path(__file__).resolve().parents[4] / "tools" / "nano" / "checkpoint"
HELDOUT = NANO.parent / "heldout.jsonl"


@pytest.fixture(scope="module")
def cuda() -> CudaDriver:
    try:
        return CudaDriver()
    except MissingDependencyError as error:
        pytest.skip(f"no GPU: {error}")


@pytest.fixture(scope="module")
def nano(cuda: CudaDriver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained nano with plans for this GPU, those that return every block among them."""
    if not installed():
        pytest.skip("TensorRT is not installed")
    artifact, flavour = tmp_path_factory.mktemp("nano") / "artifact", installed()[0]
    export_checkpoint(NANO, artifact)
    lower_artifact(artifact, "tensorrt")
    build_engine(artifact, BuildOptions(flavour, PRESENT, 2, 512, 64))
    build_exposed(artifact, flavour, None)
    return artifact


def opened(artifact: Path, cuda: CudaDriver) -> TensorRtBackend:
    return TensorRtBackend(artifact, installed()[0], cuda=cuda)


def heldout_ids(count: int) -> np.ndarray:
    """Tokens of held-out questions, one after another."""
    text = " ".join(json.loads(line)["messages"][0]["content"] for line in HELDOUT.read_text().splitlines()[:40])
    return np.array(Tokenizer.from_folder(NANO).encode(text)[:count])


def test_copies_and_graphs(cuda: CudaDriver) -> None:
    source, target = cuda.pinned(1000), cuda.pinned(1000)
    address = cuda.allocate(1000)
    source[:] = np.arange(1000) % 251
    cuda.begin_capture()
    cuda.to_device(address, source)
    cuda.to_host(target, address)
    graph = cuda.end_capture()
    for fill in (1, 2):
        source[:10] = fill
        cuda.launch(graph)
        cuda.synchronize()
        np.testing.assert_array_equal(target, source)
    cuda.discard(graph)
    cuda.free(address)


@pytest.mark.parametrize("tokens", [1, 8, 9, 100, 1000])
def test_gated_delta_rule_plan(cuda: CudaDriver, tokens: int, tmp_path: Path) -> None:
    check_gated_delta_rule(cuda, tokens, tmp_path)


@pytest.mark.parametrize("tokens", [1, 5, 100])
def test_causal_conv1d_plan(cuda: CudaDriver, tokens: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(tokens)
    n_commit = np.array([tokens, tokens // 2], np.int32)
    arrays = [rng.standard_normal(s).astype(BF16) for s in ((2, tokens, 256), (256, 1, 4), (2, 3, 256))] + [n_commit]
    wide = [a.astype(np.float64) if a.dtype != np.int32 else a for a in arrays]
    expected, kept = CAUSAL_CONV1D.reference(*wide)
    y, state = run_op(cuda, CAUSAL_CONV1D, arrays, {}, tmp_path)
    assert relative_rms(y, expected) <= TOLERANCE["bf16"]
    assert relative_rms(state, kept) == 0


def test_engine_equals_its_cpu_twin(cuda: CudaDriver, nano: Path) -> None:
    """Two slots: prefill in pieces, a speculative call, then decode steps that become a CUDA graph."""
    twins = (opened(nano, cuda), OrtBackend(nano))
    states = [backend.new_state("model", 2, 256) for backend in twins]
    ids = heldout_ids(250).reshape(2, 125)
    past = 0
    for length in (100, 5, *[1] * 20):
        inputs = text_inputs(ids[:, past : past + length], np.full(2, past, np.int32))
        found, expected = (
            backend.run("model", state, inputs, ["logits"])[0] for backend, state in zip(twins, states, strict=True)
        )
        assert relative_rms(found, expected) <= BAR
        past += length


def test_every_block_equals_its_cpu_twin(cuda: CudaDriver, nano: Path, record_property: Record) -> None:
    engine, twin, ids = opened(nano, cuda), ExposedBackend(nano), heldout_ids(200)
    names = exposed.points(engine.engine)
    found = backend_points(engine, names, 150, exposed.GRAPH)(ids)
    expected = backend_points(twin, twin.points, 150)(ids)
    errors = {point: float(relative_rms(found[point], expected[point])) for point in [*names, "hidden", "logits"]}
    record_property("relative_rms", errors)
    assert all(error <= BAR for error in errors.values()), errors


def test_greedy_replies_equal_its_cpu_twins(cuda: CudaDriver, nano: Path, record_property: Record) -> None:
    """On held-out prompts, but for those where an allowed error may decide a tie either way."""
    prompts, tokenizer = read_prompts(HELDOUT, NANO, 100), Tokenizer.from_folder(NANO)
    makers = {
        name: lambda b=backend: Runner(backend_points(b, [], 64), backend_reply(b, tokenizer, 128))
        for name, backend in (("ort", OrtBackend(nano)), ("engine", opened(nano, cuda)))
    }
    found = judge(nano, collect(makers, heldout_ids(100), prompts), {"ort": BAR, "engine": BAR})
    (agreement,) = found.replies
    record_property("replies", str(agreement))
    assert agreement.passed, found.replies


def test_a_captured_step_is_the_plain_one(cuda: CudaDriver, nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, states included: the last step reads what all others wrote."""
    ids, results = heldout_ids(40), []
    for captured in (True, False):
        if not captured:
            monkeypatch.setattr(TensorRtExecutor, "capturable", lambda self, stream: False)
        results.append(backend_points(opened(nano, cuda), [], 20)(ids))
    for point, array in results[0].items():
        np.testing.assert_array_equal(results[1][point], array, point)


def test_kernels_are_compiled_once(cuda: CudaDriver, nano: Path, record_property: Record) -> None:
    if installed()[0] != "rtx":
        pytest.skip("full TensorRT compiles nothing at run time")
    seconds = []
    for kept in (False, True):
        folder = nano / "engine" / "rtx"
        for path in folder.glob("*.kernels") if not kept else ():
            path.unlink()
        began = time.perf_counter()
        backend_points(opened(nano, cuda), [], 20)(heldout_ids(24))
        seconds.append(time.perf_counter() - began)
        assert {path.name.split(".")[1] for path in folder.glob("model.*.kernels")} == {"decode", "prefill"}
    record_property("seconds", {"compiled": seconds[0], "kept": seconds[1]})


def test_weights_are_streamed_whole(cuda: CudaDriver, tmp_path: Path, record_property: Record) -> None:
    """A gigabyte from the page cache, every byte in its place."""
    path, nbytes = tmp_path / "weights", 1 << 30
    content = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    content.tofile(path)
    entry = WeightEntry("bound", "U8", [nbytes], "weights", 0, nbytes)
    place = layout({"w": entry})
    base = cuda.allocate(place.nbytes)
    began = time.perf_counter()
    stream_weights(cuda, {"weights": path}, reads({"w": entry}, place), base)
    record_property("gbs", nbytes / (time.perf_counter() - began) / 1e9)
    back = cuda.pinned(nbytes)
    cuda.to_host(back, base)
    cuda.synchronize()
    assert np.array_equal(back, content)
    cuda.unpin(back)
    cuda.free(base)
