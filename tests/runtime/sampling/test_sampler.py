"""Sampling against transformers' logits processors, float64 formulas and the chi-square of its draws."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.generation import logits_process as reference

from deltart.errors import GenerationError
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sampling.sampler import Floats, Sampler

V = 1000


def _logits(seed: int, size: int = V) -> Floats:
    return (np.random.default_rng(seed).standard_normal(size) * 3).astype(np.float32)


def _full(sampler: Sampler, logits: Floats) -> npt.NDArray[np.float64]:
    """Probabilities [V] of a sampler."""
    ids, probs = sampler.distribution(logits)
    full = np.zeros(logits.shape[0])
    full[ids] = probs
    return full


def _transformers(params: SamplingParams, prompt: list[int], logits: Floats) -> npt.NDArray[np.float64]:
    """Probabilities [V] of transformers' processors in the order of GenerationMixin, in float64."""
    steps = [
        reference.RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)),
        reference.TemperatureLogitsWarper(float(params.temperature)),
    ]
    if params.top_k:
        steps.append(reference.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(reference.TopPLogitsWarper(params.top_p))
    steps.append(reference.MinPLogitsWarper(params.min_p))
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    scores = reference.LogitsProcessorList(steps)(torch.LongTensor([prompt]), scores)
    probs: npt.NDArray[np.float64] = scores.softmax(-1)[0].numpy()
    return probs


def _chi_square_bound(degrees: int) -> float:
    """Upper 0.1% point, by Wilson and Hilferty."""
    return degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("case", range(60))
def test_distribution_is_that_of_transformers(case: int) -> None:
    draw = np.random.default_rng(case)
    params = SamplingParams(
        temperature=float(draw.choice([0.3, 0.7, 1.0, 1.6])),
        top_k=int(draw.choice([0, 1, 5, 20, 200, 5000])),
        top_p=float(draw.choice([0.1, 0.5, 0.8, 0.95, 1.0])),
        min_p=float(draw.choice([0.0, 0.01, 0.2, 1.0])),
        repetition_penalty=float(draw.choice([0.8, 1.0, 1.3])),
    )
    prompt = draw.integers(0, V, 100).tolist()
    logits = _logits(case)
    ours = _full(Sampler(params, prompt, V), logits)
    theirs = _transformers(params, prompt, logits)
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)


@pytest.mark.parametrize("case", range(40))
def test_bias_penalty_and_minimum_are_those_of_transformers(case: int) -> None:
    """Bias, repetition penalty, minimum length and allowed tokens, in the order of GenerationMixin."""
    draw = np.random.default_rng(case)
    bias = {int(i): float(draw.choice([-100, -3.5, 0, 2, 100])) for i in draw.integers(0, V, draw.integers(0, 30))}
    ends = [int(i) for i in draw.choice(V, 3, replace=False)]
    made = draw.integers(0, V, draw.integers(0, 6)).tolist()
    params = SamplingParams(
        temperature=float(draw.choice([0.7, 1.0])),
        repetition_penalty=float(draw.choice([0.8, 1.0, 1.3])),
        logit_bias=bias,
        min_tokens=int(draw.integers(0, 6)),
        stop_token_ids=tuple(ends[:1]),
    )
    allowed = draw.integers(-(2**31), 2**31, 32, dtype=np.int32) if case % 2 else None
    prompt, logits = draw.integers(0, V, 50).tolist(), _logits(case)
    if case % 5 == 0:
        logits[ends] = 30
    sampler = Sampler(params, prompt, V, ends[1:])
    for token in made:
        sampler.accept(token)
    steps: list[Any] = [
        reference.RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)),
        reference.MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, ends),
    ]
    if bias:
        steps.insert(0, reference.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}))
    if allowed is not None:
        words = allowed.view(np.uint32)
        ids = [i for i in range(V) if words[i // 32] >> (i % 32) & 1]
        steps.append(reference.PrefixConstrainedLogitsProcessor(lambda batch, sent: ids, 1))
    steps.append(reference.TemperatureLogitsWarper(float(params.temperature)))
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    theirs = reference.LogitsProcessorList(steps)(torch.LongTensor([prompt + made]), scores).softmax(-1)[0].numpy()
    chosen, probs = sampler.distribution(logits, allowed)
    ours = np.zeros(V)
    ours[chosen] = probs
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)  # their bias is float32 in float64 scores


def test_a_bias_of_100_is_an_exclusive_choice_and_of_minus_100_a_ban() -> None:
    """OpenAI's words for the ends of the range."""
    logits = _logits(9)
    best = int(logits.argmax())
    assert Sampler(SamplingParams(temperature=0, logit_bias={3: 100}), [], V).sample(logits) == 3
    banned = Sampler(SamplingParams(seed=1, logit_bias={best: -100.0}), [], V)
    assert all(banned.sample(logits) != best for _ in range(200))


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_ends_are_held_back_until_min_tokens_others_were_drawn(ignore_eos: bool) -> None:
    logits = np.zeros(V, np.float32)
    logits[[5, 6]] = 50
    logits[6] += 1
    params = SamplingParams(temperature=0, min_tokens=3, stop_token_ids=(6,), ignore_eos=ignore_eos)
    sampler = Sampler(params, [], V, {5})
    tokens = [sampler.sample(logits) for _ in range(4)]
    assert tokens == ([5, 5, 5, 6] if ignore_eos else [0, 0, 0, 6])


def test_a_complete_structure_ends_before_min_tokens() -> None:
    params = SamplingParams(temperature=0, min_tokens=3)
    only_end = np.zeros(32, np.int32)
    only_end[0] = 1 << 5
    assert Sampler(params, [], V, {5}).sample(_logits(1), only_end) == 5


def test_biased_parameters_are_values() -> None:
    given = {3: 1.0}
    params = SamplingParams(logit_bias=given)
    given[4] = 2.0
    assert params.logit_bias == {3: 1.0}
    assert hash(params) == hash(SamplingParams(logit_bias={3: 1.0}))
    assert params != SamplingParams(logit_bias={3: 2.0})


def test_top_k_keeps_ties_as_transformers_does() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0], dtype=np.float32)
    params = SamplingParams(top_k=2)
    ours = _full(Sampler(params, [], 6), logits)
    np.testing.assert_allclose(ours, _transformers(params, [0], logits), rtol=1e-6)
    assert np.count_nonzero(ours) == 4


