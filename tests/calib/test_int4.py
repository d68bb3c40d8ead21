"""Calibration to int4 in groups: what is stored against its description, and through transformers and ONNX Runtime."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration, Qwen3_5TextConfig

from bench.calibration import NANO, prompts
from deltart.calib.formats import FP8, Format, Int4Groups
from deltart.calib.grid import int4_groups
from deltart.calib.pipeline import calibrate
from deltart.calib.scales import Quantized, absmax, search
from deltart.cli import main
from deltart.errors import CalibrationError, ConfigError
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.ledger import ledger_of
from deltart.export.pipeline import export_checkpoint
from deltart.export.spec import read_spec
from deltart.export.synthetic.presets import Experts, causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.export.weights import load_tensor
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from support.calibration import SIZES, VOCAB, write_tiny
from support.packed import words_of
from support.saved import LINEARS, nested

Calibrated = Callable[[str], Path]
MISSING = "pip install compressed-tensors: transformers loads int4 with it"


@pytest.fixture(scope="module")
def packed(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    """The tiny checkpoint by a method, in groups of 128; "hessian-32" in groups of 32."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            method, _, size = name.partition("-")
            made[name] = tmp_path_factory.mktemp(name) / "out"
            calibrate(tiny, made[name], method=method, form=Int4Groups(int(size or 128)), data=text)  # type: ignore
        return made[name]

    return make


def unpacked(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight in float32, by the format's description: eight values in a word, 8 for 0, the lowest bits first."""
    tensors, weights = Checkpoint(folder), {}
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_packed":
            words = np.asarray(tensors.read(name)).view(np.uint32)
            integers = np.stack([words >> np.uint32(4 * place) & 15 for place in range(8)], -1).astype(np.float64) - 8
            scale = np.asarray(tensors.read(f"{module}.weight_scale")).astype(np.float64)
            rows, columns = (int(size) for size in tensors.read(f"{module}.weight_shape"))
            values = integers.reshape(rows, scale.shape[1], -1) * scale[..., None]
            weights[f"{module}.weight"] = torch.from_numpy(values.reshape(rows, columns).astype(np.float32))
        elif leaf not in ("weight_scale", "weight_shape"):
            weights[name] = torch.from_numpy(np.asarray(tensors.read(name)).astype(np.float32))
    return weights


def through_transformers(folder: Path) -> Qwen3_5ForCausalLM:
    """transformers' model with what the checkpoint stands for."""
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**config)).float().eval()
    weights = {name: value for name, value in unpacked(folder).items() if not name.startswith("mtp.")}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    return model


@pytest.mark.parametrize("size", [32, 128])
def test_absmax_equals_the_formula_in_float64(size: int) -> None:
    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    weight[3, :size], weight[5] = 0, 1e-12
    found = absmax(weight, grid=int4_groups(size))
    groups = weight.double().numpy().reshape(256, -1, size)
    peaks = np.abs(groups).max(-1)
    scale = torch.from_numpy(np.where(peaks > 0, peaks / 7.5, 1)).float().bfloat16()
    assert torch.equal(found.scale, scale)
    exact = groups / scale.double().numpy()[..., None]
    codes = found.weight.double().numpy().reshape(groups.shape)
    assert np.abs(codes - np.clip(np.rint(exact), -8, 7))[np.abs(exact - np.rint(exact)) < 0.499999].max() == 0
    assert found.weight.min() == -8 and found.weight.max() == 7 and not found.weight[3, :size].any()


@pytest.mark.parametrize("size", [32, 128])
def test_search_never_does_worse_and_weighs_what_matters(size: int) -> None:
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(2))
    importance = torch.rand(256, generator=torch.Generator().manual_seed(3)) ** 4
    grid = int4_groups(size)

    def error(weights: torch.Tensor | None) -> float:
        found = absmax(weight, grid=grid) if weights is None else search(weight, weights, grid=grid)
        return float(((found.dequantized() - weight) ** 2 * importance).sum())

    assert error(importance) < error(torch.ones(256)) < error(None)


def test_words_are_those_of_the_description() -> None:
    codes = torch.randint(-8, 8, (128, 256), dtype=torch.int8, generator=torch.Generator().manual_seed(4))
    scale = torch.rand(128, 2).bfloat16()
    form = Int4Groups(128)
    words, _, shape = form.tensors(Quantized(codes, scale, form.grid))
    assert torch.equal(words, words_of(codes, scale)) and shape.tolist() == [128, 256]


