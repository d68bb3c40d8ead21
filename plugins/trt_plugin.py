"""TensorRT plugins of the composite ops, derived from their contracts: `IPluginV3` classes around the CUDA kernels.

The base classes come from the TensorRT module that is handed in, so the same code serves `tensorrt` and
`tensorrt_rtx_bindings`, and this file imports neither.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deltart.dtypes import BY_SHORT
from deltart.errors import BuildError
from deltart.plugins.dims import Dim, expression
from deltart.plugins.kernel_call import Call, addresses, enqueue, kernel_of
from deltart.plugins.spec import ACT, F32, FP8, I32, SCALE, STORED, U8, VERSION, OpSpec, TensorSpec

PLUGIN_VERSION = "1"  # the one that TensorRT's ONNX importer looks for
CONTRACT_FIELD = "contract"  # serialized beside the attributes: spec.VERSION when the plan was built
ACCEPTED = {
    ACT: ("bf16", "f32"), STORED: ("bf16", "f32"), SCALE: ("bf16", "f32", "f16"), FP8: ("i8",), U8: ("i8",),
    F32: ("f32",), I32: ("i32",),
}  # fmt: skip
_creators: dict[tuple[str, str], Any] = {}  # TensorRT keeps no reference to a Python creator
_failures: list[BaseException] = []


def register_plugins(trt: Any, specs: Sequence[OpSpec]) -> None:
    """Make `specs` known to TensorRT's ONNX importer and runtime. `trt`: tensorrt or tensorrt_rtx_bindings."""
    for spec in specs:
        key = (trt.__name__, spec.name)
        if key not in _creators:
            _creators[key] = _creator_class(trt, spec)()
            if not trt.get_plugin_registry().register_creator(_creators[key], ""):
                del _creators[key]
                raise BuildError(f"TensorRT refused the plugin {spec.name}", "a name that no other plugin has")


def unregister_plugins(trt: Any, specs: Sequence[OpSpec]) -> None:
    """Undo `register_plugins` for `specs`."""
    for spec in specs:
        creator = _creators.pop((trt.__name__, spec.name), None)
        if creator is not None:
            trt.get_plugin_registry().deregister_creator(creator)


def record_failure(error: BaseException) -> None:
    """Keep an error raised inside a callback, where TensorRT would lose it."""
    _failures.append(error)


def take_failure() -> Exception | None:
    """The first error raised inside a callback since the last call, no longer kept; an interrupt is raised at once."""
    failure = _failures[0] if _failures else None
    _failures.clear()
    if failure is not None and not isinstance(failure, Exception):
        raise failure
    return failure


def _creator_class(trt: Any, spec: OpSpec) -> type:
    plugin = _plugin_class(trt, spec)
    types = {int: trt.PluginFieldType.INT32, float: trt.PluginFieldType.FLOAT32}

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = spec.name, PLUGIN_VERSION, ""
            self.field_names = trt.PluginFieldCollection(
                [trt.PluginField(name, np.array([]), types[kind]) for name, kind in spec.attributes.items()]
            )

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return plugin(_attributes(spec, {f.name: np.asarray(f.data).item() for f in fields}))

    return _recording(Creator, "create_plugin")


def _attributes(spec: OpSpec, fields: dict[str, Any]) -> dict[str, Any]:
    contract = int(fields.get(CONTRACT_FIELD, VERSION))
    if contract != VERSION:
        raise BuildError(f"a plan holds {spec.name} of contract {contract}", f"contract {VERSION}", "build it again")
    missing = [name for name in spec.attributes if name not in fields]
    if missing:
        raise BuildError(f"{spec.name} came without {', '.join(missing)}", f"{', '.join(spec.attributes)}")
    return {name: kind(fields[name]) for name, kind in spec.attributes.items()}


def type_source(spec: OpSpec, output: TensorSpec) -> int | None:
    """The input whose element type `output` has: the last of its dtype class. None: the first of ACCEPTED."""
    return max((i for i, t in enumerate(spec.inputs) if t.dtype == output.dtype), default=None)


