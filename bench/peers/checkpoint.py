"""The checkpoints that peers are compared on: random, in the vendor's layout, with a throwaway tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from deltart.export.synthetic.presets import conditional_generation, text_config
from deltart.export.synthetic.write import write_checkpoint

CONTEXT = 8192  # tokens; more where a longer prompt is asked for
END = "<|endoftext|>"
# The tiny one is of the size at which a peer's published figures were taken; the other has half a billion parameters.
_FIELDS = ("hidden", "ffn", "layers", "heads", "kv_heads", "k_heads", "v_heads", "vocab")
SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": dict(zip(_FIELDS, (512, 1536, 8, 4, 1, 4, 8, 4096), strict=True)),
    "half": dict(zip(_FIELDS, (1024, 3584, 24, 8, 2, 8, 16, 65536), strict=True)),
}


def write(folder: Path, size: str, context: int = CONTEXT) -> None:
    """Write the checkpoint of a size, for sequences of `context` tokens, to the new folder `folder`.

    The weights are the same for every context.
    """
    sizes: Any = SIZES[size]
    vocab = sizes["vocab"]
    text = text_config(**sizes, max_position=context)
    text["eos_token_id"] = vocab - 1
    vision = {
        "model_type": "qwen3_5", "depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 1,
        "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "num_position_embeddings": 64, "out_hidden_size": sizes["hidden"], "hidden_act": "gelu_pytorch_tanh",
    }  # fmt: skip
    write_checkpoint(conditional_generation(text, vision), folder)
    _write_tokenizer(folder, vocab)


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """A byte-level BPE of so many tokens: the bytes, pairs of them in order, and the end of a text."""
    letters = sorted(ByteLevel.alphabet())
    pairs = list(islice(product(letters, letters), vocab - len(letters) - 1))
    names = [*letters, *(a + b for a, b in pairs)]
    core = Tokenizer(BPE({name: n for n, name in enumerate(names)}, pairs))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    core.add_special_tokens([END])
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": vocab - 1}))