@pytest.mark.parametrize("name", ["hessian", "hessian-32"])
def test_an_export_equals_transformers(name: str, packed: Calibrated, tmp_path: Path) -> None:
    ledger_of(bind(read_spec(packed(name)), Checkpoint(packed(name))))
    export_checkpoint(packed(name), tmp_path / "artifact")
    backend = OrtBackend(tmp_path / "artifact")
    row = np.random.default_rng(1).integers(0, VOCAB, 50)
    inputs = text_inputs(row[None], np.zeros(1, np.int32), logit_index=np.arange(50)[None])
    (logits,) = backend.run("model", backend.new_state("model", 1, 64), inputs, ["logits"])
    with torch.no_grad():
        expected = through_transformers(packed(name))(torch.from_numpy(row[None])).logits.numpy()
    assert np.abs(logits - expected).max() <= 1e-4


def test_better_methods_lose_less_on_held_out_text(packed: Calibrated) -> None:
    report = json.loads((packed("hessian") / "report.json").read_text())
    kl = {name: own["kl"] for name, own in report["agreement"].items()}
    assert report["format"] == "INT4 in groups of 128" and kl["hessian"] < kl["mse"] < kl["absmax"]
    finer = json.loads((packed("hessian-32") / "report.json").read_text())["agreement"]["hessian"]["kl"]
    assert finer < kl["hessian"]
    ranked = {module for own in report["ranking"] for module in own["modules"]}
    assert ranked == set(report["weights"]) and all(own["extra_bytes"] > 0 for own in report["ranking"])


def test_the_rest_is_carried_over_untouched(tiny: Path, packed: Calibrated) -> None:
    before, after = Checkpoint(tiny), Checkpoint(packed("hessian"))
    modules = {name.removesuffix(".weight_packed") for name in after if name.endswith(".weight_packed")}
    stored = {f"{module}.{leaf}" for module in modules for leaf in ("weight_packed", "weight_scale", "weight_shape")}
    assert len(modules) == 3 * 6 + 7 + 7 and "lm_head" not in modules
    assert after.keys() - stored == before.keys() - {f"{module}.weight" for module in modules}
    sizes = json.loads((packed("hessian") / "report.json").read_text())["sizes"]
    assert sizes["quantized linears"]["after"] == sum(after[name].nbytes for name in stored)
    assert sizes["quantized linears"]["dtypes"] == ["I32", "BF16", "I64"]
    assert sizes["embedding"] == sizes["LM head"] == {"before": VOCAB * 256, "after": VOCAB * 256, "dtypes": ["BF16"]}
    for column, tensors in (("before", before), ("after", after)):
        assert sum(part[column] for part in sizes.values()) == sum(info.nbytes for info in tensors.values())
    for name in after.keys() - stored:
        assert before[name].dtype == after[name].dtype and before.read(name).tobytes() == after.read(name).tobytes()


