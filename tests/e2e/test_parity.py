"""Exported graphs against transformers on random models: logits, greedy tokens, splits, ragged batches, MTP."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltart.runtime.backends.inputs import mtp_inputs, text_inputs
from deltart.runtime.backends.ort import OrtBackend, OrtState
from support.cases import CASES, VOCAB, Export
from support.reference import MtpReference, transformers_model

TOLERANCE = 1e-4


def call(
    backend: OrtBackend,
    state: OrtState,
    ids: np.ndarray,
    past: np.ndarray,
    n_tokens: np.ndarray | None = None,
    graph: str = "model",
    **extra: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits at every token, and hidden states."""
    everywhere = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    counts = None if n_tokens is None else n_tokens.astype(np.int32)
    make = text_inputs if graph == "model" else mtp_inputs
    inputs = make(ids, past_len=past.astype(np.int32), n_tokens=counts, logit_index=everywhere, **extra)
    logits, hidden = backend.run(graph, state, inputs, ["logits", "hidden"])
    return logits, hidden


def random_ids(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length))


@pytest.mark.parametrize("target", ["portable", "ort"])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, target: str, exported: Export) -> None:
    made = exported(case)
    backend, model = OrtBackend(made.artifact, target), transformers_model(made)
    for length in (1, 7, 63, 65, 100):
        ids = random_ids(2, length, seed=length)
        logits, _ = call(backend, backend.new_state("model", 2, 128), ids, np.zeros(2, np.int64))
        with torch.no_grad():
            expected = model(torch.from_numpy(ids)).logits.numpy()
        assert np.abs(logits - expected).max() <= TOLERANCE


@pytest.mark.parametrize("case", ["heads-1-3", "heads-2-2", "yarn", "fp8"])
def test_greedy_tokens_equal_transformers(case: str, exported: Export) -> None:
    made = exported(case)
    backend, model = OrtBackend(made.artifact), transformers_model(made)
    prompt = random_ids(1, 13)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        generated = model.generate(torch.from_numpy(prompt), max_new_tokens=64, do_sample=False, pad_token_id=0)
    expected = generated[0, 13:].tolist()
    state, tokens, ids, past = backend.new_state("model", 1, 80), [], prompt, 0
    for _ in range(64):
        logits, _ = call(backend, state, ids, np.array([past]))
        past += ids.shape[1]
        tokens.append(int(logits[0, -1].argmax()))
        ids = np.array([[tokens[-1]]])
    assert tokens == expected


@pytest.mark.parametrize("case", ["heads-1-3", "fp8"])
@pytest.mark.parametrize("split", range(1, 12))
def test_prefill_equals_any_split(case: str, split: int, exported: Export) -> None:
    backend = OrtBackend(exported(case).artifact)
    ids = random_ids(2, 12)
    whole, _ = call(backend, backend.new_state("model", 2, 16), ids, np.zeros(2, np.int64))
    state = backend.new_state("model", 2, 16)
    first, _ = call(backend, state, ids[:, :split], np.zeros(2, np.int64))
    second, _ = call(backend, state, ids[:, split:], np.full(2, split))
    assert np.abs(np.concatenate([first, second], axis=1) - whole).max() <= TOLERANCE


@pytest.mark.parametrize("target", ["portable", "ort"])
def test_ragged_batch_equals_rows_alone(target: str, exported: Export) -> None:
    backend = OrtBackend(exported("heads-1-3").artifact, target)
    counts = np.array([[9, 4], [0, 3], [2, 0], [5, 5]])  # tokens of each row in two ragged calls
    ids = [random_ids(4, 9, seed=1), random_ids(4, 5, seed=2)]
    state, past, batched = backend.new_state("model", 4, 24), np.zeros(4, np.int64), []
    for step, tokens in enumerate(ids):
        logits, _ = call(backend, state, tokens, past, counts[:, step])
        batched.append(logits)
        past = past + counts[:, step]
    for row in range(4):
        alone, done = backend.new_state("model", 1, 24), 0
        for step, tokens in enumerate(ids):
            count = counts[row, step]
            if count:
                logits, _ = call(backend, alone, tokens[row : row + 1, :count], np.array([done]))
                assert np.abs(logits[0] - batched[step][row, :count]).max() <= TOLERANCE
                done += count


@pytest.mark.parametrize("case", ["heads-1-3", "tied", "fp8-f32-scales", "moe-bf16", "moe-fp8", "moe-fp8-partial"])
def test_mtp_equals_formula(case: str, exported: Export) -> None:
    """With sparse experts the MTP layer has a router and experts of its own."""
    made = exported(case)
    backend, reference = OrtBackend(made.artifact), MtpReference(made)
    ids = random_ids(2, 17)
    _, hidden = call(backend, backend.new_state("model", 2, 32), ids, np.zeros(2, np.int64))
    state = backend.new_state("mtp", 2, 32)
    drafts = []
    for begin, end in ((0, 10), (10, 16)):  # the head keeps its own KV across calls
        part = np.ascontiguousarray(hidden[:, begin:end])
        logits, _ = call(
            backend, state, ids[:, begin + 1 : end + 1], np.full(2, begin), graph="mtp", previous_hidden=part
        )
        drafts.append(logits)
    expected = reference(torch.from_numpy(ids[:, 1:]), torch.from_numpy(hidden[:, :16])).numpy()
    assert np.abs(np.concatenate(drafts, axis=1) - expected).max() <= TOLERANCE


def test_weights_converted_at_use_give_the_same_logits(exported: Export) -> None:
    ids = random_ids(1, 9)
    folded, mapped = (
        call(backend, backend.new_state("model", 1, 16), ids, np.zeros(1, np.int64))[0]
        for backend in (OrtBackend(exported("fp8").artifact, weights=mode) for mode in ("folded", "mapped"))
    )
    assert np.abs(folded - mapped).max() <= TOLERANCE
