"""transformers' own model on an exported checkpoint: the outside reference of `deltart verify`."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltart.errors import ArtifactError, MissingDependencyError
from deltart.export.checkpoint import Checkpoint
from deltart.export.spec import ModelSpec, read_spec
from deltart.export.structure import settle
from deltart.json_files import read_json
from deltart.manifest import Manifest
from deltart.plugins.fp8_linear.reference import dequantize

MAX_PARAMETERS = 2_000_000_000  # in float32 that is 8 GB


class ReferenceModel:
    """transformers' eager model of an exported checkpoint, in float32.

    Raises:
        MissingDependencyError: transformers is not installed.
        ArtifactError: the model is too large for a float32 copy, or the export changed its RoPE.
    """

    def __init__(self, manifest: Manifest) -> None:
        folder = Path(manifest.checkpoint)
        tensors = Checkpoint(folder)
        count = sum(math.prod(t.shape) for t in tensors.values())
        if count > MAX_PARAMETERS:
            raise ArtifactError(
                f"{count / 1e9:.1f} billion parameters in float32", f"at most {MAX_PARAMETERS / 1e9:.0f}"
            )
        self._model = _load(_text_config(folder, manifest), tensors, settle(read_spec(folder), tensors).spec)

    @torch.no_grad()
    def points(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Token ids [T] to every block's hidden state and the logits, f32 [T, ...] by point."""
        outputs = self._model(torch.from_numpy(ids[None]), output_hidden_states=True, use_cache=False)
        *states, hidden = (h[0].numpy() for h in outputs.hidden_states)
        # transformers norms the last layer's state before it lists it.
        points = {"embed.h": states[0]} | {f"layers.{n}.h": state for n, state in enumerate(states[1:])}
        return points | {"hidden": hidden, "logits": outputs.logits[0].numpy()}

    @torch.no_grad()
    def reply(self, prompt: Sequence[int], stops: Collection[int], limit: int) -> list[int]:
        """At most `limit` greedy tokens after `prompt`, the stop token included."""
        tokens, cache, reply = torch.tensor([list(prompt)]), None, list[int]()
        while len(reply) < limit and not (reply and reply[-1] in stops):
            outputs = self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, tokens = outputs.past_key_values, outputs.logits[:, -1].argmax(-1, keepdim=True)
            reply.append(int(tokens))
        return reply


def _text_config(folder: Path, manifest: Manifest) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    text: dict[str, Any] = config.get("text_config", config)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if (manifest.spec["rope"]["yarn"] is not None) != (rope.get("rope_type") == "yarn"):
        raise ArtifactError("the export stretched the context by YaRN, config.json does not", "the same RoPE in both")
    dropped = ("architectures", "model_type", "quantization_config")
    return {k: v for k, v in text.items() if k not in dropped} | {
        "tie_word_embeddings": manifest.spec["tie_word_embeddings"]
    }


def _load(config: dict[str, Any], tensors: Checkpoint, spec: ModelSpec) -> Any:
    try:
        from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
    except ImportError:
        raise MissingDependencyError(
            "transformers with Qwen3.5 is not installed", "transformers 5.23", "pip install 'transformers>=5.23,<5.24'"
        ) from None
    made = Qwen3_5TextConfig(**config)
    made._attn_implementation = "eager"
    model = Qwen3_5ForCausalLM(made).eval().float()
    wanted = model.state_dict()
    starts = {"model.": spec.text_prefix, "lm_head.": spec.head_prefix}
    names = {
        name: name.replace(start, to, 1) for start, to in starts.items() for name in wanted if name.startswith(start)
    }
    if made.tie_word_embeddings:
        names["lm_head.weight"] = names["model.embed_tokens.weight"]
    model.load_state_dict({name: _float32(tensors, names[name]) for name in wanted})
    return model


def _float32(tensors: Checkpoint, name: str) -> torch.Tensor:
    value = np.asarray(tensors.read(name)).astype(np.float32)
    scale = f"{name}_scale_inv"
    if scale in tensors:
        value = dequantize(value, np.asarray(tensors.read(scale)).astype(np.float32))
    return torch.from_numpy(value)
