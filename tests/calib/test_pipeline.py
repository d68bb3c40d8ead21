"""Whole calibrations: what the output holds, who can load it, and what it says about itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import FineGrainedFP8Config, Qwen3_5ForCausalLM

from deltart.calib.dataset import read_dataset
from deltart.calib.pipeline import calibrate
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.ledger import ledger_of
from deltart.export.pipeline import export_checkpoint
from deltart.export.spec import read_spec
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from support.calibration import VOCAB, load, log_probabilities, write_tiny

Made = Callable[[str], Path]
METHODS = ("absmax", "mse", "hessian")
CACHE_SCALES = {f"{layer}.self_attn.{kind}_scale" for layer in ("model.layers.3", "mtp.layers.0") for kind in "kv"}


def dequantized(folder: Path) -> dict[str, np.ndarray]:
    """Every weight in float32, as MODEL says: values times their block's scale."""
    tensors, weights = Checkpoint(folder), {}
    for name in tensors:
        if not name.endswith("_scale_inv") and name not in CACHE_SCALES:
            weights[name] = np.asarray(tensors.read(name)).astype(np.float32)
        if f"{name}_scale_inv" in tensors:
            scale = np.asarray(tensors.read(f"{name}_scale_inv")).astype(np.float32)
            weights[name] = weights[name] * np.kron(scale, np.ones((128, 128), np.float32))
    return weights


@pytest.mark.parametrize("method", METHODS)
def test_transformers_loads_the_same_weights(method: str, calibrated: Made) -> None:
    """Through transformers' own FP8 path, which dequantizes to BF16 on a CPU."""
    config = FineGrainedFP8Config(dequantize=True)
    loaded = Qwen3_5ForCausalLM.from_pretrained(
        calibrated(method), dtype=torch.bfloat16, quantization_config=config
    ).state_dict()
    expected = {n: w for n, w in dequantized(calibrated(method)).items() if not n.startswith("mtp.")}
    assert expected.keys() == loaded.keys()
    for name, weight in expected.items():
        assert loaded[name].dtype == torch.bfloat16
        assert torch.equal(loaded[name], torch.from_numpy(weight).to(torch.bfloat16)), name


def test_exported_output_equals_transformers(calibrated: Made, tmp_path: Path) -> None:
    export_checkpoint(calibrated("hessian"), tmp_path / "artifact")
    backend = OrtBackend(tmp_path / "artifact")
    row = np.random.default_rng(1).integers(0, VOCAB, 50)
    inputs = text_inputs(row[None], np.zeros(1, np.int32), logit_index=np.arange(50)[None])
    (logits,) = backend.run("model", backend.new_state("model", 1, 64), inputs, ["logits"])
    with torch.no_grad():
        expected = load(calibrated("hessian"))(torch.from_numpy(row[None])).logits.numpy()
    assert np.abs(logits - expected).max() <= 1e-4


def test_the_rest_is_carried_over_untouched(tiny: Path, calibrated: Made) -> None:
    before, out = Checkpoint(tiny), calibrated("hessian")
    after = Checkpoint(out)
    quantized = [name.removesuffix("_scale_inv") for name in after if name.endswith("_scale_inv")]
    assert (
        len(quantized) == 3 * 6 + 7 + 7
        and before.keys() == after.keys() - {f"{n}_scale_inv" for n in quantized} - CACHE_SCALES
    )
    for name in before:
        if name not in quantized:
            assert before[name].dtype == after[name].dtype and before.read(name).tobytes() == after.read(name).tobytes()
    assert (out / "generation_config.json").read_bytes() == (tiny / "generation_config.json").read_bytes()
    ledger_of(bind(read_spec(out), after))
    extra = {"config.json", "model.safetensors", "generation_config.json", "report.html", "report.json"}
    assert {p.name for p in out.iterdir()} == extra | {"kv_cache_scales.json", "activation_scales.json"}


