"""Plans built through the C++ plugin library, against those of the Python classes. Needs TensorRT's headers and RTX."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError, MissingDependencyError
from deltart.plugins.gated_attention.op import GATED_ATTENTION
from deltart.plugins.registry import OPS
from deltart.plugins.trt_plugin import unregister_plugins
from deltart.runtime.backends.gpu.engine_manifest import EngineManifest, Profile, engine_folder
from deltart.runtime.backends.tensorrt import library as tensorrt_library
from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
from deltart.runtime.backends.tensorrt.builder.compile import compile_plan
from deltart.runtime.backends.tensorrt.library import load_tensorrt
from deltart.runtime.backends.tensorrt.native_plugins import NativePlugins
from support.native import plugin_library
from support.one_op import BF16, one_op

pytestmark = pytest.mark.skipif(
    "rtx" not in tensorrt_library.installed(), reason="tensorrt_rtx is not installed: no plan can be built here"
)
OPTIONS = BuildOptions("rtx", slots=2, max_context=64, chunk=128)
WORDS = re.compile(rb"[ -~]{6,}")


@pytest.fixture(scope="session")
def library(tensorrt_include: Path) -> Path:
    return plugin_library(tensorrt_include)


def words(artifact: Path, file: str) -> Counter[bytes]:
    """The texts of a plan. TensorRT writes them in another order each time, so plans are never equal byte for byte."""
    return Counter(WORDS.findall((engine_folder(artifact, "rtx") / file).read_bytes()))


@pytest.mark.slow
def test_plans_are_those_of_the_python_classes(library: Path, lowered: Path, tmp_path: Path) -> None:
    engines: list[EngineManifest] = []
    for name, plugins in (("python", None), ("native", library)):
        shutil.copytree(lowered, tmp_path / name)
        engines.append(build_engine(tmp_path / name, replace(OPTIONS, plugins=plugins)))
    python, native = engines
    assert {op for plan in native.plans.values() for op in plan.plugins} == {spec.name for spec in OPS}
    for name, plan in python.plans.items():
        other = native.plans[name]
        assert (other.plugins, other.scratch_bytes, other.nbytes) == (plan.plugins, plan.scratch_bytes, plan.nbytes)
        assert other.bindings == plan.bindings
        assert words(tmp_path / "native", plan.file) == words(tmp_path / "python", plan.file)
        assert other.key != plan.key


def attention(head_dim: int) -> bytes:
    """A model of one gated attention."""
    heads = {"num_heads": 2, "num_kv_heads": 1, "head_dim": head_dim}
    rows, cache = np.zeros((1, 4, 2 * head_dim), BF16), np.zeros((1, 1, 64, head_dim), BF16)
    keys, counts = np.zeros((1, 4, head_dim), BF16), np.zeros(1, np.int32)
    return one_op(GATED_ATTENTION, [rows, keys, keys, rows, cache, cache, counts, counts], heads)[0]


def test_an_error_inside_the_library_stops_the_build(library: Path) -> None:
    loaded = load_tensorrt("rtx", library)
    assert compile_plan(loaded, attention(64), ["sm_89"], Profile({})).plugins == {"GatedAttention": 1}
    with pytest.raises(BuildError, match="heads of 96") as error:
        compile_plan(loaded, attention(96), ["sm_89"], Profile({}))
    assert "one of (64, 128, 256)" in str(error.value)
    assert compile_plan(loaded, attention(64), ["sm_89"], Profile({})).plugins == {"GatedAttention": 1}


def test_the_python_classes_come_back(library: Path) -> None:
    native = load_tensorrt("rtx", library)
    assert load_tensorrt("rtx", library).native is native.native
    python = load_tensorrt("rtx")
    assert python.native is None and python.plugin_code != native.plugin_code
    assert compile_plan(python, attention(64), ["sm_89"], Profile({})).plugins == {"GatedAttention": 1}


def test_a_registry_takes_the_plugins_by_hand(library: Path) -> None:
    trt = load_tensorrt("rtx").trt
    unregister_plugins(trt, OPS)
    folder = Path(str(import_module("tensorrt_rtx_libs").__file__)).parent
    registry_of = ctypes.CDLL(str(folder / "libtensorrt_rtx.so.1")).getPluginRegistry
    registry_of.restype = ctypes.c_void_p
    native = NativePlugins.load(library, "rtx", trt.__version__)
    register = native.library.deltart_register_plugins
    register.argtypes, register.restype = (ctypes.c_void_p, ctypes.c_void_p), ctypes.c_bool
    registry = trt.get_plugin_registry()
    try:
        assert register(registry_of(), None) and native.take_failure() is None
        assert {spec.name for spec in OPS} <= {creator.name for creator in registry.all_creators}
        assert not register(registry_of(), None)
        assert "TensorRT refused a plugin" in str(native.take_failure()) and native.take_failure() is None
    finally:
        for spec in OPS:
            registry.deregister_creator(registry.get_creator(spec.name, "1", ""))
    load_tensorrt("rtx")


def test_libraries_that_do_not_fit_are_refused(library: Path, tensorrt_include: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="not a file"):
        load_tensorrt("rtx", tmp_path / "none.so")
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(BuildError, match="no plugin library"):
        load_tensorrt("rtx", tmp_path / "text.so")
    with pytest.raises(BuildError, match="has the contract"):
        load_tensorrt("rtx", plugin_library(tensorrt_include, OPS[1:]))
    with pytest.raises(BuildError, match="compiled with headers of version"):
        NativePlugins.load(library, "tensorrt", "9.3.0")
    load_tensorrt("rtx")
