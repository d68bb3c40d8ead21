"""The C++ library's answers about tensors, and its way to the CUDA driver, against Python's."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltart.dtypes import BY_SHORT
from deltart.errors import BuildError, MissingDependencyError
from deltart.plugins import trt_plugin
from deltart.plugins.cases import OpCall, calls_of, op_call
from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.dims import Dim, expression
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.kernel_call import kernel_of
from deltart.plugins.native import library
from deltart.plugins.native.contract import contract_digest, contract_source
from deltart.plugins.registry import OPS
from deltart.plugins.spec import ACT, F32, I32, OpSpec, TensorSpec
from support.native import TYPES, Given, Host, calls_on_h100, given_of, host, recording_driver

BY_NAME = {spec.name: spec for spec in OPS}
STREAM = 0x55
HEADS = {"num_k_heads": 1, "num_v_heads": 3, "head_k_dim": 128, "head_v_dim": 128}


@pytest.fixture(scope="module")
def native() -> Host:
    return host()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return recording_driver(tmp_path_factory.mktemp("driver"))


class Builder:
    """Dimension expressions as text."""

    def constant(self, size: int) -> str:
        return str(size)

    def operation(self, sign: str, left: str, right: str) -> str:
        return f"({left}{sign}{right})"


def fake_trt() -> SimpleNamespace:
    """As much of a TensorRT module as a plugin class is made of."""
    bases = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuildV2", "IPluginV3OneRuntime")
    types = {name: name for name in (*(BY_SHORT[short].name for short in TYPES), "int64")}
    return SimpleNamespace(
        **{base: type(base, (), {"__init__": lambda self: None}) for base in bases},
        **types,
        TensorFormat=SimpleNamespace(LINEAR="linear"),
    )


def symbolic(spec: OpSpec, attributes: dict[str, Any]) -> str:
    """Python's output shapes, every input axis a symbol."""
    builder = Builder()
    shapes = [[Dim(f"{t.name}.{i}", builder, "+", "*") for i in range(len(t.axes))] for t in spec.inputs]
    results = spec.output_shapes(shapes, attributes)
    return "".join(" ".join(str(expression(d, builder)) for d in shape) + "\n" for shape in results)


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_output_shapes_are_pythons(native: Host, spec: OpSpec) -> None:
    first = next(calls_of(spec))
    assert native.ask("symbolic_shapes", ctypes.byref(given_of(first))) == symbolic(spec, dict(first.attributes))


def test_sums_and_products_of_axes() -> None:
    """What no op has yet, built from a contract of its own."""
    outputs = (TensorSpec("y", ACT, ("B", "T+h", "h*D", "2*D+h+1", "h*h+1", "D*T*1", "0+T")),)
    spec = OpSpec(
        "CausalConv1d", "", (TensorSpec("x", ACT, ("B", "T", "D")),), outputs, CAUSAL_CONV1D.reference, {"h": int}
    )
    built = host(specs=(spec,))
    given = given_of(op_call(spec, {"B": 1, "T": 1, "D": 1}, {"h": 4}, ("bf16", "bf16"), 0))
    assert built.ask("symbolic_shapes", ctypes.byref(given)) == symbolic(spec, {"h": 4})
    assert symbolic(spec, {"h": 4}) == "x.0 (x.1+4) (x.2*4) (((x.2*2)+4)+1) 17 (x.2*x.1) x.1\n"


def test_an_output_without_an_input_of_its_class_has_the_class_own_type() -> None:
    outputs = (TensorSpec("logits", F32, ("B",)), TensorSpec("ids", I32, ("B",)), TensorSpec("y", ACT, ("B",)))
    spec = OpSpec("Op", "", (TensorSpec("x", ACT, ("B",)),), outputs, lambda: ())
    plugin = trt_plugin._plugin_class(fake_trt(), spec)({})
    assert plugin.get_output_data_types(["float16"]) == ["float32", "int32", "float16"]


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_types_and_aliases_are_pythons(native: Host, spec: OpSpec) -> None:
    trt = fake_trt()
    plugin = trt_plugin._plugin_class(trt, spec)({})
    rows = [(t.name, plugin.get_aliased_input(i)) for i, t in enumerate(spec.outputs)]
    sources = plugin.get_output_data_types(list(range(len(spec.inputs))))
    expected = "".join(
        f"{name} {alias} {source if isinstance(source, int) else -1}\n"
        for (name, alias), source in zip(rows, sources, strict=True)
    )
    assert native.ask("outputs", spec.name.encode()) == expected
    first = next(i for i, t in enumerate(spec.inputs) if t.dtype == ACT)
    names = {number: BY_SHORT[name].name for number, name in enumerate(TYPES)} | {-1: "int64"}
    for position, mine, other in product(range(len(spec.inputs) + len(spec.outputs)), names, names):
        tensors = [SimpleNamespace(desc=SimpleNamespace(format="linear", type=names[other])) for _ in range(first + 1)]
        tensors += [None] * (position - first)
        tensors[position] = SimpleNamespace(desc=SimpleNamespace(format="linear", type=names[mine]))
        given = other if position != first else mine
        found = native.library.deltart_accepts(spec.name.encode(), position, mine, given)
        assert bool(found) == plugin.supports_format_combination(position, tensors, len(spec.inputs))


