"""What the GPU machine needs and could not make itself: artifacts with native plans, and the CPU twin's results."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.first_run.twin import CONTEXT, IDS, PREFILL, TWIN
from bench.first_run.weights import HEADERS, SIZES
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.safetensors import read_file
from deltart.verify.exposed import ExposedBackend
from deltart.verify.runners import backend_points
from deltart.verify.tensorrt_exposed import build_exposed

NANO = Path(__file__).resolve().parents[2] / "tools" / "nano" / "checkpoint"
TOKENS_27B = 131072 + 256


def prepare(folder: Path) -> None:
    """Fill `folder` anew: `nano` whole, `27b` without weights, whose headers lie beside it. A few MB in all."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _nano(folder / "nano")
    _27b(folder / "27b")


def _deltart(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "deltart", *words], check=True)


def _nano(artifact: Path) -> None:
    _deltart("export", str(NANO), "-o", str(artifact))
    _deltart("build", str(artifact), "--flavour", "native", "--max-context", str(CONTEXT), "--chunk", "128")
    build_exposed(artifact, "native", None)
    write_twin(artifact, IDS, PREFILL)


def write_twin(artifact: Path, count: int, prefill: int) -> None:
    """Leave in a nano's artifact what its CPU twin computes of `count` tokens, `prefill` of them in one call."""
    lines = (NANO.parent / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    text = " ".join(json.loads(line)["messages"][0]["content"] for line in lines)
    ids = np.array(Tokenizer.from_folder(NANO).encode(text)[:count])
    twin = ExposedBackend(artifact)
    found = backend_points(twin, twin.points, prefill)(ids)
    np.savez_compressed(artifact / TWIN, ids=ids, prefill=np.array(prefill), **found)


def _27b(folder: Path) -> None:
    checkpoint, artifact = folder / "checkpoint", folder / "artifact"
    _deltart("synthesize", "qwen3.6-27b-fp8", "-o", str(checkpoint), "--sparse")
    _deltart("export", str(checkpoint), "-o", str(artifact))
    _deltart("build", str(artifact), "--flavour", "native", "--max-context", str(TOKENS_27B))
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
