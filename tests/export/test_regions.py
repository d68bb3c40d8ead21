"""Where experts lie: the vendor's file, layers over several files, and layouts that can't be bound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from e2e.test_parity import TOLERANCE, call, random_ids
from safetensors.torch import load_file, save_file

from deltart.errors import CheckpointError
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.ledger import ledger_of
from deltart.export.pipeline import export_checkpoint
from deltart.export.spec import read_spec
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import synthesize, write_checkpoint
from deltart.runtime.backends.ort import OrtBackend
from support.cases import SPARSE_CASES, VOCAB, Exported
from support.compressed import BLOCK, CHANNEL, quantization
from support.reference import transformers_model

Place = Callable[[str], str]
Change = Callable[[dict[str, torch.Tensor]], object]
EXPERTS = "model.layers.1.mlp.experts"


def test_the_vendors_files_hold_a_layer_in_two_regions(tmp_path: Path) -> None:
    """Offsets and sizes are the published 35B-A3B-FP8's."""
    synthesize("qwen3.6-35b-a3b-fp8", tmp_path / "35b", sparse=True)
    checkpoint = Checkpoint(tmp_path / "35b")
    weight, scale = (checkpoint.regions[f"model.language_model.layers.0.mlp.experts.runs.0.{kind}"]
                     for kind in ("weight", "weight_scale_inv"))  # fmt: skip
    assert (weight.file, weight.offset, weight.nbytes) == ("layers-0.safetensors", 35261512, 805_306_368)
    assert (weight.shape, scale.shape, scale.nbytes) == ((256, 3, 1 << 20), (256, 3, 64), 98_304)
    assert weight.experts[:5] == scale.experts[:5] == (0, 1, 10, 100, 101)
    stem = "model.language_model.layers.0.mlp.experts.10"
    assert weight.members[6:9] == tuple(f"{stem}.{part}_proj.weight" for part in ("down", "gate", "up"))
    ledger = ledger_of(bind(read_spec(checkpoint.folder), checkpoint))
    assert len(checkpoint) == 64_196 == len(ledger.bound) + len(ledger.deferred)
    assert all(name.startswith("model.visual.") for name in ledger.deferred)
    bound = {name for region in checkpoint.regions.values() for name in region.members}
    assert len(bound) == 41 * 1536 and len(checkpoint.regions) == 82
    assert {tuple(ledger.bound[name]) for name in bound if name.startswith("mtp.")} == {("mtp",)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An FP8 checkpoint of 4 layers of 12 experts."""
    sizes, storage = SPARSE_CASES["moe-fp8"]
    folder = tmp_path_factory.mktemp("sound")
    config = causal_lm(text_config(**sizes, vocab=VOCAB, max_position=2048))
    write_checkpoint(config, folder, **storage)
    return Exported(config, folder, folder)


def rewrite(
    sound: Exported, folder: Path, place: Place, change: Callable[[dict[str, torch.Tensor]], object] = len
) -> Path:
    """The checkpoint by the safetensors library, each tensor in the file that `place` gives its name."""
    folder.mkdir()
    (folder / "config.json").write_bytes((sound.checkpoint / "config.json").read_bytes())
    tensors = load_file(sound.checkpoint / "model.safetensors")
    change(tensors)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        files.setdefault(place(name), {})[name] = tensor
    for file, members in files.items():
        save_file(members, folder / file)
    index = {"metadata": {}, "weight_map": {name: place(name) for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def expert_of(name: str) -> int:
    """The expert's number; -1 for what belongs to none of layer 1."""
    return int(name.removeprefix(f"{EXPERTS}.").partition(".")[0]) if name.startswith(f"{EXPERTS}.") else -1


def in_two(moved: Callable[[int], bool]) -> Place:
    return lambda name: "b.safetensors" if moved(expert_of(name)) else "a.safetensors"


@pytest.mark.parametrize(
    ("moved", "runs"),
    [
        (lambda expert: expert > 6, [(0, 1, 2, 3, 4, 5, 6), (10, 11, 7, 8, 9)]),
        (lambda expert: expert == 11, [(0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9), (11,)]),
    ],
    ids=["half", "one"],
)
def test_a_layer_in_two_files_is_bound(
    moved: Callable[[int], bool], runs: list[tuple[int, ...]], sound: Exported, tmp_path: Path
) -> None:
    folder = rewrite(sound, tmp_path / "in", in_two(moved))
    regions = Checkpoint(folder).regions.values()
    assert [r.experts for r in regions if r.name.startswith(EXPERTS) and r.name.endswith(".weight")] == runs
    export_checkpoint(folder, tmp_path / "out", mtp=False)
    backend = OrtBackend(tmp_path / "out")
    ids = random_ids(2, 9)
    logits, _ = call(backend, backend.new_state("model", 2, 16), ids, np.zeros(2, np.int64))
    with torch.no_grad():
        expected = transformers_model(sound)(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(logits - expected).max() <= TOLERANCE


def compressed(tensors: dict[str, torch.Tensor]) -> None:
    """As compressed-tensors names them."""
    for name in [name for name in tensors if name.endswith("_inv")]:
        tensors[name.removesuffix("_inv")] = tensors.pop(name)


def with_config(folder: Path, kind: str) -> Path:
    config = json.loads((folder / "config.json").read_text())
    ignored = [f"re:.*{module}" for module in config["quantization_config"]["modules_to_not_convert"]]
    kinds = {"re:.*mlp.experts.*": kind, "Linear": BLOCK}
    config["quantization_config"] = quantization(kinds) | {"ignore": ignored}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_experts_of_compressed_tensors_are_bound(sound: Exported, tmp_path: Path) -> None:
    folder = with_config(rewrite(sound, tmp_path / "in", together, compressed), BLOCK)
    export_checkpoint(folder, tmp_path / "out", mtp=False)
    backend = OrtBackend(tmp_path / "out")
    ids = random_ids(2, 9)
    logits, _ = call(backend, backend.new_state("model", 2, 16), ids, np.zeros(2, np.int64))
    with torch.no_grad():
        expected = transformers_model(sound)(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(logits - expected).max() <= TOLERANCE


def by_row(tensors: dict[str, torch.Tensor]) -> None:
    compressed(tensors)
    for name in [name for name in tensors if ".experts." in name and name.endswith(".weight")]:
        tensors[f"{name}_scale"] = torch.ones(len(tensors[name]), 1)


def as_they_were(tensors: dict[str, torch.Tensor]) -> None:
    compressed(tensors)
    for name in [name for name in tensors if ".experts." in name and name.endswith(".weight")]:
        tensors[name] = tensors[name].to(torch.bfloat16)
        del tensors[f"{name}_scale"]


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (by_row, CHANNEL, "FP8 with a scale per row"),
        (as_they_were, BLOCK, "stored one by one in BF16"),
        (
            lambda t: (compressed(t), t.pop(f"{EXPERTS}.3.up_proj.weight_scale")),
            BLOCK,
            "3.up_proj.weight_scale' is mis",
        ),
    ],
)
def test_other_experts_of_compressed_tensors_are_refused_by_name(
    change: Change, kind: str, said: str, sound: Exported, tmp_path: Path
) -> None:
    folder = with_config(rewrite(sound, tmp_path / "in", together, change), kind)
    with pytest.raises(CheckpointError, match=said.replace(".", r"\.")):
        ledger_of(bind(read_spec(folder), Checkpoint(folder)))


def alone(moved: str) -> Place:
    return lambda name: "b.safetensors" if name == f"{EXPERTS}.{moved}" else "a.safetensors"


def turned(tensors: dict[str, torch.Tensor]) -> None:
    name = f"{EXPERTS}.4.down_proj.weight"
    tensors[name] = tensors[name].T.contiguous()


def without(name: str) -> Change:
    return lambda tensors: tensors.pop(f"{EXPERTS}.{name}")


def widened(tensors: dict[str, torch.Tensor]) -> None:
    name = f"{EXPERTS}.2.gate_proj.weight"
    tensors[name] = tensors[name].to(torch.bfloat16)


def together(name: str) -> str:
    return "a.safetensors"


# What happened: (the file of each tensor, change to the tensors, words of the message).
REFUSED: dict[str, tuple[Place, Change, list[str]]] = {
    "weight elsewhere": (
        alone("3.down_proj.weight"),
        len,
        ["'model.layers.1.mlp.experts.3' is not in one piece", "down_proj.weight in b.safetensors at"],
    ),
    "scale elsewhere": (
        alone("10.up_proj.weight_scale_inv"),
        len,
        ["experts.10' is not in one piece", "up_proj.weight_scale_inv in b.safetensors at"],
    ),
    "scale missing": (together, without("5.up_proj.weight_scale_inv"), ["experts.5.up_proj.weight_scale_inv'"]),
    "expert in BF16": (together, widened, ["experts.2' is not in one piece", "of one dtype"]),
    "down the other way round": (together, turned, ["experts.4.down_proj.weight'", "[128, 256]", "[256, 128]"]),
    "a file for each expert": (
        lambda name: f"{expert_of(name)}.safetensors",
        len,
        ["'model.layers.1.mlp.experts' lie in 12 pieces", "at most 8"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_layouts_are_refused_by_name(what: str, sound: Exported, tmp_path: Path) -> None:
    place, change, words = REFUSED[what]
    folder = rewrite(sound, tmp_path / "in", place, change)
    with pytest.raises(CheckpointError) as error:
        ledger_of(bind(read_spec(folder), Checkpoint(folder)))
    assert all(word in str(error.value) for word in words), error.value


def test_an_expert_that_the_config_does_not_have(sound: Exported, tmp_path: Path) -> None:
    folder = rewrite(sound, tmp_path / "in", together)
    config = json.loads((folder / "config.json").read_text()) | {"num_experts": 11}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"holds 'model\.layers\.0\.mlp\.experts\.11'"):
        ledger_of(bind(read_spec(folder), Checkpoint(folder)))
