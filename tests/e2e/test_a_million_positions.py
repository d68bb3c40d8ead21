"""YaRN at the far end: tokens after a million entries of the cache, beside transformers with the same cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltart.export.pipeline import export_checkpoint
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from support.cases import Exported
from support.reference import transformers_model

HEAD, ATTENTION = 64, 3  # width of a head; the layer that attends
CONTEXT, NEAR, FAR = 1_010_000, 5, 1_000_003
SIZES = {
    "hidden": 128,
    "ffn": 256,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "k_heads": 1,
    "v_heads": 2,
    "head_dim": HEAD,
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Stretched fourfold, as the vendor says how to serve 1,010,000 tokens."""
    folder = tmp_path_factory.mktemp("far")
    config = causal_lm(text_config(**SIZES, vocab=512, max_position=4 * 262_144, yarn=4.0, mtp=False))
    write_checkpoint(config, folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "artifact", max_context=CONTEXT)
    return Exported(config, folder / "checkpoint", folder / "artifact")


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [0, 3], ids=["one token", "four tokens"])
def test_logits_after_a_million_entries(drafts: int, case: Exported) -> None:
    """The cache holds prompt tokens, then random entries; 258 MB of keys."""
    rng = np.random.default_rng(5)
    prompt, ids = rng.integers(0, 512, NEAR), rng.integers(0, 512, drafts + 1)
    filled = rng.standard_normal((2, SIZES["kv_heads"], FAR - NEAR, HEAD), np.float32)
    filled[0] *= 8  # so that a query finds few of the million

    buffers = OrtBackend(case.artifact, threads=2)._buffers("model", 1, CONTEXT)
    buffers.run((0, 1), text_inputs(prompt[None], np.array([0], np.int32)), ["logits", "hidden"])
    for name, rows in zip(buffers.caches, filled, strict=True):
        buffers.write_cache(name, 0, NEAR, rows)
    index = np.arange(len(ids))[None]

    def logits(rope_shift: int) -> np.ndarray:
        past, shift = np.array([FAR], np.int32), np.array([rope_shift])
        inputs = text_inputs(ids[None], past, np.array([len(ids)], np.int32), index, np.array([0], np.int32), shift)
        return buffers.run((0, 1), inputs, ["logits", "hidden"])[0].copy()  # and commit no token

    found, beside = logits(0), logits(1)

    with torch.no_grad():
        model = transformers_model(case)
        cache = model(torch.tensor(prompt[None]), use_cache=True).past_key_values
        layer = cache.layers[ATTENTION]
        layer.keys, layer.values = (
            torch.cat([near, torch.from_numpy(rows[None])], 2)
            for near, rows in zip((layer.keys, layer.values), filled, strict=True)
        )
        positions = torch.arange(FAR, FAR + len(ids))[None]
        expected = model(torch.tensor(ids[None]), past_key_values=cache, position_ids=positions, use_cache=True).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert np.abs(beside - found).max() > 1e-2, "a position further on must show"
