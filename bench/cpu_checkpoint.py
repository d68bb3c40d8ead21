"""The checkpoint that the CPU comparison runs: tiny, random, in the vendor's layout, with a throwaway tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from deltart.export.synthetic.presets import conditional_generation, text_config
from deltart.export.synthetic.write import write_checkpoint

VOCAB = 4096


def write(folder: Path) -> None:
    """Eight layers of 512: the size at which a peer's published figures were taken."""
    text = text_config(
        hidden=512, ffn=1536, layers=8, heads=4, kv_heads=1, k_heads=4, v_heads=8, vocab=VOCAB, max_position=8192
    )
    text["eos_token_id"] = VOCAB - 1
    vision = {
        "model_type": "qwen3_5", "depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 1,
        "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "num_position_embeddings": 64, "out_hidden_size": 512, "hidden_act": "gelu_pytorch_tanh",
    }  # fmt: skip
    write_checkpoint(conditional_generation(text, vision), folder)
    vocabulary = {f"w{n}": n for n in range(VOCAB)}
    Tokenizer(WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": f"w{VOCAB - 1}"})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": VOCAB - 1}))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
