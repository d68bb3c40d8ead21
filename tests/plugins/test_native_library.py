"""The compiled library in a program that stands for TensorRT, its kernels launched into a recording CUDA driver.

Needs TensorRT's headers: pytest --tensorrt-include DIR."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from deltart.plugins.cases import OpCall, calls_of, op_call
from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.gated_rms_norm.op import GATED_RMS_NORM
from deltart.plugins.kernel_call import kernel_of
from deltart.plugins.native.library import FOLDER, find_compiler
from deltart.plugins.registry import OPS
from deltart.plugins.spec import VERSION
from deltart.plugins.trt_plugin import CONTRACT_FIELD, type_source
from support.native import calls_on_h100, plugin_library, probe, recording_driver

BY_NAME = {spec.name: spec for spec in OPS}
NUMBERS = {"f32": 0, "i8": 2, "i32": 3, "bf16": 7}  # nvinfer1::DataType
INT32, FLOAT32 = 5, 1  # nvinfer1::PluginFieldType
LIMIT = 232448  # of the recording driver
FIELDS = {int: INT32, float: FLOAT32}


@dataclass(frozen=True)
class Probe:
    """The library under test and what drives it."""

    program: Path
    library: Path
    driver: Path  # folder

    def run(self, lines: list[str], driver: str = "") -> list[str]:
        """Its output; raises where it does not end by itself. `driver`: another folder of libcuda.so.1."""
        done = subprocess.run(
            [self.program, self.library], input="\n".join(lines) + "\n", capture_output=True, text=True,
            check=True, env={"LD_LIBRARY_PATH": driver or str(self.driver)},
        )  # fmt: skip
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def made(tensorrt_include: Path, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    folder = tmp_path_factory.mktemp("driver")
    recording_driver(folder)
    return Probe(probe(tensorrt_include), plugin_library(tensorrt_include), folder)


def line(one: OpCall) -> str:
    """A case as native_probe.cpp reads it."""
    words = [one.spec.name]
    words += [word for name, value in one.attributes.items() for word in (name, str(value))]
    words.append("|")
    inputs = len(one.spec.inputs)
    for tensor, shape, address in zip(one.spec.inputs, one.shapes, one.addresses[:inputs], strict=True):
        words += [str(NUMBERS[one.dtypes[tensor.name]]), str(len(shape)), *map(str, shape), f"{address:x}"]
    return " ".join([*words, "|", *(f"{a:x}" for a in one.addresses[inputs:-1]), "|", f"{one.addresses[-1]:x}"])


def answers(one: OpCall) -> list[str]:
    """What TensorRT must hear of a case that runs."""
    spec, names = one.spec, [t.name for t in one.spec.inputs]
    fields = [f"{n} {FIELDS[type(v)]} 1 {v:g}" if isinstance(v, float) else f"{n} {INT32} 1 {v}"
              for n, v in {**one.attributes, CONTRACT_FIELD: VERSION}.items()]  # fmt: skip
    sources = [type_source(spec, t) for t in spec.outputs]
    types = [0 if i is None else NUMBERS[one.dtypes[names[i]]] for i in sources]
    aliases = [-1 if t.alias is None else names.index(t.alias) for t in spec.outputs]
    return [
        " ".join(["fields", *fields]),
        f"{spec.name} 1 ''",
        " ".join(["types", *map(str, types)]),
        " ".join(["aliases", *map(str, aliases)]),
        " ".join(["supported", *["1"] * len(names)]),
        "configured 0",
        f"workspace {kernel_of(spec).workspace_bytes(one.call())}",
        "enqueued 0",
    ]


def test_creators(made: Probe) -> None:
    expected = [
        " ".join(["creator", spec.name, *(f"{name} {FIELDS[kind]} 0 -" for name, kind in spec.attributes.items())])
        for spec in OPS
    ]
    assert made.run([]) == expected


@pytest.mark.parametrize("name", BY_NAME)
def test_a_plugin_is_pythons_from_creation_to_launch(made: Probe, name: str) -> None:
    cases, launched = calls_on_h100(BY_NAME[name], 61, LIMIT)
    output = made.run([line(one) for one in cases])[len(OPS) :]
    end = output.index("recorded")
    assert output[:end] == [text for one in cases for text in answers(one)] and len(cases) >= 10
    assert [text for text in output[end:] if text.startswith("0x")] == [f"0x55 {text}" for text in launched]


def test_kernels_are_loaded_before_the_first_call(made: Probe) -> None:
    """A captured stream takes no loading: both files of the op are there, then come the functions."""
    heads = {"num_k_heads": 1, "num_v_heads": 3, "head_k_dim": 128, "head_v_dim": 128}
    one = op_call(GATED_DELTA_RULE, {"B": 1, "T": 1, "C": 640}, heads, ("bf16", "bf16"), LIMIT)
    output = made.run([line(one)])
    recorded = output[output.index("recorded") + 1 :]
    assert recorded[:9] == [
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
    assert recorded[9].startswith("get ") and recorded[10].startswith("0x55")


def test_refusals_reach_the_log_with_an_error_code(made: Probe) -> None:
    norm = op_call(GATED_RMS_NORM, {"B": 1, "T": 1, "N": 12, "D": 6}, {"epsilon": 1e-6}, ("bf16", "f32"), LIMIT)
    state = next(c for c in calls_of(CAUSAL_CONV1D) if c.sizes["T"] == 1 and c.sizes["C"] == 64)
    moved = line(state).replace(f"| {state.addresses[4]:x} {state.addresses[5]:x} |", f"| {state.addresses[4]:x} 40 |")
    assert moved != line(state)
    text = "\n".join(made.run([line(norm), "GatedRMSNorm |", moved]))
    assert "log 1 DeltaRT: heads of 6\n  expected: a multiple of 4 up to 512\n  hint:" in text
    assert "log 1 DeltaRT: GatedRMSNorm came without epsilon" in text and "no plugin" in text
    assert "log 1 DeltaRT: CausalConv1d.state has different buffers as input and output" in text
    assert re.findall(r"enqueued (-?\d)", text) == ["-1", "-1"]


def test_without_a_driver_a_call_fails_and_says_so(made: Probe, tmp_path: Path) -> None:
    one = next(c for c in calls_of(CAUSAL_CONV1D) if c.sizes["T"] == 1 and c.sizes["C"] == 64)
    (tmp_path / "libcuda.so.1").write_text("no library")
    text = "\n".join(made.run([line(one)], str(tmp_path)))
    assert "configured 0" in text and "enqueued -1" in text and "install NVIDIA's driver" in text


def test_the_example_of_the_readme_compiles(tensorrt_include: Path) -> None:
    (example,) = re.findall(r"```cpp\n(.+?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    command = [find_compiler(), "-std=c++17", "-fsyntax-only", "-I", str(FOLDER / "cuda"), "-isystem"]
    subprocess.run([*command, str(tensorrt_include), "-x", "c++", "-"], input=example, text=True, check=True)