def test_repetition_counts_prompt_and_generated_but_presence_and_frequency_only_generated() -> None:
    params = SamplingParams(presence_penalty=1.5, frequency_penalty=0.25, repetition_penalty=1.2)
    prompt, generated = [1, 2, 2, 3], [3, 4, 4, 4]
    sampler = Sampler(params, prompt, V)
    for token in generated:
        sampler.accept(token)
    logits = _logits(7)
    scores = logits.astype(np.float64)
    for token in {*prompt, *generated}:
        scores[token] = scores[token] / 1.2 if scores[token] > 0 else scores[token] * 1.2
    for token, count in Counter(generated).items():
        scores[token] -= 1.5 + 0.25 * count
    weights = np.exp(scores - scores.max())
    np.testing.assert_allclose(_full(sampler, logits), weights / weights.sum(), rtol=2e-6)


@pytest.mark.parametrize("vary", ["step", "seed"])
def test_draws_follow_the_distribution(vary: str) -> None:
    size, draws = 40, 20_000
    logits = _logits(3, size) / np.float32(4)
    exact = np.exp(logits.astype(np.float64) / 0.8)
    expected = draws * exact / exact.sum()
    counts = np.zeros(size)
    if vary == "step":
        sampler = Sampler(SamplingParams(temperature=0.8, seed=11), [], size)
        for _ in range(draws):
            counts[sampler.sample(logits)] += 1
    else:
        for seed in range(draws):
            counts[Sampler(SamplingParams(temperature=0.8, seed=seed), [], size).sample(logits)] += 1
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < _chi_square_bound(size - 1)


def test_consecutive_draws_are_independent() -> None:
    size, draws = 5, 20_000
    sampler = Sampler(SamplingParams(seed=5), [], size)
    flat = np.zeros(size, dtype=np.float32)
    tokens = [sampler.sample(flat) for _ in range(draws)]
    pairs = np.zeros((size, size))
    np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
    expected = (draws - 1) / size**2
    assert ((pairs - expected) ** 2 / expected).sum() < _chi_square_bound(size**2 - 1)


def test_a_draw_depends_on_seed_and_step_only() -> None:
    params = SamplingParams(seed=42)
    first = Sampler(params, [], V)
    tokens = [first.sample(_logits(step)) for step in range(20)]
    replay = Sampler(params, [], V)
    for step in range(10):
        replay.accept(tokens[step])
    assert replay.choose(_logits(10)) == replay.choose(_logits(10)) == tokens[10]
    again = Sampler(params, [], V)
    assert [again.sample(_logits(step)) for step in range(20)] == tokens
    for seed in (43, 42 + 2**32, 42 + 2**63, 2**64 - 1):
        other = Sampler(SamplingParams(seed=seed), [], V)
        assert [other.sample(_logits(step)) for step in range(20)] != tokens


def test_a_drawn_seed_can_be_used_again() -> None:
    free = Sampler(SamplingParams(), [], V)
    tokens = [free.sample(_logits(step)) for step in range(10)]
    fixed = Sampler(SamplingParams(seed=free.seed), [], V)
    assert [fixed.sample(_logits(step)) for step in range(10)] == tokens
    assert free.seed != Sampler(SamplingParams(), [], V).seed


