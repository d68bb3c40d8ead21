"""What a merged checkpoint answers, exported, is what transformers answers with the adapter beside its weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from deltart.cli import main
from deltart.export.merge.pipeline import merge
from deltart.export.pipeline import export_checkpoint
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from support.adapters import PREFIX, WEIGHTS, Base, linears, write_adapter
from support.cases import VOCAB, Exported
from support.reference import transformers_model

LENGTH = 16


def with_lora(model: PreTrainedModel, adapter: Path, modules: list[str], scaling: float) -> PreTrainedModel:
    """x W^T + s x A^T B^T in every module, its weights as they are."""
    tensors = load_file(adapter / WEIGHTS)

    def hook(name: str) -> None:
        a, b = (tensors[f"{PREFIX}{name}.lora_{part}.weight"] for part in "AB")

        def add(_: nn.Module, given: tuple[torch.Tensor], result: torch.Tensor) -> torch.Tensor:
            return result + scaling * (given[0] @ a.T @ b.T)

        model.get_submodule(name).register_forward_hook(add)

    for name in modules:
        hook(name)
    return model


@pytest.mark.slow
def test_plans_of_the_base_serve_it(base: Base, adapter: Path, tmp_path: Path) -> None:
    """They hold no weights, and are named by what they depend on."""
    merge(base("BF16"), adapter, tmp_path / "merged")
    plans = []
    for checkpoint in (base("BF16"), tmp_path / "merged"):
        artifact = tmp_path / f"of-{checkpoint.name}"
        export_checkpoint(checkpoint, artifact)
        assert main(["build", str(artifact), "--flavour", "native", "--cache", str(tmp_path / checkpoint.name)]) == 0
        plans.append({path.name: path.read_bytes() for path in artifact.rglob("*.plan")})
    assert len(plans[0]) == 6 and plans[0] == plans[1]


def test_exported(base: Base, tmp_path: Path) -> None:
    modules = linears(base("F32"))
    adapter = write_adapter(tmp_path / "adapter", base("F32"), modules, size=0.03)
    merge(base("F32"), adapter, tmp_path / "merged")
    export_checkpoint(tmp_path / "merged", tmp_path / "artifact", mtp=False)
    config = json.loads((base("F32") / "config.json").read_text())
    plain = transformers_model(Exported(config, base("F32"), tmp_path))
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
    backend = OrtBackend(tmp_path / "artifact")
    everywhere = np.tile(np.arange(LENGTH), (2, 1))
    inputs = text_inputs(ids, past_len=np.zeros(2, np.int32), n_tokens=None, logit_index=everywhere)
    (logits,) = backend.run("model", backend.new_state("model", 2, 64), inputs, ["logits"])
    with torch.no_grad():
        before = plain(torch.from_numpy(ids)).logits.numpy()
        expected = with_lora(plain, adapter, modules, 2)(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(logits - expected).max() <= 1e-5
    assert np.abs(before - expected).max() > 0.01
