"""Random schedules of requests over an engine's parts, and what each request is answered when it runs alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from deltart.runtime.backends.base import ServingBackend
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sampling.sampler import Sampler
from deltart.runtime.schedule.draft_policy import DraftPolicy
from deltart.runtime.schedule.positions import Marks
from deltart.runtime.schedule.prefix_cache import PrefixCache
from deltart.runtime.schedule.scheduler import Scheduler
from deltart.runtime.sequence import Delta, Request, Usage
from deltart.runtime.sequence import Sequence as Reply
from deltart.runtime.structure.compiler import Compiled, StructureCompiler
from deltart.runtime.structure.structure import Structure
from deltart.runtime.text.stops import StopMatcher
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.runtime.vision.encoder import VisionEncoder

CONTEXT = 256


@dataclass(frozen=True)
class Setting:
    """How a device is divided and used; none of it may change a token."""

    slots: int
    drafts: int
    cache_bytes: int
    token_budget: int
    prefill_tokens: int


@dataclass(frozen=True)
class Arrival:
    """A request that comes at a step, and the step at which its client leaves, if it does."""

    step: int
    request: Request
    leaves: int | None = None


ALONE = Setting(slots=1, drafts=0, cache_bytes=0, token_budget=10**9, prefill_tokens=512)


ROUNDING = 1e-5  # of a logit, by how many rows and tokens a call has


class Bench:
    """Runs schedules on one backend.

    Args:
        marks: message tokens for the prefix cache.
    """

    def __init__(self, backend: ServingBackend, tokenizer: Tokenizer, marks: Marks | None) -> None:
        self.backend, self.tokenizer, self.marks = backend, tokenizer, marks
        self.limit = min(tokenizer.vocab_limit, backend.manifest.vocab_size)
        self._entry = backend.manifest.vision
        self._structures = StructureCompiler(tokenizer, self.limit)
        self._known: dict[tuple[Request, int], list[int]] = {}
        self._sampler = Sampler

    def compile(self, structure: Structure) -> Compiled:
        """For `Request.structure`."""
        return self._structures.compile(structure)

    def replies(self, request: Request) -> list[Reply]:
        """Fresh replies to a request, as the engine makes them."""
        made, usage = [], Usage(prompt_tokens=len(request.ids))
        for index in range(request.n):
            params = replace(request.params, seed=(request.params.seed or 0) + index)
            ends = params.end_ids(self.tokenizer.eos_ids)
            structure = request.structure
            made.append(
                Reply(
                    request, index, self._sampler(params, request.ids, self.limit, self.tokenizer.eos_ids),
                    min(params.max_new_tokens, CONTEXT - len(request.ids)), ends, self.tokenizer.stream(),
                    StopMatcher(params.stop), usage,
                    constraint=structure.matcher(request.thinking) if structure else None,
                )
            )  # fmt: skip
        return made

    def run(
        self, setting: Setting, arrivals: Sequence[Arrival]
    ) -> tuple[list[list[Reply]], Scheduler, PrefixCache | None]:
        """Every request's replies, ended."""
        slots = self.backend.open_slots(setting.slots, CONTEXT, self.limit)
        slots.limits = replace(slots.limits, prefill_tokens=setting.prefill_tokens)
        cache = PrefixCache(setting.cache_bytes) if setting.cache_bytes else None
        texts: dict[int, str] = {}

        def deliver(reply: Reply, delta: Delta) -> None:
            texts[id(reply)] = texts.get(id(reply), "") + delta.text

        scheduler = Scheduler(
            slots,
            cache,
            DraftPolicy(min(setting.drafts, slots.limits.draft_tokens), fixed=True),
            setting.token_budget,
            deliver,
            self.marks,
            VisionEncoder(self.backend.see, self._entry, 1_000_000) if self._entry else None,
        )
        groups: list[list[Reply]] = []
        step = 0
        try:
            while len(groups) < len(arrivals) or scheduler.busy:
                for arrival in arrivals[len(groups) :]:
                    if arrival.step <= step or not scheduler.busy:
                        groups.append(self.replies(arrival.request))
                        scheduler.add(groups[-1])
                for arrival, group in zip(arrivals, groups, strict=False):
                    if arrival.leaves is not None and arrival.leaves <= step:
                        for reply in group:
                            scheduler.cancel(reply)
                scheduler.step()
                step += 1
                assert step < 20_000, "the schedule does not end"
        finally:
            slots.close()
        for reply in (reply for group in groups for reply in group):
            assert texts.get(id(reply), "") == text_of(self.tokenizer, reply), "text that is not that of the tokens"
        return groups, scheduler, cache

    def alone(self, request: Request, index: int) -> list[int]:
        """The tokens of one reply when it is all that runs: no drafts, no cache, its prompt in one piece."""
        if (request, index) not in self._known:
            params = replace(request.params, seed=(request.params.seed or 0) + index)
            single = replace(request, params=params, n=1)
            ((reply,),), *_ = self.run(ALONE, [Arrival(0, single)])
            assert reply.error is None, reply.error
            self._known[request, index] = reply.tokens
        return self._known[request, index]

    def is_tie(self, request: Request, index: int, step: int, token: int) -> bool:
        """Whether a reply that is all that runs draws `token` at `step` where its logits are off by rounding.

        A draw falls between two tokens' shares of the probability, and now and then as near to a border as that.
        """
        rows: list[tuple[np.ndarray, np.ndarray | None]] = []

        class Recording(Sampler):
            def choose(self, logits: np.ndarray, allowed: np.ndarray | None = None) -> int:
                rows.append((logits.copy(), None if allowed is None else allowed.copy()))
                return super().choose(logits, allowed)

        expected = self.alone(request, index)
        del self._known[request, index]
        self._sampler = Recording
        try:
            assert self.alone(request, index) == expected
        finally:
            self._sampler = Sampler
        params = replace(request.params, seed=(request.params.seed or 0) + index)
        sampler = Sampler(params, request.ids, self.limit, self.tokenizer.eos_ids)
        for earlier in expected[:step]:
            sampler.accept(earlier)
        logits, allowed = rows[step]
        errors = rounding_errors(logits, (token, expected[step]))
        return token in {sampler.choose(logits + error, allowed) for error in errors}


