"""What E4M3 activations in prefill cost the trained nano, with FP8 weights on both sides: logits and greedy replies.

`quantized` runs every block-FP8 linear of a prefill call as W8A8 and all of decode as W8A16: what
`deltart build --prefill-activations fp8` builds.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from deltart.calib.pipeline import calibrate
from deltart.export.pipeline import export_checkpoint
from deltart.plugins.tolerance import relative_rms
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.verify.fp8_prefill import Fp8PrefillBackend
from tools.nano import evaluate, heldout, reference

NANO = Path(__file__).resolve().parents[2] / "tools" / "nano" / "checkpoint"
QUESTIONS = 60


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> tuple[OrtBackend, Fp8PrefillBackend]:
    """Nano in block-FP8: activations as they are, and E4M3 in prefill."""
    folder = tmp_path_factory.mktemp("nano")
    calibrate(NANO, folder / "fp8", method="absmax")
    export_checkpoint(folder / "fp8", folder / "artifact")
    return OrtBackend(folder / "artifact"), Fp8PrefillBackend(folder / "artifact")


@pytest.fixture(scope="module")
def questions() -> list[heldout.Question]:
    return random.Random(8).sample(heldout.read(), QUESTIONS)


def logits(backend: OrtBackend | Fp8PrefillBackend, ids: list[int]) -> np.ndarray:
    """Logits of every position of one prefill call, f32 [T, V]."""
    inputs = text_inputs(np.array([ids]), np.zeros(1, np.int32), logit_index=np.arange(len(ids))[None])
    (found,) = backend.run("model", backend.new_state("model", 1, len(ids)), inputs, ["logits"])
    rows: np.ndarray = found[0]
    return rows


def answers(
    backend: OrtBackend | Fp8PrefillBackend, prompts: list[str]
) -> tuple[list[evaluate.Reply], list[list[int]]]:
    tokenizer = Tokenizer.from_folder(NANO)
    found = [greedy(backend, tokenizer.encode(prompt), tokenizer.eos_ids) for prompt in prompts]
    return [evaluate.Reply(tokenizer.decode(ids), ids[-1] in tokenizer.eos_ids) for ids in found], found


def greedy(backend: OrtBackend | Fp8PrefillBackend, ids: list[int], ends: Collection[int]) -> list[int]:
    """The greedy reply to `ids`, its prompt in one call; the token that ends it is the last."""
    state, fed, reply = backend.new_state("model", 1, len(ids) + evaluate.MAX_NEW_TOKENS), ids, list[int]()
    past = 0
    while len(reply) < evaluate.MAX_NEW_TOKENS and not (reply and reply[-1] in ends):
        inputs = text_inputs(np.array([fed]), np.array([past], np.int32))
        (found,) = backend.run("model", state, inputs, ["logits"])
        past += len(fed)
        fed = [int(found[0, -1].argmax())]
        reply += fed
    return reply


@pytest.mark.slow
def test_cost_of_quantized_activations(
    backends: tuple[OrtBackend, Fp8PrefillBackend], questions: list[heldout.Question]
) -> None:
    exact, quantized = backends
    _, tokenizer = reference.load(NANO)
    prompts = evaluate.prompts(tokenizer, questions)
    right, expected = answers(exact, prompts)
    texts, found = answers(quantized, prompts)
    ids = [tokenizer.encode(prompt) + reply for prompt, reply in zip(prompts, expected, strict=True)]
    whole, rounded = (np.concatenate([logits(b, row) for row in ids]) for b in backends)
    error, agreement = relative_rms(rounded, whole), float((rounded.argmax(-1) == whole.argmax(-1)).mean())
    same = sum(a == b for a, b in zip(found, expected, strict=True)) / len(prompts)
    scores = [evaluate.overall(evaluate.score(questions, texts)).share for texts in (right, texts)]
    print(f"logits {error:.2e}, argmax {agreement:.4f}, replies {same:.4f}, exact {scores[0]:.4f} and {scores[1]:.4f}")
    assert 1e-4 < error < 0.1  # quantized at all, and not broken
    assert agreement > 0.97 and same > 0.9 and scores[1] > scores[0] - 0.05