def test_a_killed_run_ends_with_the_same_bytes(tiny: Path, text: Path, packed: Calibrated, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def log(line: str) -> None:
        if "down_proj" in line and "quantizing" in line and not begun:
            begun.append(line)
            raise Killed

    begun: list[str] = []
    output = tmp_path / "out"
    with pytest.raises(Killed):
        calibrate(tiny, output, method="mse", form=Int4Groups(128), data=text, log=log)
    with pytest.raises(CalibrationError, match="--format or --group"):
        calibrate(tiny, output, method="mse", form=Int4Groups(32), data=text)
    calibrate(tiny, output, method="mse", form=Int4Groups(128), data=text, log=log)
    whole = packed("mse")
    assert {p.name: p.read_bytes() for p in output.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


@pytest.mark.slow
def test_the_command_goes_on_after_a_sigkill(tiny: Path, text: Path, packed: Calibrated, tmp_path: Path) -> None:
    output, journal = tmp_path / "out", tmp_path / ".out.partial" / ".calibration" / "journal.jsonl"
    command = [sys.executable, "-m", "deltart", "calibrate", str(tiny), "-o", str(output), "--data", str(text)]
    command += ["--format", "int4", "--group", "32"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 9):
            time.sleep(1e-3)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not output.exists()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert re.search(r"[1-9]\d* done before", done.stderr)
    sizes = [sum(info.nbytes for info in Checkpoint(folder).values()) / 1e6 for folder in (tiny, output)]
    assert "32 linears quantized, {:.1f} MB became {:.1f} MB; see".format(*sizes) in done.stdout
    whole = packed("hessian-32")
    assert {p.name: p.read_bytes() for p in output.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


def write_kind(kind: str, folder: Path) -> type[PreTrainedModel]:
    """A checkpoint of transformers' causal model, of one with a tied head, or with a vision tower; the class of it."""
    config = text_config(**SIZES, vocab=VOCAB, tied="tied" in kind)
    seeing = "seeing" in kind
    write_checkpoint(nested(config) if seeing else causal_lm(config), folder)
    return Qwen3_5ForConditionalGeneration if seeing else Qwen3_5ForCausalLM


@pytest.mark.parametrize("form", [FP8, Int4Groups(128)], ids=lambda form: form.name)
def test_a_tied_head_is_named_though_nothing_of_it_is_stored(form: Format, tmp_path: Path) -> None:
    write_kind("tied", tmp_path / "tied")
    calibrate(tmp_path / "tied", tmp_path / "out", method="absmax", form=form)
    quantization = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "lm_head" in quantization.get("ignore", quantization.get("modules_to_not_convert"))
    assert "lm_head.weight" not in Checkpoint(tmp_path / "out")
    ledger_of(bind(read_spec(tmp_path / "out"), Checkpoint(tmp_path / "out")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "tied", "seeing", "seeing tied"])
def test_transformers_loads_it_with_compressed_tensors(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason=MISSING)
    model_of, quantized, plain = write_kind(kind, tmp_path / "checkpoint"), tmp_path / "out", tmp_path / "plain"
    calibrate(tmp_path / "checkpoint", quantized, method="mse", form=Int4Groups(32), keep=["layers.1.mlp"])
    plain.mkdir()
    config = json.loads((quantized / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    save_file(unpacked(quantized), plain / "model.safetensors", {"format": "pt"})
    row = torch.from_numpy(np.random.default_rng(1).integers(0, VOCAB, 50))[None]
    logits = []
    for folder in (quantized, plain):
        model, told = model_of.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            logits.append(model.eval()(row).logits)
    assert (logits[0] - logits[1]).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 128])
def test_absmax_is_what_compressed_tensors_makes(size: int, tiny: Path, tmp_path: Path) -> None:
    """Its scales of BF16 weights, and its codes and words of them in float32."""
    library = pytest.importorskip("compressed_tensors.quantization", reason=MISSING)
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    compressor = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base").PackedQuantizationCompressor
    calibrate(tiny, tmp_path / "out", method="absmax", form=Int4Groups(size))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    scheme = library.QuantizationConfig.model_validate(config).config_groups["group_0"]
    before, after = Checkpoint(tiny), Checkpoint(tmp_path / "out")
    modules = [name.removesuffix(".weight_packed") for name in after if name.endswith(".weight_packed")]
    assert len(modules) == 32
    for module in modules:
        weight = load_tensor(before, f"{module}.weight")
        least, most = weight.view(len(weight), -1, size).aminmax(dim=-1)
        scale, _ = helpers.calculate_qparams(least, most, scheme.weights)
        theirs = compressor.compress({"weight": weight.float(), "weight_scale": scale.float()}, scheme)
        assert torch.equal(load_tensor(after, f"{module}.weight_scale"), scale)
        for leaf in ("weight_packed", "weight_shape"):
            assert np.array_equal(after.read(f"{module}.{leaf}"), theirs[leaf].numpy()), f"{module}.{leaf}"


@pytest.mark.slow
def test_nano_loses_less_by_hessian_on_questions_held_out(tmp_path: Path) -> None:
    """A trained model and text that it was never trained on, of a seed that no constant was tuned with."""
    text = prompts(tmp_path, 103)
    report = calibrate(NANO / "checkpoint", tmp_path / "out", form=Int4Groups(128), data=text)
    assert {module.rpartition(".")[2] for module in report.weights} == set(LINEARS)
    assert report.agreement["hessian"].kl < 0.5 * report.agreement["mse"].kl < 0.5 * report.agreement["absmax"].kl
    assert report.agreement["hessian"].top1 > report.agreement["absmax"].top1


def test_sizes_that_groups_do_not_tile_stay_in_bf16(tmp_path: Path) -> None:
    odd = write_tiny(tmp_path / "odd", ffn=320)
    report = calibrate(odd, tmp_path / "out", method="absmax", form=Int4Groups(128))
    assert report.kept["model.layers.0.mlp.down_proj"].endswith("[128, 320], which blocks of 128 do not tile")
    assert report.sizes["linears left as they are"].after == report.sizes["linears left as they are"].before
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert report.kept.keys() < set(ignored) and not report.kept.keys() & report.weights.keys()
    export_checkpoint(tmp_path / "out", tmp_path / "artifact")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--group", "32"], "--group without --format int4"),
        (["--format", "int4", "--kv-cache"], "scales of an FP8 KV cache, with INT4"),
        (["--format", "int4", "--activations"], "scales of FP8 activations, with INT4"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], words: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(tiny), "-o", str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_routed_experts_are_refused_by_name(tmp_path: Path) -> None:
    sparse = write_tiny(tmp_path / "sparse", experts=Experts(12, 3, 128))
    with pytest.raises(ConfigError, match=r"(?s)routed experts to quantize.*--keep experts"):
        calibrate(sparse, tmp_path / "out", method="absmax", form=Int4Groups(128))
    calibrate(sparse, tmp_path / "out", method="absmax", form=Int4Groups(128), keep=["experts"])
    export_checkpoint(tmp_path / "out", tmp_path / "artifact")