def test_shapes_that_disagree_are_refused(native: Host) -> None:
    good = next(c for c in calls_of(GATED_DELTA_RULE) if c.sizes["T"] == 1)
    given = given_of(good)
    given.sizes[1] = 2
    with pytest.raises(BuildError, match=r"GatedDeltaRule.a: axis T is 1") as error:
        native.ask("launches", ctypes.byref(given))
    assert error.value.expected == "2"
    given = given_of(good)
    given.ranks[0] = 2
    with pytest.raises(BuildError, match=r"GatedDeltaRule.qkv: rank 2"):
        native.ask("launches", ctypes.byref(given))


def test_a_state_that_was_copied_is_refused(native: Host) -> None:
    given = given_of(next(calls_of(GATED_DELTA_RULE)))
    given.at[len(GATED_DELTA_RULE.inputs) + 1] += 256
    with pytest.raises(BuildError, match=r"GatedDeltaRule.S has different buffers"):
        native.ask("launches", ctypes.byref(given))


def run(native: Host, driver: ctypes.CDLL, cases: list[OpCall], limit: int, fail: bool = False) -> list[str]:
    """What the driver was asked for while `cases` ran."""
    driver.reset(limit, fail)
    driver.recorded.restype = ctypes.c_char_p
    given = (Given * len(cases))(*(given_of(one) for one in cases))
    try:
        native.ask("run", driver._name.encode(), given, len(cases), ctypes.c_void_p(STREAM))
    finally:
        lines = driver.recorded().decode().splitlines()
    return lines


@pytest.mark.parametrize("name", BY_NAME)
def test_the_driver_gets_pythons_launches(native: Host, driver: ctypes.CDLL, name: str) -> None:
    """Through cuLaunchKernel, arguments read back with the widths that the CUDA source declares."""
    limit = 227 << 10
    cases, expected = calls_on_h100(BY_NAME[name], 37, limit)
    lines = run(native, driver, cases, limit)
    assert [line for line in lines if line.startswith("0x")] == [f"{STREAM:#x} {line}" for line in expected]
    assert len(expected) > 15


def test_modules_functions_and_shared_memory_are_set_up_once(native: Host, driver: ctypes.CDLL) -> None:
    sizes = {"B": 1, "T": 9, "C": 5 * 128}
    one = op_call(GATED_DELTA_RULE, sizes, HEADS, ("bf16", "bf16"), 227 << 10)
    lines = run(native, driver, [one, one], 227 << 10)
    launches = kernel_of(GATED_DELTA_RULE).launches(one.call())[1]
    assert lines[:9] == [
        "init 0",
        "retain 0",
        "context 0x77",
        "attribute 97 of 0",
        "attribute 16 of 0",
        "attribute 75 of 0",
        "attribute 76 of 0",
        "load",
        "load",
    ]
    setup = []
    for launch in launches:
        setup.append(f"get {launch.kernel}")
        if launch.shared_bytes > 48 << 10:
            setup.append(f"set {launch.kernel} 8 {launch.shared_bytes}")
    assert len(setup) == 3
    assert [line for line in lines[9:] if not line.startswith("0x")] == setup
    assert len(lines) == 9 + len(setup) + 2 * len(launches)


def test_driver_errors_are_named(native: Host, driver: ctypes.CDLL, tmp_path: Path) -> None:
    one = next(c for c in calls_of(CAUSAL_CONV1D) if c.sizes["T"] == 1 and c.sizes["C"] == 64)
    with pytest.raises(BuildError, match="CUDA_ERROR_UNKNOWN"):
        run(native, driver, [one], 48 << 10, fail=True)
    given = given_of(one)
    with pytest.raises(BuildError, match=r"libcuda\.so\.none") as error:
        native.ask("run", b"libcuda.so.none", ctypes.byref(given), 1, None)
    assert error.value.hint == "install NVIDIA's driver"


def test_an_unknown_output_axis_is_refused() -> None:
    spec = replace(OPS[0], outputs=(TensorSpec("y", ACT, ("B", "H*T")),))
    with pytest.raises(BuildError, match="output axis 'H'"):
        contract_source((spec,))
    assert contract_digest(OPS) != contract_digest(OPS[1:])


def test_missing_headers_and_compiler_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match=f"NvInfer.h is not in {tmp_path}") as error:
        library.find_headers([tmp_path])
    assert "--include DIR" in error.value.hint
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "NvInfer.h").touch()
    assert library.find_headers([tmp_path]) == tmp_path / "include"
    with pytest.raises(BuildError, match="states no version"):
        library.headers_version(tmp_path / "include")
    stated = ("TRT_MAJOR_RTX 1", "TRT_MINOR_RTX 7 //!<", "TRT_PATCH_RTX 1", "NV_TENSORRT_MAJOR TRT_MAJOR_RTX")
    lines = "".join(f"#define {name}\n" for name in stated)
    (tmp_path / "include" / "NvInferVersion.h").write_text(lines)
    assert library.headers_version(tmp_path / "include") == "1.7.1"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"g\+\+ was not found"):
        library.find_compiler()