def test_hessian_beats_absmax_on_held_out_text(tiny: Path, text: Path, calibrated: Made) -> None:
    """KL, top-1 and perplexity of the report, recomputed through transformers."""
    held_out = read_dataset(text, tiny, VOCAB).held_out
    original = [log_probabilities(load(tiny), row) for row in held_out]
    kl = {}
    for method in METHODS:
        report = json.loads((calibrated(method) / "report.json").read_text())
        found = [log_probabilities(load(calibrated(method)), row) for row in held_out]
        p, q = torch.cat(original), torch.cat(found)
        kl[method] = float((p.exp() * (p - q)).sum(-1).mean())
        losses = torch.cat([-x[torch.arange(len(r) - 1), r[1:]] for x, r in zip(found, held_out, strict=True)])
        told = report["agreement"][method]
        assert told["kl"] == pytest.approx(kl[method], rel=0.02, abs=1e-7)
        assert told["top1"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()), abs=0.01)
        assert told["perplexity"] == pytest.approx(math.exp(float(losses.mean())), rel=1e-4)
    compared = json.loads((calibrated("hessian") / "report.json").read_text())["agreement"]
    assert {name: own["kl"] for name, own in compared.items()} == pytest.approx(kl, rel=0.02)
    assert kl["hessian"] <= kl["absmax"] and kl["mse"] <= 1.1 * kl["absmax"]


def test_report_ranks_sites_and_names_files(calibrated: Made) -> None:
    report = json.loads((calibrated("hessian") / "report.json").read_text())
    assert len(report["ranking"]) == 4 * 4 + 4 and len(report["weights"]) == 32
    harm = [site["kl"] for site in report["ranking"]]
    assert harm == sorted(harm, reverse=True) and all(site["perturbation"] > 0 for site in report["ranking"])
    assert [site["modules"][0].startswith("mtp.") for site in report["ranking"]] == [False] * 16 + [True] * 4
    assert sum(harm) == pytest.approx(report["agreement"]["hessian"]["kl"], rel=0.4)  # as of independent errors
    outputs = [w["output"] for w in report["weights"].values()]
    assert all(own.keys() == {*METHODS, "chosen"} for own in outputs)
    ratios = [own["chosen"] / own["absmax"] for own in outputs]
    assert max(ratios) <= 1 and sum(ratios) / len(ratios) < 0.85
    assert list(report["agreement"]["hessian"]["drift"]) == [*(f"model.layers.{n}" for n in range(4)), "mtp.layers.0"]
    page = (calibrated("hessian") / "report.html").read_text()
    for words in ("data:image/png", "What to keep in BF16", report["files"]["model.safetensors"], "saturated"):
        assert words in page


