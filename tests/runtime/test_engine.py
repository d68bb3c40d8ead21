"""The engine with the built-in checkpoint: many clients at once, each answered as if it were alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import deltart
from deltart.errors import ArtifactError, ClosedError, GenerationError, QueueFullError
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sequence import Request

GREEDY = SamplingParams(temperature=0, max_new_tokens=40)
QUESTION = [{"role": "user", "content": 'Type "planet" backwards'}]


@pytest.fixture(scope="module")
def engine(nano_artifact: Path) -> Iterator[Engine]:
    with deltart.load(str(nano_artifact), threads=1, options=EngineOptions(slots=4, cache_bytes=50_000_000)) as opened:
        yield opened


def ids_of(engine: Engine, text: str = 'Type "planet" backwards') -> tuple[int, ...]:
    return Chats(engine).prompt([{"role": "user", "content": text}]).ids


def test_answers(engine: Engine) -> None:
    reply = Chats(engine).reply(QUESTION, params=GREEDY)
    assert reply.reply.content == "tenalp" and reply.completion.finish_reason == "stop"
    assert reply.message()["reasoning_content"] == reply.reply.reasoning
    usage = reply.completion.usage
    assert usage.completion_tokens == len(reply.completion.tokens) and 0 < usage.reasoning_tokens < 40


def test_every_way_to_ask_gives_one_answer(engine: Engine) -> None:
    ids = ids_of(engine)
    expected = engine.generate(ids, GREEDY).text
    assert "".join(engine.stream(ids, GREEDY)) == expected
    assert engine.submit(Request(ids, GREEDY)).result()[0].text == expected

    async def ask() -> tuple[str, str]:
        pieces = [piece async for piece in engine.astream(ids, GREEDY)]
        return (await engine.agenerate(ids, GREEDY)).text, "".join(pieces)

    assert asyncio.run(ask()) == (expected, expected)


def test_clients_in_many_threads_and_loops(engine: Engine) -> None:
    ids = ids_of(engine)
    params = [SamplingParams(temperature=1.0, seed=seed, max_new_tokens=30) for seed in range(12)]
    expected = [engine.generate(ids, each).tokens for each in params]
    found: list[list[int] | None] = [None] * len(params)

    def ask(number: int) -> None:
        if number % 2:
            found[number] = engine.generate(ids, params[number]).tokens
        else:
            found[number] = asyncio.run(engine.agenerate(ids, params[number])).tokens

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(params))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected


def test_several_replies_to_one_prompt(engine: Engine) -> None:
    ids, params = ids_of(engine), SamplingParams(temperature=1.3, seed=5, max_new_tokens=20)
    replies = engine.submit(Request(ids, params, n=3)).result()
    singles = [engine.generate(ids, replace(params, seed=5 + index)).tokens for index in range(3)]
    assert [reply.tokens for reply in replies] == singles


def test_logprobs_are_those_of_the_model(engine: Engine, nano_artifact: Path) -> None:
    """Against torch's log_softmax of the logits of one call over prompt and reply."""
    ids = ids_of(engine)
    handle = engine.submit(Request(ids, GREEDY, logprobs=3, prompt_logprobs=2))
    (reply,) = handle.result()
    tokens = [*ids, *reply.tokens]
    backend = OrtBackend(nano_artifact, threads=1)
    inputs = text_inputs(
        np.array([tokens]), np.zeros(1, np.int32), logit_index=np.arange(len(tokens))[None].astype(np.int64)
    )
    (logits,) = backend.run("model", backend.new_state("model", 1, 256), inputs, ["logits"])
    known = engine.vocab_limit
    rows = torch.log_softmax(torch.tensor(logits[0, :, :known], dtype=torch.float64), -1)
    for place, entry in enumerate([*handle.prompt_logprobs, *reply.logprobs]):
        assert entry is not None and entry.token == tokens[place + 1]
        assert abs(entry.logprob - float(rows[place, entry.token])) < 1e-4
        best = torch.topk(rows[place], len(entry.top))
        assert [token for token, _ in entry.top] == best.indices.tolist()
        assert np.allclose([value for _, value in entry.top], best.values, atol=1e-4)
    assert len(handle.prompt_logprobs) == len(ids) - 1 and len(reply.logprobs) == len(reply.tokens)


def test_cancelling_frees_the_slot(engine: Engine) -> None:
    endless = SamplingParams(temperature=0, max_new_tokens=100_000, ignore_eos=True)
    handles = [engine.submit(Request(ids_of(engine), endless)) for _ in range(6)]  # more than there are slots
    next(iter(handles[0]))
    for handle in handles:
        handle.cancel()
        handle.cancel()
    assert {handle.result(20)[0].finish_reason for handle in handles} == {"cancelled"}
    assert engine.metrics.running == 0 and engine.metrics.waiting == 0


def test_a_stream_that_is_left_is_cancelled(engine: Engine) -> None:
    stream = engine.stream(ids_of(engine), SamplingParams(temperature=0, max_new_tokens=100_000, ignore_eos=True))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    _until(lambda: not engine.metrics.running)