def rounding_errors(logits: np.ndarray, tokens: Sequence[int]) -> Iterator[np.ndarray]:
    """Errors of up to ROUNDING: any, and those that shift the probability before and behind `tokens` the most."""
    rng = np.random.default_rng(0)
    for _ in range(64):
        yield rng.uniform(-ROUNDING, ROUNDING, logits.shape).astype(np.float32)
    for place in (np.arange(len(logits)), (-logits).argsort().argsort()):  # by id, and by likelihood
        for border in (place[token] for token in tokens):
            for before in (place < border, place <= border):
                error = np.where(before, ROUNDING, -ROUNDING).astype(np.float32)
                yield from (error, -error)


def text_of(tokenizer: Tokenizer, reply: Reply) -> str:
    """What the tokens of a reply say, up to its stop string."""
    text = tokenizer.decode(reply.tokens)
    ends = [text.find(stop) for stop in reply.request.params.stop if stop in text]
    return text[: min(ends)] if ends else text


def random_setting(rng: random.Random) -> Setting:
    """Any way to divide the device, tight ones included."""
    return Setting(
        slots=rng.choice([1, 2, 3, 5]),
        drafts=rng.choice([0, 1, 2, 3, 4]),
        cache_bytes=rng.choice([0, 3_000_000, 20_000_000, 100_000_000]),
        token_budget=rng.choice([60, 100, 200, 10**9]),
        prefill_tokens=rng.choice([3, 16, 64, 512]),
    )


