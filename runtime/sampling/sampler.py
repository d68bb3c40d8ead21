"""From one row of logits to one token: penalties, temperature, top-k, top-p, min-p and a seeded draw."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from deltart.errors import GenerationError
from deltart.runtime.sampling.params import SamplingParams

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# Of each byte of a bitmask, its eight tokens' ceilings: infinity where the bit is set, else minus infinity.
_CEILINGS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1,
    np.float32(np.inf),
    np.float32(-np.inf),
)


class Sampler:
    """Chooses the tokens of one sequence and remembers what it chose.

    Order: logit bias, repetition penalty, presence and frequency penalties, min_tokens, allowed mask,
    temperature, top_k, top_p, min_p. It is the order of transformers' logits processors; presence and
    frequency, which transformers lacks, follow the OpenAI definition and count generated tokens only. The draw
    at step n depends on (seed, n) and the logits alone, so replaying or skipping steps does not change the others.

    Args:
        params: what to apply.
        prompt_ids: tokens that the repetition penalty counts as seen.
        vocab_limit: ids from here on are padding rows of the vocabulary and are never chosen.
        eos_ids: the model's end-of-sequence tokens; params.min_tokens holds back those that would end the reply,
            but where the allowed mask leaves nothing else.

    Attributes:
        params, vocab_limit: as given.
        seed: the seed in use, drawn when params has none.
        step: how many tokens were accepted.
        counts: int32 [vocab_limit], how often each was.
        seen: bool [vocab_limit], whether it was accepted or is in the prompt.

    Raises:
        GenerationError: an id of the prompt, of logit_bias or of stop_token_ids outside the vocabulary.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], vocab_limit: int, eos_ids: Collection[int] = ()
    ) -> None:
        prompt = np.asarray(prompt_ids, dtype=np.int64)
        if prompt.size and not 0 <= prompt.min() <= prompt.max() < vocab_limit:
            raise GenerationError(
                f"prompt token ids from {prompt.min()} to {prompt.max()}",
                f"ids in 0..{vocab_limit - 1}",
                "encode the prompt with the tokenizer of this checkpoint",
            )
        named = max([*params.logit_bias, *params.stop_token_ids], default=0)
        if named >= vocab_limit:
            raise GenerationError(
                f"logit_bias or stop_token_ids names token {named}",
                f"ids in 0..{vocab_limit - 1}",
                "look the ids up with the tokenizer of this checkpoint",
            )
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.vocab_limit = vocab_limit
        self.counts = np.zeros(vocab_limit, dtype=np.int32)
        self.seen = np.zeros(vocab_limit, dtype=np.bool_)
        self.seen[prompt] = True
        self.step = 0
        self._biased = np.fromiter(params.logit_bias, np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        self._ends = np.array(sorted(i for i in params.end_ids(eos_ids) if i < vocab_limit), np.int64)

    def sample(self, logits: Floats, allowed: npt.NDArray[np.int32] | None = None) -> int:
        """The next token, which from now on counts as generated: `choose`, then `accept`."""
        token = self.choose(logits, allowed)
        self.accept(token)
        return token

    def choose(self, logits: Floats, allowed: npt.NDArray[np.int32] | None = None) -> int:
        """The next token, without recording it; arguments and errors as for `distribution`."""
        if self.params.greedy:
            return self._scored(logits, allowed)[1]
        ids, probs = self.distribution(logits, allowed)
        if len(ids) == 1:  # all else was cut: there is nothing to draw
            return int(ids[0])
        cdf = np.cumsum(probs)
        return int(ids[np.searchsorted(cdf, self._uniform() * cdf[-1], side="right")])

    def distribution(
        self, logits: Floats, allowed: npt.NDArray[np.int32] | None = None
    ) -> tuple[Ids, npt.NDArray[np.float64]]:
        """The tokens that may come next and their probabilities, both [n]; greedy leaves one.

        Args:
            logits: f32 [V], V >= vocab_limit; left as it is.
            allowed: int32 [ceil(V / 32)], bit i % 32 of word i // 32 set where token i may come next.

        Raises:
            GenerationError: logits of the wrong shape, not finite at their maximum, or no token allowed.
        """
        scores, best = self._scored(logits, allowed)
        if self.params.greedy:
            return np.array([best]), np.ones(1)
        ids, weights = self._candidates(scores, float(scores[best]))
        return ids, weights / weights.sum()

    def accept(self, token: int) -> None:
        """Record `token` as generated: it enters the penalties and the next draw is that of the next step."""
        self.counts[token] += 1
        self.seen[token] = True
        self.step += 1

    def logprob(self, logits: Floats, token: int) -> float:
        """Log-probability of `token` under the model itself, before penalties, temperature and cuts."""
        row = logits[: self.vocab_limit]
        top = row.max()
        return float(row[token] - top) - math.log(float(np.exp(row - top).sum(dtype=np.float64)))

    def _scored(self, logits: Floats, allowed: npt.NDArray[np.int32] | None) -> tuple[Floats, int]:
        """(adjusted logits of the vocabulary, the largest one's id); arguments and errors as for `distribution`."""
        if logits.ndim != 1 or logits.shape[0] < self.vocab_limit:
            raise GenerationError(
                f"logits of shape {list(logits.shape)}",
                f"one row of at least {self.vocab_limit} values",
                "use the tokenizer and the model of one checkpoint",
            )
        scores = self._adjust(logits[: self.vocab_limit], allowed)
        best = int(scores.argmax())  # NaN counts as the maximum
        if not math.isfinite(scores[best]):
            raise GenerationError(
                f"the largest logit is {scores[best]} (token {best})",
                "a finite maximum",
                "check the model's output, or the grammar if one is in use",
            )
        return scores, best

    def _adjust(self, row: Floats, allowed: npt.NDArray[np.int32] | None) -> Floats:
        scores = row
        if self._biased.size or self._penalises:
            scores = row.copy()
            scores[self._biased] += self._bias
            self._penalise(scores)
        if allowed is None and self.step >= self.params.min_tokens:
            return scores
        masked = scores.copy() if allowed is None else _masked(scores, allowed)
        if self.step < self.params.min_tokens:
            ends = masked[self._ends]
            masked[self._ends] = -np.inf
            if allowed is not None and masked.max() == -np.inf:  # the structure is complete: its end may come
                masked[self._ends] = ends
        return masked

    @property
    def _penalises(self) -> bool:
        params = self.params
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    def _penalise(self, scores: Floats) -> None:
        params = self.params
        if params.repetition_penalty != 1:
            seen = np.flatnonzero(self.seen)
            old = scores[seen]
            scores[seen] = np.where(old < 0, old * params.repetition_penalty, old / params.repetition_penalty)
        if params.presence_penalty != 0 or params.frequency_penalty != 0:
            made = np.flatnonzero(self.counts > 0)
            scores[made] -= params.presence_penalty + params.frequency_penalty * self.counts[made]

    def _candidates(self, scores: Floats, top: float) -> tuple[Ids, npt.NDArray[np.float64]]:
        """Ids that survive the cuts and their weights, that of the largest score being 1."""
        params = self.params
        if 0 < params.top_k < scores.shape[0]:
            ids = np.flatnonzero(scores >= np.partition(scores, -params.top_k)[-params.top_k])
        else:
            ids = np.arange(scores.shape[0])
        weights = np.exp((scores[ids].astype(np.float64) - top) / params.temperature)
        if params.top_p < 1:
            kept = _nucleus(weights / weights.sum(), params.top_p)
            ids, weights = ids[kept], weights[kept]
        if params.min_p > 0:
            kept = np.flatnonzero(weights >= params.min_p)
            ids, weights = ids[kept], weights[kept]
        return ids, weights

    def _uniform(self) -> float:
        bits = np.random.Philox(key=np.array([self.seed, 0], np.uint64), counter=[0, 0, 0, self.step])
        return float(np.random.Generator(bits).random())


def _masked(scores: Floats, allowed: npt.NDArray[np.int32]) -> Floats:
    """A copy in which tokens whose bit is not set have minus infinity; a NaN that is allowed becomes infinity."""
    ceilings = np.take(_CEILINGS, np.ascontiguousarray(allowed).view(np.uint8), axis=0).reshape(-1)
    masked: Floats = np.fmin(ceilings[: scores.shape[0]], scores)
    return masked


def _nucleus(probs: npt.NDArray[np.float64], top_p: float) -> Ids:
    """Positions of the most probable tokens, up to and with the one that makes their sum reach top_p."""
    # Tokens under (1 - top_p) / n add up to less than 1 - top_p, so none of them is in the nucleus.
    large = np.flatnonzero(probs >= (1 - top_p) / probs.shape[0])
    order = large[np.argsort(-probs[large], kind="stable")]
    before = np.cumsum(probs[order]) - probs[order]
    kept: Ids = order[before < top_p]
    return kept
