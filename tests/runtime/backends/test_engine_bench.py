"""`python -m bench.engine` without a GPU: its measurements over host memory, and the bytes that it counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.engine import __main__ as bench
from bench.engine import measure, traffic, weights
from bench.engine.device import HostGpu
from deltart.artifact import load_manifest
from deltart.dtypes import BY_STORED
from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.write import synthesize
from deltart.planner.traffic import decode_weight_bytes
from deltart.plugins.cpu_shim.host_cuda import memory
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from support.host_gpu import write_engine


@pytest.fixture(scope="module")
def backend(lowered: Path, tmp_path_factory: pytest.TempPathFactory) -> TensorRtBackend:
    folder = Path(shutil.copytree(lowered, tmp_path_factory.mktemp("bench") / "artifact"))
    write_engine(folder, 2, max_context=64, chunk=32, exact=False)
    device = HostGpu()
    return TensorRtBackend(folder, "rtx", cuda=device.cuda, load=device.load(folder, "rtx"))


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_step_is_timed_as_a_graph_and_as_a_whole(backend: TensorRtBackend, tokens: int) -> None:
    device = HostGpu()
    if tokens == 1:
        row = measure.decode(device, backend, 20, 3, copy_gbs=1000.0)
        assert row["tokens_per_s"] == pytest.approx(2 / row["wall_ms"] * 1e3)
    else:
        row = measure.speculate(device, backend, 20, tokens, 3, copy_gbs=1000.0)
    assert row["wall_ms"] == pytest.approx(row["device_ms"] + row["host_ms"])
    assert row["percent_of_copy"] == pytest.approx(row["gbs"] / 10)
    assert row["bytes"] == decode_weight_bytes(backend.manifest) + 2 * traffic.state_bytes(
        backend.engine.plans["model.decode"], 20
    )


def test_prefill_is_timed(backend: TensorRtBackend) -> None:
    row = measure.prefill(backend, 40, repeats=2)
    assert row["tokens_per_s"] == pytest.approx(40 / row["wall_ms"] * 1e3)


def test_bytes_of_a_step(backend: TensorRtBackend) -> None:
    """Three GDN layers of 1 key and 3 value heads, 128 wide; one attention layer of 2 key heads, 64 wide."""
    manifest = backend.manifest
    sizes = {name: manifest.tensors[name].nbytes for name in manifest.graphs["model"].weights}
    assert sizes.pop("model.embed_tokens.weight") == 320 * 320 * 2
    assert sizes["model.layers.0.mlp.gate_proj.weight"] == 448 * 320  # a byte each
    assert decode_weight_bytes(manifest) == sum(sizes.values())
    recurrent = 3 * (3 * 128 * 128 * 4 + 3 * 5 * 128 * 2)
    found = traffic.state_bytes(backend.engine.plans["model.decode"], 100)
    assert found == 2 * recurrent + 100 * 2 * 2 * 64 * 2


def test_of_the_experts_a_step_reads_the_chosen(tmp_path: Path) -> None:
    synthesize("tiny-moe", tmp_path / "checkpoint", sparse=True)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact")
    manifest = load_manifest(tmp_path / "artifact")
    experts = sum(manifest.tensors[n].nbytes for n in manifest.graphs["model"].weights if ".mlp.experts." in n)
    chosen = manifest.spec["moe"]["num_experts_per_tok"] / manifest.spec["moe"]["num_experts"]
    most = decode_weight_bytes(manifest, rows=1000)
    assert most - decode_weight_bytes(manifest) == pytest.approx(experts * (1 - chosen), rel=1e-6)
    assert most - decode_weight_bytes(manifest, tokens=2) == pytest.approx(experts * (1 - chosen) ** 2, rel=1e-6)


def test_published_bounds_are_of_one_model() -> None:
    assert traffic.published_bound("NVIDIA H100 80GB HBM3 sm_90", 26_930_000_000, 32768) == 114
    assert traffic.published_bound("NVIDIA H100 80GB HBM3 sm_90", 26_930_000_000, 100) is None
    assert traffic.published_bound("NVIDIA H100 80GB HBM3 sm_90", 9_000_000, 0) is None
    assert traffic.published_bound("NVIDIA L4 sm_89", 26_930_000_000, 0) is None


@pytest.mark.slow
def test_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    root = Path(__file__).resolve().parents[3]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.chdir(root)
    few = ["--count", "1", "--steps", "2", "--context", "0", "--prompt", "40", "--out", str(tmp_path)]
    assert bench.main(["--dry-run", *few]) == 0
    result = json.loads((tmp_path / "engine-dry-run-on-host-memory-nano.json").read_text())
    assert result["verify"]["passed"] and len(result["build"]["plans"]) == 6
    assert result["decode_steps"][0]["device_ms"] > 0 and result["generate"]["new_tokens"] == 2


@pytest.mark.slow
def test_native_plans_are_timed_on_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[3]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.chdir(root)
    monkeypatch.setattr(bench, "verify", lambda *arguments: {"not_run": "no need"})
    monkeypatch.setattr(weights, "TILE_BYTES", 1 << 20)
    few = ["--steps", "1", "--context", "3", "--prompt", "5", "--out", str(tmp_path), "--flavour", "native"]
    assert bench.main(["--dry-run", "--random-weights", *few]) == 0
    result = json.loads((tmp_path / "engine-dry-run-on-host-memory-nano.json").read_text())
    assert result["flavour"] == "native" and 50 < result["launches"] < 60
    assert result["decode_steps"][0]["device_ms"] > 0 and result["prefills"][0]["tokens"] == 5


def test_random_weights_are_finite_and_whole(backend: TensorRtBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "TILE_BYTES", 1 << 20)
    weights.randomize(backend.cuda, backend)
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.embed_tokens.weight", "model.norm.weight"):
        entry = backend.manifest.tensors[name]
        dtype = BY_STORED[entry.dtype].numpy
        found = memory(backend.weights[name], entry.nbytes).view(dtype).astype(np.float32)
        assert np.isfinite(found).all() and (found != 0).mean() > 0.9