def _plugin_class(trt: Any, spec: OpSpec) -> type:
    """The plugin class of one op."""
    names = {getattr(trt, BY_SHORT[short].name): short for accepted in ACCEPTED.values() for short in accepted}

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime):
        def __init__(self, attributes: dict[str, Any]) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuildV2.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.attributes = attributes
            self.plugin_name, self.plugin_version, self.plugin_namespace = spec.name, PLUGIN_VERSION, ""
            self.num_outputs = len(spec.outputs)

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            copy = Plugin(self.attributes)
            copy.__dict__.update(self.__dict__)
            return copy

        def get_output_data_types(self, input_types: list[Any]) -> list[Any]:
            sources = [type_source(spec, t) for t in spec.outputs]
            own = [getattr(trt, BY_SHORT[ACCEPTED[t.dtype][0]].name) for t in spec.outputs]
            return [t if i is None else input_types[i] for i, t in zip(sources, own, strict=True)]

        def get_output_shapes(self, inputs: list[Any], shape_inputs: list[Any], builder: Any) -> list[Any]:
            operations = trt.DimensionOperation
            shapes = [[Dim(d, builder, operations.SUM, operations.PROD) for d in shape] for shape in inputs]
            results = spec.output_shapes(shapes, self.attributes)
            return [trt.DimsExprs([expression(d, builder) for d in shape]) for shape in results]

        def get_aliased_input(self, output: int) -> int:
            alias = spec.outputs[output].alias
            return -1 if alias is None else [t.name for t in spec.inputs].index(alias)

        def supports_format_combination(self, position: int, tensors: list[Any], num_inputs: int) -> bool:
            mine = (*spec.inputs, *spec.outputs)[position]
            desc = tensors[position].desc
            if desc.format != trt.TensorFormat.LINEAR or names.get(desc.type) not in ACCEPTED[mine.dtype]:
                return False
            first = next(i for i, t in enumerate(spec.inputs) if t.dtype == ACT)
            return mine.dtype != ACT or desc.type == tensors[first].desc.type

        def configure_plugin(self, inputs: list[Any], outputs: list[Any]) -> None:
            pass

        def on_shape_change(self, inputs: list[Any], outputs: list[Any]) -> None:
            pass

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            pass

        def get_workspace_size(self, inputs: list[Any], outputs: list[Any]) -> int:
            shapes = [list(t.max) for t in inputs]
            call = Call(spec.bind_axes(shapes, self.attributes), self._dtypes([t.desc for t in inputs]))
            return kernel_of(spec).workspace_bytes(call)

        def get_fields_to_serialize(self) -> Any:
            types = {int: (np.int32, trt.PluginFieldType.INT32), float: (np.float32, trt.PluginFieldType.FLOAT32)}
            values = {**self.attributes, CONTRACT_FIELD: VERSION}
            return trt.PluginFieldCollection(
                [trt.PluginField(n, np.array([v], types[type(v)][0]), types[type(v)][1]) for n, v in values.items()]
            )

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def enqueue(
            self, input_desc: list[Any], output_desc: list[Any], inputs: list[int], outputs: list[int],
            workspace: int, stream: int,
        ) -> None:  # fmt: skip
            sizes = spec.bind_axes([list(t.dims) for t in input_desc], self.attributes)
            at = addresses(spec, inputs, outputs) | {"workspace": int(workspace)}
            enqueue(spec, Call(sizes, self._dtypes(input_desc), at), stream)

        def _dtypes(self, descriptions: Sequence[Any]) -> dict[str, str]:
            return {t.name: names[d.type] for t, d in zip(spec.inputs, descriptions, strict=True)}

    Plugin.__name__ = Plugin.__qualname__ = f"{spec.name}Plugin"
    return _recording(Plugin, "get_output_shapes", "get_workspace_size", "enqueue")


def _recording(cls: type, *methods: str) -> type:
    """Keep what these methods raise: TensorRT prints it at most, and goes on to build a plan that can't run."""

    def recording(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except BaseException as error:
                record_failure(error)
                raise

        return call

    for name in methods:
        setattr(cls, name, recording(getattr(cls, name)))
    return cls
