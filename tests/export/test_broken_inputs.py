"""Every kind of broken input has its own clear error and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltart.errors import CheckpointError, ConfigError, DeltaRTError, ExportError
from deltart.export.checkpoint import Checkpoint
from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic import write as synthetic
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.safetensors import SINGLE
from support.cases import VOCAB

CONFIG = causal_lm(
    text_config(hidden=128, ffn=128, layers=4, heads=2, kv_heads=1, k_heads=1, v_heads=2, vocab=VOCAB, head_dim=64)
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints without a fault: single-file FP8, and one in shards."""
    folder = tmp_path_factory.mktemp("sound")
    write_checkpoint(CONFIG, folder / "single", quantized=True, sparse=True)
    limit, synthetic.SHARD_BYTES = synthetic.SHARD_BYTES, 400_000
    write_checkpoint(CONFIG, folder / "sharded", quantized=True, sparse=True)
    synthetic.SHARD_BYTES = limit
    return {name: folder / name for name in ("single", "sharded")}


@pytest.fixture
def copy(sound: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A private copy of a sound checkpoint, to break."""
    return lambda name: Path(shutil.copytree(sound[name], tmp_path / "checkpoint"))


def edit_config(folder: Path, **changes: Any) -> None:
    """Set fields, or remove them where the value is None."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_rope(folder: Path, **changes: Any) -> None:
    edit_config(folder, rope_parameters=CONFIG["rope_parameters"] | changes)


def edit_quantization(folder: Path, **changes: Any) -> None:
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_config(folder, quantization_config=quantization | changes)


def edit_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the safetensors header in place (same length, padded with spaces)."""
    path = folder / SINGLE
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        size = path.stat().st_size - 8 - length
        change(header)
        raw = json.dumps(header, separators=(",", ":")).encode()
        file.seek(0)
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + size)


def edit_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[new] = header.pop(old)

    return change


def set_entry(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(changes)


GATE = "model.layers.0.mlp.gate_proj.weight"
NORM = "model.norm.weight"

# name: (base checkpoint, how to break it, error class, words the message must hold)
BREAKS: dict[str, tuple[str, Callable[[Path], object], type[DeltaRTError], list[str]]] = {
    "no config": ("single", lambda f: (f / "config.json").unlink(), ConfigError, ["config.json", "does not exist"]),
    "corrupt config": ("single", lambda f: (f / "config.json").write_text("{"), ConfigError, ["not valid JSON"]),
    "config is a list": ("single", lambda f: (f / "config.json").write_text("[]"), ConfigError, ["list"]),
    "unsupported architecture": (
        "single",
        lambda f: edit_config(f, architectures=["LlamaForCausalLM"]),
        ConfigError,
        ["LlamaForCausalLM", "Qwen3_5ForCausalLM"],
    ),
    "missing field": ("single", lambda f: edit_config(f, head_dim=None), ConfigError, ["head_dim", "missing"]),
    "field of wrong type": ("single", lambda f: edit_config(f, hidden_size="128"), ConfigError, ["hidden_size"]),
    "negative size": ("single", lambda f: edit_config(f, vocab_size=-1), ConfigError, ["vocab_size", "at least 1"]),
    "layer_types too short": (
        "single",
        lambda f: edit_config(f, layer_types=["linear_attention"]),
        ConfigError,
        ["layer_types", "4 layers"],
    ),
    "unknown layer type": (
        "single",
        lambda f: edit_config(f, layer_types=["linear_attention"] * 3 + ["mamba"]),
        ConfigError,
        ["layer_types[3]", "mamba"],
    ),
    "unknown rope type": (
        "single",
        lambda f: edit_rope(f, rope_type="longrope"),
        ConfigError,
        ["rope_type", "longrope"],
    ),
    "old rope_scaling": (
        "single",
        lambda f: edit_config(f, rope_scaling={"type": "yarn"}),
        ConfigError,
        ["rope_scaling", "rope_parameters"],
    ),
    "yarn without factor": ("single", lambda f: edit_rope(f, rope_type="yarn"), ConfigError, ["factor", "missing"]),
    "mrope sections don't add up": (
        "single",
        lambda f: edit_rope(f, mrope_section=[3, 3, 3]),
        ConfigError,
        ["mrope_section", "8 rotary pairs"],
    ),
    "mrope sections are not numbers": (
        "single",
        lambda f: edit_rope(f, mrope_section=["3", 3, 2]),
        ConfigError,
        ["mrope_section", "['3', 3, 2]"],
    ),
    "yarn with its own attention factor": (
        "single",
        lambda f: edit_rope(f, rope_type="yarn", factor=2.0, attention_factor=1.0),
        ConfigError,
        ["attention_factor", "absent"],
    ),
    "mrope sections don't interleave": (
        "single",
        lambda f: edit_rope(f, mrope_section=[1, 1, 6]),
        ConfigError,
        ["mrope_section", "every third"],
    ),
    "heads don't divide": (
        "single",
        lambda f: edit_config(f, num_attention_heads=3, num_key_value_heads=2),
        ConfigError,
        ["num_key_value_heads", "divisor"],
    ),
    "unknown activation": ("single", lambda f: edit_config(f, hidden_act="gelu"), ConfigError, ["hidden_act", "silu"]),
    "unknown quantization": (
        "single",
        lambda f: edit_quantization(f, quant_method="awq"),
        ConfigError,
        ["quant_method", "awq", "fp8"],
    ),
    "other block size": (
        "single",
        lambda f: edit_quantization(f, weight_block_size=[1, 128]),
        ConfigError,
        ["weight_block_size", "[128, 128]"],
    ),
    "static activations": (
        "single",
        lambda f: edit_quantization(f, activation_scheme="static"),
        ConfigError,
        ["activation_scheme", "dynamic"],
    ),
    "no weights": ("single", lambda f: (f / SINGLE).unlink(), CheckpointError, ["holds no weights"]),
    "truncated shard": (
        "single",
        lambda f: os.truncate(f / SINGLE, (f / SINGLE).stat().st_size - 1),
        CheckpointError,
        ["ends at byte", "truncated"],
    ),
    "empty shard": ("single", lambda f: os.truncate(f / SINGLE, 0), CheckpointError, ["not safetensors"]),
    "header is not JSON": (
        "single",
        lambda f: (f / SINGLE).write_bytes((8).to_bytes(8, "little") + b"not json"),
        CheckpointError,
        ["header is not valid JSON"],
    ),
    "missing tensor": (
        "single",
        lambda f: edit_header(f, lambda h: h.pop(NORM)),
        CheckpointError,
        [NORM, "missing"],
    ),
    "missing scale": (
        "single",
        lambda f: edit_header(f, lambda h: h.pop(f"{GATE}_scale_inv")),
        CheckpointError,
        [f"{GATE}_scale_inv", "missing"],
    ),
    "extra tensor": (
        "single",
        lambda f: edit_header(f, set_copy(NORM, "model.layers.0.mlp.extra")),
        CheckpointError,
        ["model.layers.0.mlp.extra", "used by no graph"],
    ),
    "extra scale": (
        "single",
        lambda f: edit_header(f, set_copy(f"{GATE}_scale_inv", "lm_head.weight_scale_inv")),
        CheckpointError,
        ["lm_head.weight_scale_inv", "used by no graph"],
    ),
    "wrong shape": (
        "single",
        lambda f: edit_header(f, set_entry(NORM, shape=[2, 64])),
        CheckpointError,
        [NORM, "[2, 64]", "[128]"],
    ),
    "wrong dtype": (
        "single",
        lambda f: edit_header(f, set_entry(NORM, dtype="I16")),
        CheckpointError,
        [NORM, "I16", "BF16"],
    ),
    "size contradicts shape": (
        "single",
        lambda f: edit_header(f, set_entry(NORM, shape=[127])),
        CheckpointError,
        [NORM, "256 bytes"],
    ),
    "skip list names a quantized module": (
        "single",
        lambda f: edit_quantization(f, modules_to_not_convert=[*skip_list(f), "model.layers.0.mlp.gate_proj"]),
        CheckpointError,
        [GATE, "modules_to_not_convert", "correct the list"],
    ),
    "quantization_config missing": (
        "single",
        lambda f: edit_config(f, quantization_config=None),
        CheckpointError,
        ["F8_E4M3", "quantization_config is missing"],
    ),
    "mtp tensors but no mtp in config": (
        "single",
        lambda f: edit_config(f, mtp_num_hidden_layers=0),
        CheckpointError,
        ["mtp.", "used by no graph"],
    ),
    "index names a missing shard": (
        "sharded",
        lambda f: (f / shard(f, 2)).unlink(),
        CheckpointError,
        ["model-00002", "does not exist"],
    ),
    "index escapes the folder": (
        "sharded",
        lambda f: edit_index(f, lambda m: m.update({NORM: "../model.safetensors"})),
        CheckpointError,
        ["../model.safetensors"],
    ),
    "index puts a tensor in the wrong shard": (
        "sharded",
        lambda f: edit_index(f, lambda m: m.update({NORM: shard(f, 1), "lm_head.weight": shard(f, 2)})),
        CheckpointError,
        ["lm_head.weight", "is in 'model-00001"],
    ),
    "tensor not in the index": (
        "sharded",
        lambda f: edit_index(f, lambda m: m.pop(NORM)),
        CheckpointError,
        [NORM, "is not in"],
    ),
    "corrupt index": (
        "sharded",
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 3}'),
        CheckpointError,
        ["weight_map"],
    ),
}


def set_copy(name: str, extra: str) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.update({extra: dict(header[name])})


def skip_list(folder: Path) -> list[str]:
    names: list[str] = json.loads((folder / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    return names


def shard(folder: Path, number: int) -> str:
    return sorted(folder.glob("model-*.safetensors"))[number - 1].name


@pytest.mark.parametrize("name", BREAKS)
def test_broken_checkpoint(name: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    base, damage, error, words = BREAKS[name]
    folder = copy(base)
    damage(folder)
    with pytest.raises(error) as caught:
        export_checkpoint(folder, tmp_path / "artifact")
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]


def test_errors_differ() -> None:
    """No two kinds of damage are told apart by the same words."""
    told = [tuple(words) for _, _, _, words in BREAKS.values()]
    assert len(set(told)) == len(told) >= 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_context": 10**9}, ["1000000000 tokens", "--yarn"]),
        ({"max_context": 0}, ["0 tokens", "1 to"]),
        ({"yarn": 0.5}, ["YaRN factor 0.5"]),
    ],
)
def test_bad_options(options: dict[str, Any], words: list[str], copy: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(DeltaRTError) as caught:
        export_checkpoint(copy("single"), tmp_path / "artifact", **options)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "artifact").exists()


def test_output_in_use(copy: Callable[[str], Path], tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    output.mkdir()
    (output / "precious").write_text("keep me")
    for overwrite in (False, True):  # --overwrite replaces artifacts, not somebody's folder
        with pytest.raises(ExportError, match="already in use"):
            export_checkpoint(copy("single") if not overwrite else tmp_path / "checkpoint", output, overwrite=overwrite)
    assert (output / "precious").read_text() == "keep me"


def test_output_is_a_file(copy: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "artifact").write_text("a file")
    with pytest.raises(ExportError, match="is a file"):
        export_checkpoint(copy("single"), tmp_path / "artifact")


def test_unwritable_output(copy: Callable[[str], Path]) -> None:
    with pytest.raises(ExportError, match="cannot write"):
        export_checkpoint(copy("single"), Path("/proc/artifact"))


def test_interruption_leaves_nothing(copy: Callable[[str], Path], tmp_path: Path) -> None:
    def interrupt(step: str) -> None:
        if step.startswith("checking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(copy("single"), tmp_path / "artifact", log=interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]


def test_sound_checkpoints_export(sound: dict[str, Path], tmp_path: Path) -> None:
    """The checkpoints that the tests above break do export, and no weight is copied."""
    for name, folder in sound.items():
        export_checkpoint(folder, tmp_path / name)
        for file in Checkpoint(folder).files:
            assert os.path.samefile(folder / file.name, tmp_path / name / "weights" / file.name)


def test_quantize_blocks_dequantizes_within_half_a_step() -> None:
    values = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)
    quantized, scale = synthetic.quantize_blocks(values)
    restored = quantized.astype(np.float32) * scale.repeat(128, 0).repeat(128, 1)[:200, :300]
    assert np.abs(restored - values).max() <= np.abs(values).max() * 2**-4 * 1.02
