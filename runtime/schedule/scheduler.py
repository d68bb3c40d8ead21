"""Decides, step by step, which sequences have a slot, whose prompt is read on, and when a state is kept.

One thread owns it. `step` reads a piece of at most one prompt and takes one decode step of all running rows, so neither
long prompts nor many rows hold the others up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from deltart.errors import DeltaRTError
from deltart.runtime.backends.match import draw, token_logprobs
from deltart.runtime.backends.slots import Drawn, PromptMedia, Row, Slots, TokenLogprobs
from deltart.runtime.schedule.chunks import ChunkSize
from deltart.runtime.schedule.draft_policy import DraftPolicy
from deltart.runtime.schedule.positions import Marks, snapshot_points
from deltart.runtime.schedule.prefix_cache import PrefixCache
from deltart.runtime.sequence import Delta, Request, Sequence, Status
from deltart.runtime.vision.encoder import VisionEncoder


@dataclass
class _Prompt:
    """A prompt that is being read: where its state is kept on the way, and how far it is."""

    points: dict[int, str]
    copies: list[Sequence] = field(default_factory=list)  # other replies to the same prompt
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)


@dataclass
class Counters:
    """Totals since the start."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0


Deliver = Callable[[Sequence, Delta], None]


class Scheduler:
    """Sequences over the slots of one device.

    Args:
        slots: the device.
        cache: of prefixes; None switches it off.
        drafts: how many drafts a step feeds.
        token_budget: tokens of K/V that all slots may hold together; sequences are preempted above it.
        deliver: called with what each step adds to a sequence.
        marks: tokens that structure a conversation, for the cache.
        encoder: makes embeddings of pictures; None where the model sees none.
    """

    def __init__(
        self, slots: Slots, cache: PrefixCache | None, drafts: DraftPolicy, token_budget: int, deliver: Deliver,
        marks: Marks | None = None, encoder: VisionEncoder | None = None,
    ) -> None:  # fmt: skip
        self._slots, self._cache, self._drafts, self._marks = slots, cache, drafts, marks
        self._budget, self._deliver, self._encoder = token_budget, deliver, encoder
        self._free = set(range(slots.limits.slots))
        self._prompts: dict[int, _Prompt] = {}  # by id of the sequence that reads it
        self._chunk = ChunkSize(slots.limits.prefill_tokens)
        self._turn = 0
        self.waiting: deque[Sequence] = deque()
        self.active: list[Sequence] = []  # have a slot, oldest first
        self.counters = Counters()

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.active)

    @property
    def tokens_held(self) -> int:
        """Tokens of K/V in all slots."""
        return sum(sequence.past for sequence in self.active)

    def add(self, replies: list[Sequence]) -> None:
        """Queue the replies to one request; the first reads the prompt for all."""
        first, *others = replies
        self._prompts[id(first)] = _Prompt({}, others)
        self.waiting.append(first)

    def cancel(self, sequence: Sequence) -> None:
        """End it at the next step, wherever it is."""
        sequence.cancelled = True

    def step(self) -> None:
        """One turn: end what is due, give slots away, read on in a prompt, decode."""
        self.counters.steps += 1
        self._end_due()
        self._admit()
        began = time.perf_counter()
        reading = self._next_prompt()
        if reading is not None:
            self._guarded(reading, self._read_on)
        self._preempt()
        running = [sequence for sequence in self.active if sequence.status is Status.RUNNING]
        if running:
            self._decode(running)
        if reading is not None and running:
            self._chunk.measured(time.perf_counter() - began)

    def end_all(self) -> None:
        """Cancel everything."""
        for sequence in [*self.waiting, *self.active]:
            self.cancel(sequence)
        self._end_due()

    # Ends

    def _end_due(self) -> None:
        now = time.monotonic()
        for sequence in self._everyone():
            deadline = sequence.request.deadline
            if sequence.cancelled:
                self._finish(sequence, sequence.end("cancelled"))
            elif deadline is not None and now > deadline:
                self._finish(sequence, sequence.end("timeout"))

    def _everyone(self) -> list[Sequence]:
        copies = (copy for prompt in self._prompts.values() for copy in prompt.copies)
        return [*self.waiting, *self.active, *copies]

    def _finish(self, sequence: Sequence, last: Delta) -> None:
        """Take it off the device and hand out its last delta. The end of a turn is a place to keep."""
        if sequence.status is Status.RUNNING and last.finish_reason in ("stop", "length"):
            self._keep_turn(sequence)
        self._leave(sequence)
        sequence.status = Status.FINISHED
        prompt = self._prompts.pop(id(sequence), None)
        if prompt is not None and prompt.copies:  # another reply reads the prompt on
            heir, *rest = prompt.copies
            self._prompts[id(heir)] = _Prompt({}, rest)
            self.waiting.appendleft(heir)
        for other in self._prompts.values():
            other.copies = [copy for copy in other.copies if copy is not sequence]
        self._deliver(sequence, last)

    def _keep_turn(self, sequence: Sequence) -> None:
        if self._cache is None or sequence.slot is None or sequence.row is None:
            return
        ids, row = sequence.ids(), sequence.row
        surplus = row.past + len(row.pending) - len(ids)  # drawn behind a stop string
        if row.past > len(ids) or len(ids) > self._slots.limits.capacity:
            return
        row.pending = ids[row.past :]
        row.unread = row.unread[: len(row.unread) - surplus]
        self._slots.settle(sequence.slot)
        keys = sequence.keys()
        self._cache.insert(keys, self._slots.save(sequence.slot), sequence.request.cache_salt, "turn")
        self._cache.remember(keys, sequence.request.cache_salt)

    def _leave(self, sequence: Sequence) -> None:
        """Off its slot, or out of the queue."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.slot is None:
            return
        if sequence.status is Status.RUNNING:
            self._slots.retire(sequence.slot)
        self._slots.free(sequence.slot)
        self._free.add(sequence.slot)
        self.active.remove(sequence)
        sequence.slot = None

    # Slots

    def _admit(self) -> None:
        """Give free slots to those who wait, first come first served, while their tokens fit."""
        while self.waiting and self._free:
            sequence = self.waiting[0]
            needed = sequence.parked.past if sequence.parked else len(sequence.prompt)
            if self.active and self.tokens_held + self._promised() + needed + 1 > self._budget:
                return
            self.waiting.popleft()
            sequence.slot = min(self._free)
            self._free.remove(sequence.slot)
            self.active.append(sequence)
            self.active.sort(key=lambda s: s.arrived)
            if sequence.parked is not None:
                self._guarded(sequence, self._resume)
            else:
                self._guarded(sequence, self._begin)

    def _promised(self) -> int:
        """Tokens of prompts that are still to be read."""
        return sum(len(s.prompt) - s.past for s in self.active if s.status is Status.PREFILL)

    def _begin(self, sequence: Sequence) -> None:
        """Start on a prompt, after the longest prefix that is kept of it."""
        assert sequence.slot is not None
        sequence.status = Status.PREFILL
        if not sequence.usage.queue_seconds:
            sequence.usage.queue_seconds = time.monotonic() - sequence.arrived
        prompt = self._prompts[id(sequence)]
        request = sequence.request
        if self._cache is None:
            return
        if request.prompt_logprobs is None:
            snapshot, _ = self._cache.find(request.keys, request.cache_salt)
            if snapshot is not None:
                self._slots.load(sequence.slot, snapshot)
                sequence.past = snapshot.past
                sequence.usage.cached_tokens = snapshot.past
        junction = self._cache.junction(request.keys, request.cache_salt, sequence.past)
        whole = [(span.start, span.end) for span in request.media]
        points = snapshot_points(sequence.prompt, self._marks, junction, whole)
        prompt.points = {at: kind for at, kind in points.items() if at > sequence.past}
        self._cache.remember(request.keys, request.cache_salt)

    def _resume(self, sequence: Sequence) -> None:
        """Go on with a sequence that was preempted."""
        assert sequence.slot is not None and sequence.parked is not None
        if sequence.parked.past:
            self._slots.load(sequence.slot, sequence.parked)
        sequence.parked = None
        if sequence.row is None:
            sequence.status = Status.PREFILL
        else:
            self._slots.admit(sequence.slot, sequence.row)
            sequence.status = Status.RUNNING

    def _preempt(self) -> None:
        """While the slots hold more tokens than they may, park the newest sequence: its state goes to the host."""
        while self.tokens_held > self._budget and len(self.active) > 1:
            newest = self.active[-1]
            assert newest.slot is not None
            if newest.status is Status.RUNNING:
                self._slots.settle(newest.slot, leave=1)
                newest.past = newest.row.past if newest.row else newest.past
            parked = self._slots.save(newest.slot) if newest.past else None
            self._leave(newest)
            newest.status, newest.parked = Status.WAITING, parked
            self.waiting.appendleft(newest)
            self.counters.preemptions += 1

    # Prompts

    def _next_prompt(self) -> Sequence | None:
        """Whose prompt is read on: the oldest's, and every other turn that with the least left."""
        reading = [sequence for sequence in self.active if sequence.status is Status.PREFILL]
        if not reading:
            return None
        self._turn += 1
        return min(reading, key=lambda s: len(s.prompt) - s.past) if self._turn % 2 else reading[0]

    def _read_on(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        prompt, ids, past = self._prompts[id(sequence)], sequence.prompt, sequence.past
        alone = not any(s.status is Status.RUNNING for s in self.active)
        end = min([past + self._chunk.tokens(alone), len(ids), *(at for at in prompt.points if at > past)])
        every = sequence.request.prompt_logprobs is not None
        wanted = np.arange(end - past) if every else np.array([end - past - 1])
        media = self._media(sequence.request, past, end)
        began = time.perf_counter()
        logits = self._slots.prefill(sequence.slot, ids[past:end], past, wanted, media)
        self._chunk.read(end - past, time.perf_counter() - began)
        sequence.past = end
        self.counters.prompt_tokens += end - past
        if every:
            prompt.logprobs += self._prompt_logprobs(sequence, logits, past)
        if end in prompt.points and self._cache is not None:
            kind = prompt.points.pop(end)
            keys, salt = sequence.request.keys[:end], sequence.request.cache_salt
            self._cache.insert(keys, self._slots.save(sequence.slot), salt, kind)
        if end == len(ids):
            self._start_replies(sequence, logits[-1])

    def _media(self, request: Request, begin: int, end: int) -> PromptMedia | None:
        """What tokens [begin, end) of a prompt with pictures take besides their ids."""
        if self._encoder is None or not request.media:
            return None
        return PromptMedia(request.positions, *self._encoder.chunk(request.media, begin, end, request.cache_salt))

    def _prompt_logprobs(self, sequence: Sequence, logits: np.ndarray, past: int) -> Iterable[TokenLogprobs]:
        top, limit = sequence.request.prompt_logprobs or 0, sequence.sampler.vocab_limit
        following = sequence.prompt[past + 1 : past + 1 + len(logits)]
        return [token_logprobs(row[:limit], token, top) for row, token in zip(logits, following, strict=False)]

    def _start_replies(self, sequence: Sequence, logits: np.ndarray) -> None:
        """The prompt is read: draw the first token of every reply to it; copies wait with its state."""
        assert sequence.slot is not None
        prompt = self._prompts.pop(id(sequence))
        sequence.prompt_logprobs = prompt.logprobs
        state = self._slots.save(sequence.slot) if prompt.copies else None
        for copy in prompt.copies:
            copy.past, copy.parked, copy.usage = sequence.past, state, copy.usage
            self._first_token(copy, logits)
            if copy.status is not Status.FINISHED:
                self.waiting.appendleft(copy)
        if self._first_token(sequence, logits):
            assert sequence.row is not None
            self._slots.admit(sequence.slot, sequence.row)
            sequence.status = Status.RUNNING

    def _first_token(self, sequence: Sequence, logits: np.ndarray) -> bool:
        """Draw it from the prompt's last logits; whether the reply goes on."""
        request = sequence.request
        row = Row(
            past=sequence.past, pending=[], sampler=sequence.sampler, ends=sequence.ends,
            constraint=sequence.constraint, logprobs=request.logprobs, rope_shift=request.rope_shift,
        )  # fmt: skip
        drawn = draw(row, logits[None], ())
        row.pending = list(drawn.tokens)
        sequence.row = row
        if not sequence.usage.first_token_seconds:
            sequence.usage.first_token_seconds = time.monotonic() - sequence.arrived
        return self._take(sequence, drawn)

    # Decoding

    def _decode(self, running: list[Sequence]) -> None:
        drafts = self._drafts.choose(len(running))
        for sequence in running:
            assert sequence.row is not None
            sequence.row.drafts = self._drafts_of(sequence, drafts)
        began = time.perf_counter()
        drawn = self._slots.step()
        for sequence in running:
            assert sequence.row is not None and sequence.slot is not None
            sequence.past = sequence.row.past
            found = drawn[sequence.slot]
            if found.drafted:
                self._drafts.outcome(found.drafted, found.accepted)
            self._take(sequence, found)
        self._drafts.measured(len(running), drafts, time.perf_counter() - began)

    def _drafts_of(self, sequence: Sequence, drafts: int) -> int:
        """Not beyond what the reply may have, nor beyond the slot."""
        assert sequence.row is not None
        left = sequence.budget - len(sequence.tokens)
        room = self._slots.limits.capacity - sequence.row.past - len(sequence.row.pending)
        return max(min(drafts, left - 1, room), 0)

    def _take(self, sequence: Sequence, drawn: Drawn) -> bool:
        """Hand out what was drawn; whether the sequence goes on."""
        self.counters.generated_tokens += len(drawn.tokens)
        delta = sequence.push(drawn)
        if delta.finish_reason is None and drawn.error is not None:
            sequence.error = drawn.error
            if delta.tokens:
                self._deliver(sequence, delta)
            delta = sequence.end("error")
        if delta.finish_reason is not None:
            self._finish(sequence, delta)
            return False
        self._deliver(sequence, delta)
        return True

    def _guarded(self, sequence: Sequence, work: Callable[[Sequence], None]) -> None:
        """`work` on one sequence; what it raises ends that sequence and no other."""
        try:
            work(sequence)
        except DeltaRTError as error:
            sequence.error = error
            self._finish(sequence, sequence.end("error"))
