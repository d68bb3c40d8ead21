"""A GPU made of host memory, and plans that ONNX Runtime computes: everything of the TensorRT backend but TensorRT."""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from deltart.dtypes import BY_NAME
from deltart.manifest import GraphEntry, load_manifest
from deltart.plugins.cpu_shim.runner import compile_cpu
from deltart.plugins.launch import Launch
from deltart.runtime.backends.gpu import engine_manifest as plans
from deltart.runtime.backends.gpu.engine_manifest import Binding, EngineManifest, PlanEntry
from deltart.verify.exposed import expose
from deltart.verify.tensorrt_exposed import GRAPH, PHASES, exposed_graph


class HostCuda:
    """`Cuda` over host memory. Freed memory is filled with ones (NaN), so that a use of it is seen."""

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.pins: list[np.ndarray] = []
        self.copied = 0
        self.launched = 0
        self.recording: list[Callable[[], None]] | None = None
        self.stream = self

    def allocate(self, nbytes: int) -> int:
        block = np.full(nbytes + 256, 0xFF, np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self.blocks[address] = block
        return address

    def free(self, address: int) -> None:
        self.blocks.pop(address)[:] = 0xFF

    def pinned(self, nbytes: int) -> np.ndarray:
        self.pins.append(np.full(nbytes, 0xFF, np.uint8))
        return self.pins[-1]

    def unpin(self, array: np.ndarray) -> None:
        self.pins = [pin for pin in self.pins if pin is not array]

    def do(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def zero(self, address: int, nbytes: int) -> None:
        self.do(lambda: memory(address, nbytes).fill(0))

    def to_device(self, address: int, source: np.ndarray) -> None:
        assert any(np.shares_memory(source, pin) for pin in self.pins), "the source is not pinned"
        self.copied += source.nbytes
        self.do(lambda: np.copyto(memory(address, source.nbytes), source))

    def to_host(self, target: np.ndarray, address: int) -> None:
        assert any(np.shares_memory(target, pin) for pin in self.pins), "the target is not pinned"
        self.do(lambda: np.copyto(target, memory(address, target.nbytes)))

    def record(self) -> object:
        return object()

    def wait(self, event: object) -> None:
        pass

    def synchronize(self) -> None:
        assert self.recording is None, "synchronized while capturing"

    def begin_capture(self) -> None:
        assert self.recording is None
        self.recording = []

    def end_capture(self) -> list[Callable[[], None]]:
        assert self.recording is not None
        graph, self.recording = self.recording, None
        return graph

    def launch(self, graph: list[Callable[[], None]]) -> None:
        self.launched += 1
        for work in graph:
            work()

    def discard(self, graph: list[Callable[[], None]]) -> None:
        graph.clear()

    def kernels(self, source: Path) -> Callable[[list[Launch]], None]:
        module = compile_cpu(source)
        return lambda launches: self.do(lambda: module.run(launches))


def memory(address: int, nbytes: int) -> np.ndarray:
    """Bytes at a host address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)) if nbytes else np.empty(0, np.uint8)


class OrtExecutor:
    """`Executor` of a plan by the artifact's portable graph: reads and writes bound memory only."""

    scratch_bytes = 1024

    def __init__(self, artifact: Path, entry: PlanEntry, graph: GraphEntry) -> None:
        self.entry, self.graph = entry, graph
        self.bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.scratch = (0, 0)
        self.enqueued = 0
        model = onnx.load(artifact / graph.files["portable"], load_external_data=False)
        if entry.graph == GRAPH:
            expose(model)
        weights = [onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in model.graph.initializer]
        self.kinds = {w.name: w.type.tensor_type.elem_type for w in weights}
        model.graph.input.extend(weights)
        del model.graph.initializer[:]
        self.session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        assert address % 256 == 0, f"{name} is not aligned"
        self.bound[name] = (address, shape)

    def use_scratch(self, address: int, nbytes: int) -> None:
        self.scratch = (address, nbytes)

    def capturable(self, stream: Any) -> bool:
        return True

    def enqueue(self, stream: HostCuda) -> None:
        self.enqueued += 1
        assert self.scratch[1] >= self.scratch_bytes
        bound = dict(self.bound)
        stream.do(lambda: self._compute(bound))

    def _compute(self, bound: Mapping[str, tuple[int, tuple[int, ...]]]) -> None:
        names = {b.name: b for b in self.entry.bindings}
        io = self.session.io_binding()
        for binding in self.entry.bindings:
            if binding.role == "weight":
                io.bind_ortvalue_input(binding.name, self._weight(binding, *bound[binding.name]))
            elif binding.role in ("input", "state"):
                array = _array(binding, *bound[binding.name])
                wide = array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array.copy()
                io.bind_cpu_input(binding.name, wide)
        results = [b.name for b in self.entry.bindings if b.role in ("output", "state_output")]
        for name in results:
            io.bind_output(name)
        self.session.run_with_iobinding(io)
        for name, value in zip(results, io.get_outputs(), strict=True):
            target = _array(names[name], *bound[name])
            target[:] = value.numpy().astype(target.dtype)

    def _weight(self, binding: Binding, address: int, shape: tuple[int, ...]) -> ort.OrtValue:
        bits = {"int8": np.uint8, "bfloat16": np.uint16, "float32": np.float32}[binding.dtype]
        count = math.prod(shape) * BY_NAME[binding.dtype].itemsize
        raw = memory(address, count).copy().view(bits).reshape(shape)
        if bits == np.float32:
            return ort.OrtValue.ortvalue_from_numpy(raw)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, self.kinds[binding.name])


def _array(binding: Binding, address: int, shape: tuple[int, ...]) -> np.ndarray:
    dtype = BY_NAME[binding.dtype].numpy
    return memory(address, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def write_engine(artifact: Path, slots: int, max_context: int, chunk: int, exact: bool = True) -> EngineManifest:
    """An engine.json for a lowered artifact, as `deltart build` writes it but without plans.

    `exact` makes activations float32.
    """
    entries: dict[str, PlanEntry] = {}
    engine = EngineManifest("rtx", slots, max_context, chunk, "bf16", entries, "")
    for graph, entry in load_manifest(artifact).graphs.items():
        entries |= _plans(graph, entry, (artifact / entry.files["tensorrt"]).read_bytes(), plans.PHASES, engine, exact)
    folder = plans.engine_folder(artifact, "rtx")
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(folder)
    return engine


def write_exposed(artifact: Path, engine: EngineManifest, exact: bool = True) -> EngineManifest:
    """`engine` with the plans that `build_exposed` adds, without the files."""
    content, entry = exposed_graph(artifact, engine)
    added = _plans(GRAPH, entry, content, PHASES, engine, exact)
    engine = replace(engine, plans={**engine.plans, **added})
    engine.save(plans.engine_folder(artifact, "rtx"))
    return engine


def _plans(
    graph: str, entry: GraphEntry, content: bytes, phases: Sequence[str], engine: EngineManifest, exact: bool
) -> dict[str, PlanEntry]:
    model = onnx.load_model_from_string(content)
    bindings = plans.bindings(entry, [plans.read_binding(v) for v in [*model.graph.input, *model.graph.output]])
    if exact:
        bindings = [b if b.role == "weight" or b.dtype != "bfloat16" else replace(b, dtype="float32") for b in bindings]
    digest, made = hashlib.sha256(content).hexdigest(), {}
    for phase in phases:
        profile = plans.profile(phase, engine.slots, engine.max_context, engine.chunk)
        name = f"{graph}.{phase}"
        made[name] = PlanEntry(
            f"{name}.plan", graph, phase, name, "", 0, "rtx", "", [], profile, bindings, {}, digest, 0, 0.0
        )
    return made