def test_figures_of_layers_and_weights(tiny: Path, calibrated: Made) -> None:
    """SQNR, outliers, saturation and underflow of the report, from the files alone."""
    out = calibrated("hessian")
    report, before, after = json.loads((out / "report.json").read_text()), Checkpoint(tiny), dequantized(out)
    energy, noise = 0.0, 0.0
    for module, told in report["weights"].items():
        if not module.startswith("model.layers.1."):
            continue
        w = np.asarray(before.read(f"{module}.weight")).astype(np.float64)
        stored = np.abs(np.asarray(Checkpoint(out).read(f"{module}.weight")).astype(np.float32))
        squares = (w**2).sum(), ((after[f"{module}.weight"] - w) ** 2).sum()
        assert told["sqnr_db"] == pytest.approx(10 * math.log10(squares[0] / squares[1]), abs=1e-3)
        assert told["saturated"] == pytest.approx((stored == 448).mean())
        assert told["underflow"] == pytest.approx(((stored == 0) & (w != 0)).mean())
        tiles = w.reshape(w.shape[0] // 128, 128, w.shape[1] // 128, 128)
        peaks, rms = np.abs(tiles).max((1, 3)), (tiles**2).mean((1, 3)) ** 0.5
        assert told["outliers"] == pytest.approx((peaks > 8 * rms).mean())
        energy, noise = energy + squares[0], noise + squares[1]
    assert report["layers"]["model.layers.1"]["sqnr_db"] == pytest.approx(10 * math.log10(energy / noise), abs=1e-3)


def test_budget_says_what_to_keep_and_keep_keeps_it(tiny: Path, text: Path, calibrated: Made, tmp_path: Path) -> None:
    loss = json.loads((calibrated("absmax") / "report.json").read_text())["agreement"]["absmax"]["kl"]
    report = calibrate(tiny, tmp_path / "first", method="absmax", data=text, budget=0.4 * loss)
    asked = report.keep[-1]
    assert 0 < len(asked.modules) < len(report.weights) and asked.kl <= 0.4 * loss
    kept = calibrate(tiny, tmp_path / "second", method="absmax", data=text, keep=asked.modules)
    assert kept.kept.keys() == set(asked.modules) and kept.agreement["absmax"].kl == pytest.approx(asked.kl, rel=0.25)
    stored = {name: info.dtype for name, info in Checkpoint(tmp_path / "second").items()}
    assert all(stored[f"{module}.weight"] == "BF16" for module in asked.modules)
    ledger_of(bind(read_spec(tmp_path / "second"), Checkpoint(tmp_path / "second")))


def test_kv_scales_cover_transformers_cache(tiny: Path, text: Path, calibrated: Made) -> None:
    scales = json.loads((calibrated("hessian") / "kv_cache_scales.json").read_text())
    assert scales.keys() == {"model.layers.3.self_attn", "mtp.layers.0.self_attn"}
    model, peaks = load(tiny), torch.zeros(2)
    dataset = read_dataset(text, tiny, VOCAB)
    for row in [*dataset.calibration, *dataset.validation]:
        with torch.no_grad():
            layer = model(torch.tensor([row]), use_cache=True).past_key_values.layers[3]
        peaks = torch.maximum(peaks, torch.stack([layer.keys.abs().max(), layer.values.abs().max()]))
    own = scales["model.layers.3.self_attn"]
    assert own["k"]["layer"] * 448 == pytest.approx(float(peaks[0]), rel=1e-4)
    stored = Checkpoint(calibrated("hessian"))
    for kind in "kv":
        assert float(stored.read(f"model.layers.3.self_attn.{kind}_scale")) == np.float32(own[kind]["layer"])
    assert max(own["v"]["heads"]) == pytest.approx(float(peaks[1]) / 448, rel=1e-4) and len(own["v"]["heads"]) == 2


def test_activation_scales_cover_the_inputs(calibrated: Made) -> None:
    scales = json.loads((calibrated("hessian") / "activation_scales.json").read_text())
    assert len(scales) == 20 and all(0 < scale < 1 for scale in scales.values())


def test_untiled_linears_stay_and_are_named(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint", ffn=320)
    report = calibrate(checkpoint, tmp_path / "out", method="absmax")
    assert all(".mlp." in name for name in report.kept) and len(report.kept) == 15
    listed = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert set(report.kept) <= set(listed)
    ledger_of(bind(read_spec(tmp_path / "out"), Checkpoint(tmp_path / "out")))


def test_modules_restrict_and_statistics_are_reused(tiny: Path, text: Path, calibrated: Made, tmp_path: Path) -> None:
    lines: list[str] = []
    kept = tmp_path / "statistics"
    arguments = dict(method="hessian", data=text, modules=["mlp"], statistics=kept)
    calibrate(tiny, tmp_path / "first", **arguments)  # type: ignore[arg-type]
    stamps = {p.name: p.stat().st_mtime_ns for p in kept.glob("*.pt")}
    assert len(stamps) == 5
    calibrate(tiny, tmp_path / "second", **arguments, log=lines.append)  # type: ignore[arg-type]
    assert {p.name: p.stat().st_mtime_ns for p in kept.glob("*.pt")} == stamps
    first, whole = Checkpoint(tmp_path / "first"), Checkpoint(calibrated("hessian"))
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == (
        tmp_path / "first" / "model.safetensors"
    ).read_bytes()
    quantized = {name for name in first if first[name].dtype == "F8_E4M3"}
    assert quantized == {name for name in whole if ".mlp." in name and name.endswith(".weight")}
    for name in quantized:
        assert first.read(name).tobytes() == whole.read(name).tobytes()
