"""Launches that begin before the ones before them end: until a kernel waits, it touches nothing but weights.

On the shim what launches share is NaN to a block until all of its threads have waited, and what it writes is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.plugins.cpu_shim.runner import compile_cpu
from deltart.plugins.launch import Launch, ints, pointers
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.native.executor import NativeExecutor
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.text.tokenizer import Tokenizer
from support.native_engine import NANO, heldout_ids

PLUGINS = Path(__file__).resolve().parents[4] / "deltart" / "plugins"
Nano = Callable[[str], Path]


class HoldingCuda(HostCuda):
    """A GPU of host memory whose kernels find everything but weights and constants held; keeps their names."""

    def __init__(self) -> None:
        super().__init__()
        self.backend: TensorRtBackend | None = None
        self.ran: set[str] = set()

    def kernels(self, source: Path) -> Callable[[list[Launch]], None]:
        run = super().kernels(source)

        def held(launches: list[Launch]) -> None:
            self.do(self._hold)
            self.ran |= {launch.kernel for launch in launches}
            run(launches)

        return held

    def _hold(self) -> None:
        assert self.backend is not None
        fixed = set(self.backend.weights.values())
        for plan in self.backend._plans.values():
            assert isinstance(plan.executor, NativeExecutor)
            fixed |= set(plan.executor._constants.values())
        self.held = [
            (at, len(block) - 256)
            for at, block in self.blocks.items()
            if not any(at <= address < at + len(block) for address in fixed)
        ]


def held(artifact: Path) -> TensorRtBackend:
    cuda = HoldingCuda()
    cuda.backend = TensorRtBackend(artifact, "native", cuda=cuda)
    return cuda.backend


def logits(backend: TensorRtBackend) -> list[np.ndarray]:
    """A prompt's piece, a call of four tokens, and a step, of each graph."""
    ids, found = heldout_ids(21)[None], []
    state = backend.new_state("model", 1, 64)
    for begin, end in ((0, 16), (16, 20), (20, 21)):
        inputs = text_inputs(ids[:, begin:end], np.array([begin], np.int32))
        found += backend.run("model", state, inputs, ["logits", "hidden"])
    return found


@pytest.mark.parametrize("stored", ["fp8", "int4", pytest.param("bf16", marks=pytest.mark.slow)])
def test_calls(native_nano: Nano, stored: str) -> None:
    expected = logits(TensorRtBackend(native_nano(stored), "native", cuda=HostCuda()))
    for one, other in zip(logits(held(native_nano(stored))), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("temperature", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_replies_drawn_on_the_device(native_nano: Nano, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=20, seed=7, max_new_tokens=4, ignore_eos=True)

    def reply(backend: TensorRtBackend, drafts: int) -> list[int]:
        options = EngineOptions(slots=1, draft_tokens=drafts, cache_bytes=0)
        with Engine(backend, Tokenizer.from_folder(NANO), None, options) as serving:
            return serving.generate(heldout_ids(8).tolist(), params).drawn

    for drafts in (0, 2):
        backend = held(native_nano("fp8"))
        plain = TensorRtBackend(native_nano("fp8"), "native", cuda=HostCuda())
        assert reply(backend, drafts) == reply(plain, drafts)
        assert isinstance(backend.cuda, HoldingCuda)
        assert any(name.startswith("sampler_") for name in backend.cuda.ran) or drafts


def test_every_kernel_begins_so() -> None:
    """Those that no plan of nano calls, too."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(PLUGINS.glob("*/*.cu*"))}
    begins = [
        (path.name, found[1])
        for path, text in texts.items()
        for found in re.finditer(r'extern "C" __global__[^{]*\{\s*\\?\s*([^;]*;)', text)
    ]
    assert len(begins) > 40
    wrong = [(name, first) for name, first in begins if first not in ("begin_dependent();", "launch_dependents();")]
    assert not wrong
    assert sum(text.count("wait_for_dependency();") for text in texts.values()) >= 4


TOY = """#include "{common}/cuda.cuh"
extern "C" __global__ void toy(const float* weight, const float* x, float* y) {{
  {before}
  y[threadIdx.x] = at * weight[threadIdx.x];
}}
EXPORT_KERNEL(toy)
"""
RIGHT = "const float w = weight[0]; begin_dependent(); const float at = x[threadIdx.x] + w - w;"
WRONG = {
    "reads before it waits": "const float at = x[threadIdx.x]; begin_dependent();",
    "writes before it waits": "y[threadIdx.x + 32] = 3; begin_dependent(); const float at = x[threadIdx.x];",
    "ended without waiting": "const float at = x[threadIdx.x]; if (threadIdx.x) wait_for_dependency();",
}


@pytest.mark.parametrize("what", ["right", *WRONG])
def test_the_shim_sees_who_looks_ahead(tmp_path: Path, what: str) -> None:
    source = tmp_path / "toy.cu"
    source.write_text(TOY.format(common=PLUGINS / "common", before=WRONG.get(what, RIGHT)))
    weight, x, y = np.full(32, 2, np.float32), np.arange(32, dtype=np.float32), np.zeros(64, np.float32)
    at = {"weight": weight.ctypes.data, "x": x.ctypes.data, "y": y.ctypes.data}
    module = compile_cpu(source)
    launch = Launch("toy", (1, 1, 1), 32, 0, (*pointers(at, "weight", "x", "y"), *ints()))
    module.hold([(at["x"], x.nbytes), (at["y"], y.nbytes)])
    if what.startswith("ended"):
        with pytest.raises(BuildError, match=r"thread 0 .* ended without waiting"):
            module.run([launch])
        return
    module.run([launch])
    right = np.array_equal(y[:32], 2 * x)
    assert right == (what != "reads before it waits")
    assert (y[32:] == 0).all(), "what is written too early is lost"
    module.hold([])
    module.run([launch])
    np.testing.assert_array_equal(y[:32], 2 * x)
