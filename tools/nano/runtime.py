"""Nano through DeltaRT: greedy replies and MTP acceptance of an exported artifact on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deltart.runtime.backends.base import Backend
from deltart.runtime.backends.inputs import mtp_inputs, text_inputs
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from tools.nano.evaluate import MAX_NEW_TOKENS, Reply
from tools.nano.reference import Acceptance, accepted

GREEDY = SamplingParams(temperature=0, max_new_tokens=MAX_NEW_TOKENS)


def open_artifact(artifact: Path) -> Engine:
    """The engine of an exported nano."""
    return Engine.open(artifact, options=EngineOptions(slots=1, cache_bytes=0))


def replies(engine: Engine, prompts: Sequence[str]) -> tuple[list[Reply], list[list[int]], list[list[int]]]:
    """(replies, prompts as tokens, replies as tokens), as tools.nano.reference.replies gives them."""
    texts, answered = [], []
    for prompt in prompts:
        completion = engine.generate(prompt, GREEDY)
        texts.append(Reply(completion.text, completion.finish_reason == "stop"))
        answered.append(completion.drawn)
    return texts, [engine.tokenizer.encode(prompt) for prompt in prompts], answered


def acceptance(engine: Engine, asked: Sequence[list[int]], answered: Sequence[list[int]]) -> Acceptance:
    """How many drafts of the exported MTP head k=1 speculation would accept on the model's own greedy replies."""
    total = Acceptance(0, 0)
    for prompt, reply in zip(asked, answered, strict=True):
        right = _drafted(engine.backend, prompt + reply)  # entry i is about token i + 2
        total = total.plus(accepted(right.tolist(), len(prompt), len(reply)))
    return total


def _drafted(backend: Backend, tokens: list[int]) -> np.ndarray:
    ids, start = np.array([tokens], np.int64), np.zeros(1, np.int32)
    state = backend.new_state("model", 1, len(tokens))
    (hidden,) = backend.run("model", state, text_inputs(ids, start), ["hidden"])
    following = np.ascontiguousarray(ids[:, 1:])
    everywhere = np.arange(following.shape[1])[None]
    inputs = mtp_inputs(following, np.ascontiguousarray(hidden[:, :-1]), start, logit_index=everywhere)
    (logits,) = backend.run("mtp", backend.new_state("mtp", 1, len(tokens)), inputs, ["logits"])
    right: np.ndarray = logits[0, :-1].argmax(-1) == ids[0, 2:]
    return right
