"""The engine: an artifact that takes requests from any thread and answers them side by side."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from deltart.errors import ClosedError, DeltaRTError, GenerationError, QueueFullError
from deltart.manifest import Manifest
from deltart.runtime.backends.base import ServingBackend
from deltart.runtime.backends.choose import Target, open_backend
from deltart.runtime.backends.ort import WeightMode
from deltart.runtime.handle import Completion, Handle
from deltart.runtime.memory_plan import MemoryPlan, plan_memory
from deltart.runtime.metrics import Metrics
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sampling.sampler import Sampler
from deltart.runtime.schedule.draft_policy import DraftPolicy
from deltart.runtime.schedule.positions import Marks
from deltart.runtime.schedule.prefix_cache import PrefixCache
from deltart.runtime.schedule.scheduler import Scheduler
from deltart.runtime.schedule.snapshot_files import model_name, read_prefix, write_prefix
from deltart.runtime.sequence import Delta, Request, Usage
from deltart.runtime.sequence import Sequence as Reply
from deltart.runtime.structure.compiler import Compiled, StructureCompiler
from deltart.runtime.structure.structure import Structure
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.stops import StopMatcher
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.runtime.vision.encoder import VisionEncoder
from deltart.runtime.vision.prompt import described

END_OF_THINKING, MESSAGE_START, USER = "</think>", "<|im_start|>", "user"


@dataclass(frozen=True)
class EngineOptions:
    """How an engine divides a machine.

    Attributes:
        slots: sequences at once.
        max_model_len: most tokens of a prompt and its reply; the artifact's context when None.
        draft_tokens: drafts of the MTP head in a step: None for as many as pay, by measurement; 0 for none.
        cache_bytes: for kept prefixes; None for a share of the memory, 0 for none.
        memory_bytes: that the engine may use; None for what the machine has to spare.
        queue: requests that may wait for a slot.
    """

    slots: int = 8
    max_model_len: int | None = None
    draft_tokens: int | None = None
    cache_bytes: int | None = None
    memory_bytes: int | None = None
    queue: int = 1024


class Engine:
    """Answers requests with an artifact's model, on one thread of its own. Every method may be called from any thread.

    What a request is answered does not depend on the others, on what is cached, or on drafts: it is a function of its
    tokens, parameters and seed.

    Args:
        backend: runs the artifact's graphs.
        tokenizer: the checkpoint's tokenizer.
        template: its chat template; None where it has none.
        options: see EngineOptions.

    Attributes:
        max_context: most tokens of a prompt and its reply.
        plan: what is done with the memory.
        defaults: the checkpoint's own sampling parameters.

    Raises:
        GenerationError: the options can't be had on this machine or with this artifact.
    """

    def __init__(
        self, backend: ServingBackend, tokenizer: Tokenizer, template: ChatTemplate | None, options: EngineOptions
    ) -> None:
        self.backend, self.tokenizer, self.template, self.options = backend, tokenizer, template, options
        self.manifest = backend.manifest
        vision = self.manifest.vision if backend.sees else None
        self.max_context = _context(options, self.manifest.max_context)
        self.defaults = SamplingParams.from_generation_config(tokenizer.generation_config)
        self.vocab_limit = min(tokenizer.vocab_limit, self.manifest.vocab_size)
        self._slots = backend.open_slots(
            options.slots, self.max_context, self.vocab_limit, drafts=options.draft_tokens != 0
        )
        self.max_context = min(self.max_context, self._slots.limits.capacity)  # a GPU engine is built for so many
        limits = replace(self._slots.limits, capacity=self.max_context)
        self.plan: MemoryPlan = plan_memory(
            limits, backend.weight_bytes, options.memory_bytes, options.cache_bytes, vision, backend.held_bytes
        )
        self._encoder = VisionEncoder(backend.see, vision, self.plan.vision // 2) if vision else None
        self._structures = StructureCompiler(tokenizer, self.vocab_limit)
        self._cache = PrefixCache(self.plan.cache) if self.plan.cache else None
        self._drafts = DraftPolicy.for_option(options.draft_tokens, limits.draft_tokens)
        self._scheduler = Scheduler(
            self._slots, self._cache, self._drafts, self.plan.tokens, self._deliver, _marks(tokenizer), self._encoder
        )
        self.metrics = Metrics(self._scheduler, self._cache, self._drafts, self.plan)
        self._handles: dict[int, Handle] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closing: float | None = None  # when what still runs is cut
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="deltart-engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls, artifact: str | Path, *, target: Target = "auto", weights: WeightMode = "folded", threads: int = 0,
        plugins: Path | None = None, options: EngineOptions | None = None,
    ) -> Engine:  # fmt: skip
        """An engine over the artifact folder `artifact`; arguments as for `open_backend`.

        Raises:
            ArtifactError, MissingDependencyError: the artifact can't be run here.
        """
        folder = Path(artifact)
        backend = open_backend(folder, target, weights, threads, plugins)
        return cls(backend, Tokenizer.from_folder(folder), ChatTemplate.found_in(folder), options or EngineOptions())

    def compile(self, structure: Structure) -> Compiled:
        """What `Request.structure` takes: compiled the first time, then kept. It may take seconds, in this thread.

        Raises:
            GenerationError: it can't be enforced, or takes too long; the message names the keyword.
            MissingDependencyError: llguidance is not installed.
        """
        return self._structures.compile(structure)

    def submit(self, request: Request) -> Handle:
        """Start on a request.

        Raises:
            GenerationError: it can't be served, now or later.
            QueueFullError: too many wait already.
            ClosedError: the engine is closing.
        """
        self._check(request)
        usage = Usage(prompt_tokens=len(request.ids))
        replies = [self._reply(request, index, usage) for index in range(request.n)]
        handle = Handle(request.n, usage, lambda: self._command(lambda: self._cancel(replies)))

        def add() -> None:
            for reply in replies:
                self._handles[id(reply)] = handle
            self._scheduler.add(replies)

        with self._changed:
            self._open_for_requests()
            self._commands.append(add)
            self._changed.notify()
        return handle

    def generate(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Completion:
        """The reply to `prompt`, text or token ids, once it is whole; raises as `submit` and `Handle.result` do."""
        return self.submit(self.request(prompt, params)).result()[0]

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Iterator[str]:
        """Pieces of the reply's text as they come. Leaving the loop early cancels the request."""
        handle = self.submit(self.request(prompt, params))
        try:
            yield from (delta.text for delta in handle if delta.text)
        finally:
            handle.cancel()

    async def agenerate(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Completion:
        """As `generate`, from an event loop."""
        handle = self.submit(self.request(prompt, params))
        completion = Completion(usage=handle.usage)
        async for delta in handle:
            completion.add(delta)
        return completion

    async def astream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> AsyncIterator[str]:
        """As `stream`, from an event loop."""
        handle = self.submit(self.request(prompt, params))
        try:
            async for delta in handle:
                if delta.text:
                    yield delta.text
        finally:
            handle.cancel()

    def request(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Request:
        """A request for one reply to `prompt`; the checkpoint's own parameters when `params` is None."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return Request(tuple(ids), self.defaults if params is None else params)

    def save_prefix(self, ids: Sequence[int], path: Path) -> int:
        """Write the state of the longest kept prefix of `ids` to `path`, for `load_prefix`.

        Args:
            ids: of a prompt with pictures its `Request.keys`.

        Returns:
            tokens of that prefix; 0 where none is kept, and nothing is written.

        Raises:
            OSError: there is no room or no permission.
        """
        snapshot, _ = self._cache.find([*ids, -1], "") if self._cache else (None, "")
        if snapshot is None:
            return 0
        write_prefix(path, np.asarray(ids[: snapshot.past], np.int64), snapshot, self._model)
        return snapshot.past

    def load_prefix(self, path: Path) -> int:
        """Keep the state that `save_prefix` wrote; the number of its tokens.

        Raises:
            ArtifactError: the file is damaged, or is of another model.
        """
        ids, snapshot = read_prefix(path, self._model, mtp=bool(self._slots.limits.draft_tokens))
        if self._cache is not None:
            self._cache.insert(ids.tolist(), snapshot, "", "file")
        return snapshot.past

    @cached_property
    def _model(self) -> str:
        return model_name(self.manifest)

    @property
    def sees(self) -> bool:
        """Whether prompts may hold pictures."""
        return self._encoder is not None

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let those that run go on for `drain_seconds`, cancel the rest, and free everything."""
        with self._changed:
            if self._closing is None:
                self._closing = time.monotonic() + drain_seconds
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def closing(self) -> bool:
        """Whether it has stopped taking requests."""
        return self._closing is not None or self._broken is not None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, request: Request) -> None:
        ids, limit = request.ids, self.max_context
        if not ids:
            raise GenerationError("the prompt is empty", "at least one token", "pass a prompt")
        if request.media and not self.sees:
            raise GenerationError("a prompt with pictures", *_blind(self.manifest))
        if not 1 <= request.n <= 128:
            raise GenerationError(f"n = {request.n}", "1 to 128 replies")
        if not 0 <= min(ids) <= max(ids) < self.vocab_limit:
            raise GenerationError(
                f"the prompt has token {min(ids) if min(ids) < 0 else max(ids)}",
                f"ids below {self.vocab_limit}",
                "use the checkpoint's own tokenizer",
            )
        if len(ids) >= limit:
            taken = f" ({described(request.media)})" if request.media else ""
            raise GenerationError(
                f"the prompt has {len(ids)} tokens{taken}",
                f"fewer than {limit}, this engine's context",
                "shorten it, or open the engine (or export) with a larger context",
            )
        if len(ids) >= self.plan.tokens:
            raise GenerationError(
                f"the prompt has {len(ids)} tokens",
                f"fewer than {self.plan.tokens}, which is what the memory holds ({self.plan})",
                "give the engine more memory",
            )

    def _reply(self, request: Request, index: int, usage: Usage) -> Reply:
        params = request.params
        if params.seed is not None and index:
            params = replace(params, seed=(params.seed + index) % 2**64)
        sampler = Sampler(params, request.ids, self.vocab_limit, self.tokenizer.eos_ids)
        room = min(self.max_context, self.plan.tokens) - len(request.ids)
        return Reply(
            request,
            index,
            sampler,
            min(params.max_new_tokens, room),
            params.end_ids(self.tokenizer.eos_ids),
            self.tokenizer.stream(),
            StopMatcher(params.stop),
            usage,
            constraint=request.structure.matcher(request.thinking) if request.structure else None,
            end_thinking=self.tokenizer.id_of(END_OF_THINKING) if request.thinking else None,
        )

    def _open_for_requests(self) -> None:
        if self._broken is not None:
            raise ClosedError(f"the engine has failed: {self._broken!r}", "a running engine", "restart it")
        if self._closing is not None:
            raise ClosedError("the engine is closing", "a running engine", "send the request elsewhere")
        waiting = len(self._scheduler.waiting) + len(self._commands)
        if waiting >= self.options.queue:
            raise QueueFullError(
                f"{waiting} requests wait", f"fewer than {self.options.queue}", "try again later, or raise the limit"
            )

    def _command(self, command: Callable[[], None]) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def _cancel(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            self._scheduler.cancel(reply)

    def _deliver(self, reply: Reply, delta: Delta) -> None:
        ended = delta.finish_reason is not None
        handle = self._handles.pop(id(reply)) if ended else self._handles[id(reply)]
        if reply.prompt_logprobs:
            handle.prompt_logprobs = reply.prompt_logprobs
        self.metrics.delivered(reply, delta)
        handle.put(delta, reply.error)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # nothing may leave clients waiting
            self._broken = error
            self._give_up(error)
        finally:
            self._slots.close()
            self._structures.close()
            if self._cache is not None:
                self._cache.clear()

    def _turn(self) -> bool:
        """Commands, then a step; whether there may be more."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            commands, closing = list(self._commands), self._closing
            self._commands.clear()
        for command in commands:
            command()
        if closing is not None and time.monotonic() >= closing:
            self._scheduler.end_all()
        if self._scheduler.busy:
            self._scheduler.step()
        return closing is None or self._scheduler.busy

    def _has_work(self) -> bool:
        return bool(self._commands) or self._scheduler.busy or self._closing is not None

    def _give_up(self, error: BaseException) -> None:
        reason = error if isinstance(error, DeltaRTError) else GenerationError(f"the engine has failed: {error!r}")
        for handle in dict.fromkeys(self._handles.values()):
            for index in range(handle.replies):
                handle.put(Delta(index, finish_reason="error"), reason)


def _context(options: EngineOptions, limit: int) -> int:
    wanted = options.max_model_len
    if wanted is None:
        return limit
    if not 1 <= wanted <= limit:
        raise GenerationError(
            f"a context of {wanted} tokens", f"1 to {limit}, the artifact's", "export with a larger context"
        )
    return wanted


def _blind(manifest: Manifest) -> tuple[str, str]:
    """What is expected and what to do where no picture can be seen."""
    if manifest.vision is None:
        return "text: this artifact has no vision graph", "export it with its vision tower"
    return "text: this engine has no plan of the vision graph", "build TensorRT's plans, or use --target ort"


def _marks(tokenizer: Tokenizer) -> Marks | None:
    start = tokenizer.id_of(MESSAGE_START)
    return None if start is None else Marks(start, tokenizer.encode(USER)[0])