def test_deadlines(engine: Engine) -> None:
    endless = SamplingParams(temperature=0, max_new_tokens=100_000, ignore_eos=True)
    request = Request(ids_of(engine), endless, deadline=time.monotonic() + 0.2)
    assert engine.submit(request).result(20)[0].finish_reason == "timeout"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(()), "empty"),
        (Request((1, 10**7)), "token 10000000"),
        (Request((-1,)), "token -1"),
        (Request((1,) * 300_000), "300000 tokens"),
        (Request((1,), n=0), "n = 0"),
    ],
)
def test_requests_that_can_not_be_served(engine: Engine, request_: Request, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        engine.submit(request_)


def test_a_full_queue_and_a_closing_engine(nano_artifact: Path) -> None:
    engine = deltart.load(str(nano_artifact), threads=1, options=EngineOptions(slots=1, queue=2))
    endless = SamplingParams(temperature=0, max_new_tokens=100_000, ignore_eos=True)
    ids = ids_of(engine)
    handles = [engine.submit(Request(ids, endless))]
    _until(lambda: engine.metrics.running == 1)
    with pytest.raises(QueueFullError):
        for _ in range(4):
            handles.append(engine.submit(Request(ids, endless)))
    began = time.monotonic()
    engine.close(drain_seconds=0.2)
    assert time.monotonic() - began < 5
    assert {handle.result(1)[0].finish_reason for handle in handles} == {"cancelled"}
    with pytest.raises(ClosedError):
        engine.submit(Request(ids, GREEDY))
    engine.close()


def test_closing_lets_replies_end(nano_artifact: Path) -> None:
    engine = deltart.load(str(nano_artifact), threads=1)
    handle = engine.submit(Request(ids_of(engine), GREEDY))
    engine.close(drain_seconds=60)
    assert handle.result(0)[0].finish_reason == "stop"


def test_a_failing_device_leaves_no_client_waiting(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = deltart.load(str(nano_artifact), threads=1)
    monkeypatch.setattr(engine._slots, "step", lambda: 1 / 0)
    handles = [engine.submit(Request(ids_of(engine), GREEDY, n=2)) for _ in range(3)]
    for handle in handles:
        with pytest.raises(GenerationError, match="the engine has failed"):
            handle.result(20)
    with pytest.raises(ClosedError, match="has failed"):
        engine.submit(Request(ids_of(engine), GREEDY))


@pytest.mark.parametrize("preserve", [False, True])
def test_turns_are_equal_with_and_without_kept_prefixes(engine: Engine, nano_artifact: Path, preserve: bool) -> None:
    turns = ["Hello!", 'Type "sun" backwards', "What is 3 + 4?"]
    with deltart.load(str(nano_artifact), threads=1, options=EngineOptions(slots=1, cache_bytes=0)) as plain:
        told = [_talk(each, turns, preserve) for each in (engine, plain)]
    assert told[0][0] == told[1][0]
    assert all(cached > 0 for cached in told[0][1][1:]) and not any(told[1][1])


def _talk(engine: Engine, turns: list[str], preserve: bool) -> tuple[list[dict[str, object]], list[int]]:
    chats, messages, cached = Chats(engine), list[dict[str, object]](), list[int]()
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        reply = chats.reply(messages, params=GREEDY, preserve_thinking=preserve)
        messages.append(reply.message())
        cached.append(reply.completion.usage.cached_tokens)
    return messages, cached


def test_a_saved_prefix_goes_on_in_another_engine(engine: Engine, nano_artifact: Path, tmp_path: Path) -> None:
    ids = ids_of(engine, "What is the capital of France?")
    expected = engine.generate(ids, GREEDY).tokens
    saved = engine.save_prefix(ids, tmp_path / "state")
    assert 0 < saved < len(ids)
    with deltart.load(str(nano_artifact), threads=1) as other:
        assert other.load_prefix(tmp_path / "state") == saved
        completion = other.generate(ids, GREEDY)
    assert completion.tokens == expected and completion.usage.cached_tokens == saved


def test_sessions_that_are_called_in_turn_leave_the_cores_to_each_other(nano_artifact: Path) -> None:
    with deltart.load(str(nano_artifact), threads=2, options=EngineOptions(slots=1, draft_tokens=1)) as opened:
        assert isinstance(opened.backend, OrtBackend) and len(opened.backend._sessions) == 2
        for session in opened.backend._sessions.values():
            assert session.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"


def test_an_engine_without_drafts_opens_no_mtp_graph_and_answers_the_same(
    engine: Engine, nano_artifact: Path, tmp_path: Path
) -> None:
    ids = ids_of(engine, "What is the capital of France?")
    expected = engine.generate(ids, GREEDY).tokens
    saved = engine.save_prefix(ids, tmp_path / "with")
    with deltart.load(str(nano_artifact), threads=1, options=EngineOptions(slots=1, draft_tokens=0)) as other:
        assert other.generate(ids, GREEDY).tokens == expected
        assert isinstance(other.backend, OrtBackend) and list(other.backend._sessions) == ["model"]
        assert other.save_prefix(ids, tmp_path / "without") == saved
        assert (tmp_path / "without").stat().st_size < (tmp_path / "with").stat().st_size
        assert other.load_prefix(tmp_path / "with") == saved
    with deltart.load(str(nano_artifact), threads=1, options=EngineOptions(slots=1, draft_tokens=0)) as other:
        other.load_prefix(tmp_path / "with")
        completion = other.generate(ids, GREEDY)
        assert completion.tokens == expected and completion.usage.cached_tokens == saved
    with pytest.raises(ArtifactError, match=r"makes no drafts.*\n.*MTP head"):
        engine.load_prefix(tmp_path / "without")


def _until(condition: object) -> None:
    for _ in range(400):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to pass within 8 s")