def random_params(rng: random.Random) -> SamplingParams:
    """Greedy or sampled, with and without penalties, cuts, biases and stop strings."""
    sampled = rng.random() < 0.6
    return SamplingParams(
        temperature=rng.choice([0.5, 1.0, 1.5]) if sampled else 0.0,
        top_k=rng.choice([0, 0, 5, 40]),
        top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0.0, 0.05]),
        presence_penalty=rng.choice([0.0, 0.0, 1.5]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        seed=rng.randrange(2**32),
        max_new_tokens=rng.choice([1, 2, 5, 12, 30, 60]),
        min_tokens=0,
        stop=rng.choice([(), (), ("e",), ("the", "\n\n")]),
        ignore_eos=rng.random() < 0.3,
    )


STRUCTURES = (
    Structure.regex("[a-z]{3,20}( [a-z]{1,9}){0,5}"),
    Structure.json_schema({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}),
    Structure.json_object(),
)


def random_arrivals(rng: random.Random, prompts: Sequence[Sequence[int]], bench: Bench) -> list[Arrival]:
    """Requests that share prefixes, come in bursts, and whose clients sometimes leave."""
    arrivals, step = list[Arrival](), 0
    few = rng.sample(list(prompts), rng.randint(1, 3))
    for _ in range(rng.randint(1, 7)):
        step += rng.choice([0, 0, 1, 3, 20, 60])
        ids = list(rng.choice(few))
        if arrivals and rng.random() < 0.4:  # a later turn of what came before
            ids = [*arrivals[-1].request.ids, *ids]
        elif rng.random() < 0.3:
            ids = ids[: rng.randint(1, len(ids))] + list(rng.choice(prompts))[: rng.randint(0, 20)]
        request = Request(
            tuple(ids[: CONTEXT - 8]), random_params(rng), n=rng.choice([1, 1, 1, 2, 3]),
            logprobs=rng.choice([None, None, 2]), cache_salt=rng.choice(["", "", "", "tenant"]),
            structure=bench.compile(rng.choice(STRUCTURES)) if rng.random() < 0.2 else None,
            thinking=rng.random() < 0.3,
        )  # fmt: skip
        leaves = step + rng.randint(0, 30) if rng.random() < 0.15 else None
        arrivals.append(Arrival(step, request, leaves))
    return arrivals


@dataclass
class Tally:
    """What schedules made happen."""

    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    cached_tokens: int = 0
    evicted: int = 0
    ties: int = 0
    finished: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Add another's counts."""
        self.preemptions += other.preemptions
        self.drafted += other.drafted
        self.accepted += other.accepted
        self.cached_tokens += other.cached_tokens
        self.evicted += other.evicted
        self.ties += other.ties
        self.finished += other.finished


def check(bench: Bench, setting: Setting, arrivals: Sequence[Arrival], reference: Bench | None = None) -> Tally:
    """Run a schedule and hold every reply against its request alone; a client that left has a part of it.

    A reply that parts from it at a tie, and nowhere before, is counted.

    Args:
        reference: what the request runs alone on; the same bench when None.
    """
    groups, scheduler, cache = bench.run(setting, arrivals)
    tally = Tally(scheduler.counters.preemptions, evicted=cache.statistics.evicted if cache else 0)
    for arrival, group in zip(arrivals, groups, strict=True):
        tally.drafted += group[0].usage.draft_tokens
        tally.accepted += group[0].usage.accepted_tokens
        tally.cached_tokens += group[0].usage.cached_tokens
        for reply in group:
            expected = (reference or bench).alone(arrival.request, reply.index)
            assert reply.error is None, reply.error
            whole = reply.finish_reason != "cancelled"
            if reply.tokens != (expected if whole else expected[: len(reply.tokens)]):
                pairs = enumerate(zip(reply.tokens, expected, strict=False))
                step, token = next(((i, found) for i, (found, right) in pairs if found != right), (0, -1))
                where = (arrival.request, reply.index, step)
                assert (reference or bench).is_tie(arrival.request, reply.index, step, token), where
                tally.ties += 1
            tally.finished[str(reply.finish_reason)] += 1
    return tally
