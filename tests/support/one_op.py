"""Models of one composite node, and their run as a TensorRT plan."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx

from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.spec import DOMAIN, OpSpec
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from deltart.runtime.backends.gpu.cuda import CudaDriver
from deltart.runtime.backends.gpu.engine_manifest import Binding, PlanEntry, Profile
from deltart.runtime.backends.tensorrt.builder.compile import compile_plan
from deltart.runtime.backends.tensorrt.builder.makers import PRESENT_GPU
from deltart.runtime.backends.tensorrt.executor import TensorRtExecutor
from deltart.runtime.backends.tensorrt.library import load_tensorrt

BF16 = np.dtype(ml_dtypes.bfloat16)
HEADS = {"num_k_heads": 1, "num_v_heads": 3, "head_k_dim": 128, "head_v_dim": 128}


def one_op(spec: OpSpec, arrays: list[np.ndarray], attributes: dict) -> tuple[bytes, list[Binding]]:
    """A model of one composite node, and its bindings with roles."""
    results = [f"{t.name}_out" for t in spec.outputs]
    shapes = spec.output_shapes([a.shape for a in arrays], attributes)
    kinds = {t.name: a.dtype for t, a in zip(spec.inputs, arrays, strict=True)}
    types = [kinds[t.alias] if t.alias else kinds[spec.inputs[0].name] for t in spec.outputs]
    names = {t.name for t in spec.outputs if t.alias}
    tensors = [(t.name, a.dtype, a.shape, "state" if t.name in names else "input")
               for t, a in zip(spec.inputs, arrays, strict=True)]  # fmt: skip
    made = [(r, k, s, "state_output" if t.alias else "output")
            for r, k, s, t in zip(results, types, shapes, spec.outputs, strict=True)]  # fmt: skip
    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(k), s)
        for n, k, s, _ in tensors + made
    ]
    node = onnx.helper.make_node(spec.name, [t.name for t in spec.inputs], results, domain=DOMAIN, **attributes)
    graph = onnx.helper.make_graph([node], "one_op", infos[: len(tensors)], infos[len(tensors) :])
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return model.SerializeToString(), [Binding(n, role, k.name, list(s)) for n, k, s, role in tensors + made]


def run_op(
    cuda: CudaDriver,
    spec: OpSpec,
    arrays: list[np.ndarray],
    attributes: dict,
    folder: Path,
    plugins: Path | None = None,
) -> list[np.ndarray]:
    """The op's outputs, computed by its plugin in a plan of one node. Needs a GPU."""
    content, bindings = one_op(spec, arrays, attributes)
    library = load_tensorrt(plugins=plugins)
    made = compile_plan(library, content, (PRESENT_GPU,), Profile({}))
    path = folder / "op.plan"
    path.write_bytes(made.plan)
    digest = hashlib.sha256(made.plan).hexdigest()
    entry = PlanEntry(
        "op.plan", "", "", "", digest, 0, library.flavour, "", [], Profile({}), bindings, made.plugins, "", 0, 0.0
    )
    executor = TensorRtExecutor(library, path, entry)
    at: dict[str, int] = {}
    hosts = {}
    aliases = {f"{t.name}_out": t.alias for t in spec.outputs if t.alias}
    for binding in bindings:
        size = binding.nbytes({})
        hosts[binding.name] = cuda.pinned(size)
        at[binding.name] = at[aliases[binding.name]] if binding.name in aliases else cuda.allocate(size)
        executor.bind(binding.name, at[binding.name], binding.shape({}))
    for tensor, array in zip(spec.inputs, arrays, strict=True):
        hosts[tensor.name][:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        cuda.to_device(at[tensor.name], hosts[tensor.name])
    executor.use_scratch(cuda.allocate(executor.scratch_bytes), executor.scratch_bytes)
    executor.enqueue(cuda.stream)
    results = [b for b in bindings if b.role in ("output", "state_output")]
    for binding in results:
        cuda.to_host(hosts[binding.name], at[binding.name])
    cuda.synchronize()
    dtypes = {"bfloat16": BF16, "float32": np.dtype(np.float32)}
    return [hosts[b.name].view(dtypes[b.dtype]).reshape(b.shape({})) for b in results]


def check_gated_delta_rule(
    cuda: CudaDriver, tokens: int, folder: Path, plugins: Path | None = None
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Two rows of random numbers through a plan, checked against float64: the inputs, outputs of real tokens, state."""
    rng = np.random.default_rng(tokens)
    n_tokens = np.array([tokens, tokens // 2], np.int32)
    n_commit = n_tokens // 2 if tokens <= 8 else n_tokens
    arrays = [
        rng.standard_normal((2, tokens, 5 * 128)).astype(BF16),
        *(rng.standard_normal((2, tokens, 3)).astype(BF16) for _ in range(2)),
        *(rng.uniform(-1, 1, 3).astype(BF16) for _ in range(2)),
        rng.standard_normal((2, 3, 128, 128)).astype(np.float32),
        n_tokens,
        n_commit,
    ]
    wide = [a.astype(np.float64) if a.dtype != np.int32 else a for a in arrays]
    expected, S = GATED_DELTA_RULE.reference(*wide, **HEADS)
    o, state = run_op(cuda, GATED_DELTA_RULE, arrays, HEADS, folder, plugins)
    live = np.arange(tokens) < n_tokens[:, None]
    assert relative_rms(o[live], expected[live]) <= TOLERANCE["bf16"]
    assert relative_rms(state, S) <= TOLERANCE["state"]
    return arrays, o[live], state
