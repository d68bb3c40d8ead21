"""Sparse models against transformers: logits, greedy tokens, splits, ragged batches, MTP, in either storage format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e2e.test_parity import TOLERANCE, call, random_ids

from deltart.runtime.backends.ort import OrtBackend
from support.cases import SPARSE_CASES, Export
from support.reference import transformers_model

FAST = ("moe-bf16", "moe-fp8", "moe-fp8-partial")


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in SPARSE_CASES]
)
def test_logits_equal_transformers(case: str, exported: Export) -> None:
    made = exported(case)
    model = transformers_model(made)
    backends = [OrtBackend(made.artifact, target) for target in ("portable", "ort")]
    for length in (1, 7, 65):
        ids = random_ids(2, length, seed=length)
        with torch.no_grad():
            expected = model(torch.from_numpy(ids)).logits.numpy()
        for backend in backends:
            logits, _ = call(backend, backend.new_state("model", 2, 128), ids, np.zeros(2, np.int64))
            assert np.abs(logits - expected).max() <= TOLERANCE, backend.target


@pytest.mark.parametrize("case", ["moe-bf16", "moe-fp8"])
def test_greedy_tokens_equal_transformers(case: str, exported: Export) -> None:
    made = exported(case)
    backend, model = OrtBackend(made.artifact), transformers_model(made)
    prompt = random_ids(1, 13)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        generated = model.generate(torch.from_numpy(prompt), max_new_tokens=64, do_sample=False, pad_token_id=0)
    state, tokens, ids, past = backend.new_state("model", 1, 80), [], prompt, 0
    for _ in range(64):
        logits, _ = call(backend, state, ids, np.array([past]))
        past += ids.shape[1]
        tokens.append(int(logits[0, -1].argmax()))
        ids = np.array([[tokens[-1]]])
    assert tokens == generated[0, 13:].tolist()


@pytest.mark.parametrize("case", ["moe-bf16", "moe-fp8-partial"])
def test_prefill_equals_any_split(case: str, exported: Export) -> None:
    backend = OrtBackend(exported(case).artifact)
    ids = random_ids(2, 12)
    whole, _ = call(backend, backend.new_state("model", 2, 16), ids, np.zeros(2, np.int64))
    for split in range(1, 12):
        state = backend.new_state("model", 2, 16)
        first, _ = call(backend, state, ids[:, :split], np.zeros(2, np.int64))
        second, _ = call(backend, state, ids[:, split:], np.full(2, split))
        assert np.abs(np.concatenate([first, second], axis=1) - whole).max() <= TOLERANCE


@pytest.mark.parametrize("case", ["moe-bf16", "moe-fp8"])
def test_ragged_batch_equals_rows_alone(case: str, exported: Export) -> None:
    backend = OrtBackend(exported(case).artifact)
    counts = np.array([9, 0, 2, 5])
    ids = random_ids(4, 9, seed=1)
    batched, _ = call(backend, backend.new_state("model", 4, 16), ids, np.zeros(4, np.int64), counts)
    for row, count in enumerate(counts):
        if count:
            state = backend.new_state("model", 1, 16)
            alone, _ = call(backend, state, ids[row : row + 1, :count], np.zeros(1, np.int64))
            assert np.abs(alone[0] - batched[row, :count]).max() <= TOLERANCE
