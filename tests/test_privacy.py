"""No command calls anybody or leaves a device id: every look-up and connection of its processes is caught in libc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deltart.privacy import SWITCHES
from support.cases import Export

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(__file__).with_name("support") / "connections.c"
Run = Callable[..., None]

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed: nothing can watch the calls")


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that notes connections."""
    library = tmp_path_factory.mktemp("watcher") / "connections.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(library)], check=True)
    return library


@pytest.fixture
def run(watcher: Path, tmp_path: Path) -> Run:
    """Runs Python with a new home and none of our switches set; no call may be noted and no file but ours be there."""

    def watched(*arguments: str, planted: bool = False) -> None:
        home, noted = tmp_path / "home", tmp_path / "noted"
        home.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name not in SWITCHES}
        environment = {**kept, "HOME": str(home), "LD_PRELOAD": str(watcher), "CONNECTIONS": str(noted)}
        environment.pop("XDG_CACHE_HOME", None)
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = noted.read_text().splitlines() if noted.exists() else []
        strangers = [path for path in home.rglob("*") if path.is_file() and home / ".cache/deltart" not in path.parents]
        if planted:
            assert [line for line in found if line != "connect locally"]
            assert [path.name for path in strangers] == ["device-id"]
        else:
            assert not [line for line in found if line != "connect locally"]
            assert not [path for path in strangers if "matplotlib" not in path.parts]

    return watched


LOAD = """
import sys, time, numpy, onnx, onnxruntime
from onnx import helper
value = [helper.make_tensor_value_info(name, 1, [1]) for name in "ab"]
graph = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "g", value[:1], value[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
session.run(None, {"a": numpy.ones(1, "f")})
"""


PLANTED = """
import pathlib, socket
pathlib.Path.home().joinpath("device-id").write_text("planted")
with socket.socket() as call:
    call.setblocking(False)
    call.connect_ex(("192.0.2.1", 443))
"""  # 192.0.2.0/24 is kept for documentation (RFC 5737): nobody answers there


def test_a_call_and_a_device_id_are_noticed(run: Run) -> None:
    run("-c", PLANTED, planted=True)


def test_importing_deltart_first_switches_it_off(run: Run) -> None:
    run("-c", "import deltart" + LOAD)


def test_generate(run: Run, exported: Export, tmp_path: Path) -> None:
    artifact = shutil.copytree(exported("heads-1-3").artifact, tmp_path / "artifact", copy_function=os.link)
    nano = ROOT / "tools/nano/checkpoint"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (artifact / name).unlink(missing_ok=True)
        shutil.copyfile(nano / name, artifact / name)
    run("-m", "deltart", "generate", str(artifact), "a", "--max-new-tokens", "2", "--ignore-eos")


@pytest.mark.slow
def test_every_other_command(run: Run, tmp_path: Path) -> None:
    nano, artifact = str(ROOT / "tools/nano/checkpoint"), str(tmp_path / "artifact")
    run("-m", "deltart", "inspect", nano)
    run("-m", "deltart", "doctor")
    run("-m", "deltart", "export", nano, "-o", artifact)
    run("-m", "deltart", "verify", artifact, "--tokens", "8")
    run("-m", "deltart", "bench", artifact, "--rounds", "2", "--max-model-len", "256")
    run("-m", "deltart", "plan", artifact, "--device", "h100")
    run("-m", "deltart", "calibrate", nano, "-o", str(tmp_path / "fp8"), "--method", "absmax")
    if shutil.which("nvcc"):
        run("-m", "deltart", "build", artifact, "--max-context", "512")
