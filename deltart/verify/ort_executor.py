"""An `Executor` that computes a plan by the artifact's portable graph: an engine on a machine without a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from deltart.dtypes import BY_NAME
from deltart.manifest import GraphEntry
from deltart.plugins.cpu_shim.host_cuda import HostCuda, memory
from deltart.runtime.backends.gpu.engine_manifest import Binding, PlanEntry
from deltart.runtime.backends.gpu.executor import EnqueuedShapes
from deltart.runtime.backends.inputs import completed
from deltart.verify.exposed import expose
from deltart.verify.tensorrt_exposed import GRAPH


class OrtExecutor:
    """`Executor` of a plan by the artifact's portable graph: reads and writes bound memory only."""

    scratch_bytes = 1024

    def __init__(self, artifact: Path, entry: PlanEntry, graph: GraphEntry) -> None:
        self.entry, self.graph = entry, graph
        self.bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.scratch = (0, 0)
        self.enqueued, self.shapes = 0, EnqueuedShapes()
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
        self.shapes.bind(name, shape)

    def use_scratch(self, address: int, nbytes: int) -> None:
        self.scratch = (address, nbytes)

    def capturable(self, stream: Any) -> bool:
        return self.shapes.unchanged

    def enqueue(self, stream: HostCuda) -> None:
        assert stream.recording is None or self.shapes.unchanged, "captured straight after a change of shapes"
        self.enqueued += 1
        self.shapes.enqueue()
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
        if "vision_index" not in names and "input_ids" in names:  # the plan takes none, where the graph does
            ids = _array(names["input_ids"], *bound["input_ids"])
            for name, array in completed(self.graph.inputs, {"input_ids": ids}).items():
                if name not in names:
                    io.bind_cpu_input(name, array)
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
