"""Generation of one sequence: chunked prefill, then a token at a time, as tokens or as text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deltart.errors import GenerationError
from deltart.runtime.backends.base import Backend, DecodeRow, SlotState
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sampling.sampler import Sampler
from deltart.runtime.text.stops import StopMatcher
from deltart.runtime.text.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens a prefill call; bounds the size of intermediate tensors
FinishReason = Literal["stop", "length"]


@dataclass
class Timings:
    """Tokens and seconds of one generation."""

    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    new_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens per second after the first, which prefill yields."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds and self.new_tokens > 1 else 0.0


@dataclass
class Generation:
    """A generation in progress: iterate for pieces of text; `text`, `tokens`, `finish_reason` fill up meanwhile."""

    pieces: Iterator[str]
    tokens: list[int]
    timings: Timings
    text: str = ""
    finish_reason: FinishReason | None = None

    def __iter__(self) -> Iterator[str]:
        for piece in self.pieces:
            self.text += piece
            yield piece


class Generator:
    """Generates from an artifact, one sequence at a time.

    Args:
        backend: runs the artifact's "model" graph.
        tokenizer: the checkpoint's tokenizer.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer) -> None:
        self.backend, self.tokenizer = backend, tokenizer
        self.vocab_limit = min(tokenizer.vocab_limit, backend.manifest.vocab_size)

    def generate(self, prompt: str | Sequence[int], params: SamplingParams) -> Generation:
        """Start generating after `prompt`, text or token ids.

        Raises:
            GenerationError: the prompt is empty, too long for the artifact, or holds ids outside the vocabulary.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._check(ids)
        generation = Generation(iter(()), [], Timings(prompt_tokens=len(ids)))
        generation.pieces = self._pieces(ids, params, generation)
        return generation

    def _check(self, ids: list[int]) -> None:
        limit, vocabulary = self.backend.manifest.max_context, self.backend.manifest.vocab_size
        if not ids:
            raise GenerationError("the prompt is empty", "at least one token", "pass a prompt")
        if len(ids) >= limit:
            raise GenerationError(
                f"the prompt has {len(ids)} tokens",
                f"fewer than {limit}, this artifact's context",
                "shorten it, or export with a larger --max-context or --yarn",
            )
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise GenerationError(
                f"the prompt has token {max(ids)}", f"ids below {vocabulary}", "use the checkpoint's own tokenizer"
            )

    def _pieces(self, ids: list[int], params: SamplingParams, generation: Generation) -> Iterator[str]:
        detokenizer, stops = self.tokenizer.stream(), StopMatcher(params.stop)
        for token in self._tokens(ids, params, generation):
            text, hit = stops.push(detokenizer.push(token))
            if text:
                yield text
            if hit:
                generation.finish_reason = "stop"
                return
        text, hit = stops.push(detokenizer.finish())
        yield text if hit else text + stops.finish()

    def _tokens(self, ids: list[int], params: SamplingParams, generation: Generation) -> Iterator[int]:
        """Sampled tokens up to an end-of-sequence token (which is recorded, not yielded) or the length limit."""
        budget = min(params.max_new_tokens, self.backend.manifest.max_context - len(ids))
        sampler = Sampler(params, ids, self.vocab_limit, self.tokenizer.eos_ids)
        ends = params.end_ids(self.tokenizer.eos_ids)
        state = self.backend.new_state("model", 1, len(ids) + budget)
        timings, clock = generation.timings, time.perf_counter
        began = clock()
        logits = prefill(self.backend, state, ids)
        timings.prefill_seconds = clock() - began
        began = clock()
        token = sampler.sample(logits)
        decoder = self.backend.decoder(state, [DecodeRow(token, len(ids), sampler)], budget - 1)
        for made in range(1, budget + 1):
            generation.tokens.append(token)
            timings.new_tokens, timings.decode_seconds = made, clock() - began
            if token in ends:
                generation.finish_reason = "stop"
                return
            yield token
            if made < budget:
                (token,) = decoder.step()
        generation.finish_reason = "length"


def prefill(
    backend: Backend, state: SlotState, ids: Sequence[int], past: int = 0, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Feed `ids` in chunks to a one-slot state holding `past` tokens; returns the last token's logits f32 [V]."""
    logits = np.empty(0, np.float32)
    for begin in range(0, len(ids), PREFILL_CHUNK):
        chunk = ids[begin : begin + PREFILL_CHUNK]
        logits = step(backend, state, chunk, past + begin)
        if progress:
            progress(begin + len(chunk))
    return logits


def step(backend: Backend, state: SlotState, ids: Sequence[int], past: int) -> np.ndarray:
    """One call of the text graph on a one-slot state: logits f32 [V] after the last of `ids`."""
    inputs = text_inputs(np.array([ids], np.int64), np.array([past], np.int32))
    (logits,) = backend.run("model", state, inputs, ["logits"])
    row: np.ndarray = logits[0, -1]
    return row
