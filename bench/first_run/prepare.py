"""What the GPU machine needs and could not make itself: artifacts with native plans, and the CPU twin's results."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.first_run.steps import FULL, TWINS
from bench.first_run.twin import CONTEXT, EXPOSED, IDS, PREFILL, TWIN
from bench.first_run.weights import HEADERS, SIZES
from deltart.artifact import load_manifest
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.safetensors import read_file
from deltart.verify.exposed import ExposedBackend
from deltart.verify.runners import backend_points
from deltart.verify.tensorrt_exposed import build_exposed

NANO = Path(__file__).resolve().parents[2] / "tools" / "nano" / "checkpoint"
TOKENS = 131072 + 256
CHECKPOINTS: dict[str, tuple[str, ...]] = {  # of TWINS, and the command that makes the checkpoint of each
    "nano": (),
    "nano-fp8": ("calibrate", str(NANO), "--method", "absmax"),
    "nano-int4": ("calibrate", str(NANO), "--method", "absmax", "--format", "int4", "--group", "32"),
    "tiny-moe-fp8": ("synthesize", "tiny-moe-fp8"),
}
PRESETS = {"27b": "qwen3.6-27b-fp8", "35b": "qwen3.6-35b-a3b-fp8", "27b-int4": "qwen3.6-27b-int4"}


def prepare(folder: Path) -> None:
    """Fill `folder` anew: every one of TWINS whole, those of FULL without weights, whose headers lie beside them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in TWINS:
        _twin(folder / name, CHECKPOINTS[name])
    for name in FULL:
        _full(folder / name, PRESETS[name])


def _deltart(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "deltart", *words], check=True)


def _twin(artifact: Path, made: tuple[str, ...]) -> None:
    checkpoint = artifact.with_name(f"{artifact.name}.checkpoint") if made else NANO
    if made:
        _deltart(*made, "-o", str(checkpoint))
    _deltart("export", str(checkpoint), "-o", str(artifact))
    _deltart(
        "build",
        str(artifact),
        "--flavour",
        "native",
        "--max-context",
        str(CONTEXT),
        "--chunk",
        "128",
        "--prefill-activations",
        "bf16",
    )
    build_exposed(artifact, "native", None)
    write_twin(artifact, IDS, PREFILL, on_shim="synthesize" in made)
    if made:
        shutil.rmtree(checkpoint)


def write_twin(artifact: Path, count: int, prefill: int, on_shim: bool = False) -> None:
    """Leave in an artifact what its CPU twin computes of `count` tokens, `prefill` of them in one call.

    The tokens are held-out text's for a model that has a tokenizer, drawn for another. `on_shim`: the twin is the same
    plan on the CPU shim, for a model without training, which makes much of the smallest difference in rounding.
    """
    if (artifact / "tokenizer.json").exists():
        lines = (NANO.parent / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:60]
        text = " ".join(json.loads(line)["messages"][0]["content"] for line in lines)
        ids = np.array(Tokenizer.from_folder(artifact).encode(text)[:count])
    else:
        ids = np.random.default_rng(0).integers(0, load_manifest(artifact).vocab_size, count)
    twin = ExposedBackend(artifact)
    if on_shim:
        shim, blocks = (
            TensorRtBackend(artifact, "native", cuda=HostCuda()),
            [p for p in twin.points if p.endswith(".h")],
        )
        found = backend_points(shim, blocks, prefill, EXPOSED, mtp=True)(ids)
    else:
        found = backend_points(twin, twin.points, prefill)(ids)
    np.savez_compressed(artifact / TWIN, ids=ids, prefill=np.array(prefill), **found)


def _full(folder: Path, preset: str) -> None:
    checkpoint, artifact = folder / "checkpoint", folder / "artifact"
    _deltart("synthesize", preset, "-o", str(checkpoint), "--sparse")
    _deltart("export", str(checkpoint), "-o", str(artifact))
    _deltart("build", str(artifact), "--flavour", "native", "--max-context", str(TOKENS), "--chunk", "4096")
    strip_weights(folder)


def strip_weights(folder: Path) -> None:
    """Keep only the headers and sizes of the weights of `folder`/artifact; they and the checkpoint go."""
    weights = folder / "artifact" / "weights"
    (folder / HEADERS).mkdir()
    sizes = {}
    for path in sorted(weights.iterdir()):
        _, infos = read_file(path)
        with path.open("rb") as file:
            (folder / HEADERS / path.name).write_bytes(file.read(min(info.offset for info in infos)))
        sizes[path.name] = path.stat().st_size
    (folder / SIZES).write_text(json.dumps(sizes))
    for place in (weights, folder / "checkpoint"):
        shutil.rmtree(place)