def test_greedy_takes_the_largest_and_the_lowest_of_ties() -> None:
    sampler = Sampler(SamplingParams(temperature=0), [], V)
    logits = _logits(1)
    assert sampler.sample(logits) == max(range(V), key=lambda i: logits[i])
    logits[[900, 17, 500]] = 50
    assert sampler.sample(logits) == 17


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_rows_are_never_chosen(temperature: float) -> None:
    logits = _logits(2)
    logits[900:] = [1000.0] * 50 + [np.nan] * 50
    sampler = Sampler(SamplingParams(temperature=temperature, seed=1), [], 900)
    assert all(sampler.sample(logits) < 900 for _ in range(100))
    assert max(sampler.distribution(logits)[0]) < 900


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(top_k=5, seed=1), SamplingParams(seed=1)]
)
def test_only_allowed_tokens_are_chosen(params: SamplingParams) -> None:
    allowed_ids = {0, 31, 32, 999}
    words = np.zeros(32, dtype=np.uint32)
    for token in allowed_ids:
        words[token // 32] |= np.uint32(1 << (token % 32))
    mask = words.view(np.int32)
    sampler = Sampler(params, [], V)
    logits = _logits(4) / np.float32(6)
    chosen = {sampler.sample(logits, mask) for _ in range(300)}
    assert chosen == ({max(allowed_ids, key=lambda i: logits[i])} if params.greedy else allowed_ids)
    with pytest.raises(GenerationError, match="grammar"):
        sampler.sample(logits, np.zeros(32, dtype=np.int32))


def test_a_token_of_no_probability_is_not_drawn_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "_uniform", lambda self: 0.0)
    mask = np.array([0b11100], dtype=np.int32)
    assert Sampler(SamplingParams(), [], 5).sample(np.zeros(5, dtype=np.float32), mask) == 2


def test_logits_are_left_as_they_are() -> None:
    logits = _logits(5)
    before = logits.copy()
    params = SamplingParams(repetition_penalty=1.5, presence_penalty=1, top_k=3, top_p=0.5, min_p=0.1)
    Sampler(params, [1, 2, 3], V).sample(logits, np.full(32, -1, dtype=np.int32))
    np.testing.assert_array_equal(logits, before)


def test_logprob_is_that_of_the_model_over_real_rows() -> None:
    logits = _logits(6)
    sampler = Sampler(SamplingParams(temperature=0.1, presence_penalty=2), [], 950)
    exact = torch.from_numpy(logits[:950].astype(np.float64)).log_softmax(-1)
    for token in (0, 17, int(logits[:950].argmax())):
        assert sampler.logprob(logits, token) == pytest.approx(float(exact[token]), abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_without_a_finite_maximum_are_refused(bad: float) -> None:
    logits = _logits(8)
    logits[77] = bad
    for params in (SamplingParams(temperature=0), SamplingParams(top_k=20)):
        with pytest.raises(GenerationError, match="token 77"):
            Sampler(params, [], V).sample(logits)


@pytest.mark.parametrize("shape", [(V - 1,), (1, V)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GenerationError, match="shape"):
        Sampler(SamplingParams(), [], V).sample(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("prompt", [[-1], [3, V]])
def test_prompt_ids_outside_the_vocabulary_are_refused(prompt: list[int]) -> None:
    with pytest.raises(GenerationError, match="prompt token ids"):
        Sampler(SamplingParams(), prompt, V)


@pytest.mark.parametrize("given", [{"logit_bias": {V: 1.0}}, {"stop_token_ids": (3, V)}])
def test_named_ids_outside_the_vocabulary_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match=f"token {V}"):
        Sampler(SamplingParams(**given), [], V)


def _best_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(30):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def test_a_token_of_the_real_vocabulary_takes_little_time() -> None:
    logits = _logits(0, 248320)
    greedy = Sampler(SamplingParams(temperature=0), [], 248077)
    params = SamplingParams(top_k=20, top_p=0.95, min_p=0.01, presence_penalty=1.5, repetition_penalty=1.1)
    sampled = Sampler(params, range(30_000), 248077)
    assert _best_ms(lambda: greedy.choose(logits)) < 0.3
    assert _best_ms(lambda: sampled.choose(logits)) < 2
    half = np.random.default_rng(0).integers(-(2**31), 2**31, 248320 // 32, dtype=np.int32)
    for mask in (half, np.eye(1, half.size, 5, np.int32)[0], np.full(half.size, -1, np.int32)):
        assert _best_ms(lambda mask=mask: greedy.choose(logits, mask)) < 0.4
