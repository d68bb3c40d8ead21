"""The routes over the built-in checkpoint: what clients get back, whole and streamed."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deltart.runtime.engine import Engine
from deltart.runtime.server.settings import Limits, Settings
from support.serving import NAME, Served, served
from support.sse import anthropic_content, chat_message, events, response_output

PLANET = [{"role": "user", "content": 'Type "planet" backwards'}]
GREEDY = {"messages": PLANET, "temperature": 0, "max_tokens": 200}
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]


def post(server: Served, path: str, **body: Any) -> Any:
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def stream(server: Served, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = server.client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n") == (path in ("/v1/chat/completions", "/v1/completions"))
    return events(answer.text)


def test_a_chat_is_answered(server: Served) -> None:
    body = post(server, "/v1/chat/completions", **GREEDY)
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "tenalp"
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"]
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    assert (body["object"], body["model"]) == ("chat.completion", NAME)


def test_without_thinking(server: Served) -> None:
    for switch in ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}):
        body = post(server, "/v1/chat/completions", **GREEDY, **switch)
        assert body["choices"][0]["message"]["reasoning_content"] is None
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize("prompt", ["planet", "server", "e = mc²", "日本"])
def test_streams_equal_whole_answers(server: Served, prompt: str) -> None:
    messages = [{"role": "user", "content": f'Type "{prompt}" backwards'}]
    fields = {"messages": messages, "temperature": 0, "max_tokens": 120, "logprobs": True, "top_logprobs": 2}
    body = post(server, "/v1/chat/completions", **fields)
    chunks = stream(server, "/v1/chat/completions", **fields, stream_options={"include_usage": True})
    whole, (choice,) = chat_message(chunks), body["choices"]
    for name in ("content", "reasoning_content"):
        assert whole[name] == (choice["message"][name] or "")
    assert whole["finish_reason"] == choice["finish_reason"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == body["usage"]["completion_tokens"]
    told = [c["logprobs"]["content"] for chunk in chunks for c in chunk["choices"] if c["logprobs"]]
    assert [entry["token"] for entries in told for entry in entries] == [
        e["token"] for e in choice["logprobs"]["content"]
    ]
    items = post(server, "/v1/responses", input=messages, temperature=0, max_output_tokens=120)["output"]
    built = response_output(stream(server, "/v1/responses", input=messages, temperature=0, max_output_tokens=120))
    assert [i["pieces"] for i in built] == [i["content"][0]["text"] for i in items]
    assert [i["pieces"] for i in built if i["type"] == "message"] == ([whole["content"]] if whole["content"] else [])
    thinking = {"type": "enabled", "budget_tokens": 1024}
    ask = {"messages": messages, "temperature": 0, "max_tokens": 120, "thinking": thinking}
    blocks = post(server, "/v1/messages", **ask)["content"]
    built = anthropic_content(stream(server, "/v1/messages", **ask))
    assert [b["pieces"] for b in built] == [b[b["type"]] for b in blocks]
    assert "".join(b["text"] for b in blocks if b["type"] == "text") == whole["content"]


def test_several_replies(server: Served) -> None:
    fields = {"messages": PLANET, "n": 3, "seed": 5, "temperature": 1.5, "max_tokens": 30}
    body = post(server, "/v1/chat/completions", **fields)
    texts = [c["message"]["reasoning_content"] for c in body["choices"]]
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    chunks = stream(server, "/v1/chat/completions", **fields)
    assert [chat_message(chunks, i)["reasoning_content"] for i in range(3)] == [text or "" for text in texts]
    assert body["usage"]["prompt_tokens"] < 50


def test_logprobs_are_probabilities(server: Served) -> None:
    fields = {**GREEDY, "logprobs": True, "top_logprobs": 5}
    (choice,) = post(server, "/v1/chat/completions", **fields)["choices"]
    for entry in choice["logprobs"]["content"]:
        alternatives = [e["logprob"] for e in entry["top_logprobs"]]
        assert len(alternatives) == 5 and alternatives == sorted(alternatives, reverse=True)
        assert entry["logprob"] == max(alternatives) <= 0
        assert sum(map(math.exp, alternatives)) <= 1 + 1e-6
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]


def test_stop_strings_never_show(server: Served) -> None:
    text = post(server, "/v1/chat/completions", **GREEDY, enable_thinking=False)["choices"][0]["message"]["content"]
    stop = text[2:4]
    (choice,) = post(server, "/v1/chat/completions", **GREEDY, enable_thinking=False, stop=stop)["choices"]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    ask = {**GREEDY, "stop_sequences": [stop]}
    body = post(server, "/v1/messages", **ask)
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", stop)


def test_a_length_limit(server: Served) -> None:
    body = post(server, "/v1/chat/completions", **{**GREEDY, "max_tokens": 3})
    assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 3)
    body = post(server, "/v1/responses", input="hi", max_output_tokens=3)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert post(server, "/v1/messages", messages=PLANET, max_tokens=3)["stop_reason"] == "max_tokens"


def test_max_tokens_beyond_the_context_is_clamped(server: Served) -> None:
    body = post(server, "/v1/chat/completions", **{**GREEDY, "max_tokens": 81920})
    assert body["choices"][0]["finish_reason"] == "stop"


def test_a_prompt_beyond_the_context_is_refused(server: Served) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 9000}]}
    answer = server.client.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "8192" in error["expected"]


def test_a_conversation_comes_back_from_the_cache(server: Served) -> None:
    first = post(server, "/v1/chat/completions", **GREEDY)
    messages = [*PLANET, first["choices"][0]["message"], {"role": "user", "content": 'Type "server" backwards'}]
    body = post(server, "/v1/chat/completions", **{**GREEDY, "messages": messages})
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] > 10


def test_what_odd_clients_send(server: Served) -> None:
    """Absent content, results without an id, nulls, invented fields, arguments as text."""
    call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "reasoning_content": "I look.", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "name": "now", "extra": {"function_id": "c"}, "id": "c"},
    ]
    for tools in (None, TOOLS):
        fields = {"messages": messages, "tools": tools, "top_p": None, "verbosity": "low", "max_tokens": 4}
        assert post(server, "/v1/chat/completions", **fields)["choices"]


def test_tools_stay_in_the_prompt_but_are_not_called(server: Served) -> None:
    fields = {"messages": PLANET, "tools": TOOLS, "max_tokens": 1}
    auto = post(server, "/v1/chat/completions", **fields)
    none = post(server, "/v1/chat/completions", **fields, tool_choice="none")
    assert auto["usage"]["prompt_tokens"] == none["usage"]["prompt_tokens"]


def test_completions(server: Served) -> None:
    body = post(server, "/v1/completions", prompt=["Once", "Once"], temperature=0, max_tokens=5, n=2, ignore_eos=True)
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert len({c["text"] for c in body["choices"]}) == 1
    assert body["usage"]["completion_tokens"] == 20
    chunks = stream(server, "/v1/completions", prompt="Once", temperature=0, max_tokens=5, ignore_eos=True)
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == body["choices"][0]["text"]


def test_echoed_prompts_have_logprobs(server: Served, engine: Engine) -> None:
    """What evaluation harnesses read: token ids in, and the logprob of each prompt token but the first."""
    ids = engine.tokenizer.encode("Capital of France: Paris")
    fields = {"prompt": [ids], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    (choice,) = post(server, "/v1/completions", **fields)["choices"]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert choice["text"].startswith("Capital of France: Paris")
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["token_logprobs"][0] is None and all(p <= 0 for p in logprobs["token_logprobs"][1:])
    assert logprobs["text_offset"] == [len("".join(logprobs["tokens"][:i])) for i in range(len(ids) + 1)]
    chunks = stream(server, "/v1/completions", **fields)
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == choice["text"]


def test_tokens(server: Served, engine: Engine) -> None:
    ids = engine.tokenizer.encode("hello <|im_end|>")
    body = post(server, "/tokenize", prompt="hello <|im_end|>", return_token_strs=True)
    assert (body["tokens"], body["count"]) == (ids, len(ids)) and body["token_strs"][-1] == "<|im_end|>"
    assert post(server, "/detokenize", tokens=ids)["prompt"] == "hello <|im_end|>"
    rendered = post(server, "/tokenize", messages=PLANET)["count"]
    assert post(server, "/v1/messages/count_tokens", messages=PLANET, thinking={"type": "enabled"}) == {
        "input_tokens": rendered
    }
    assert post(server, "/v1/chat/completions", **GREEDY)["usage"]["prompt_tokens"] == rendered


def test_information(server: Served) -> None:
    get = server.client.get
    assert get("/v1/models").json()["data"][0]["id"] == NAME
    assert get(f"/v1/models/{NAME}").json()["max_model_len"] == 8192
    for path in ("/health", "/health/live", "/health/ready", "/version", "/server_info", "/model_info"):
        assert get(path).status_code == 200, path
    assert get("/model_info").json()["has_image_understanding"] is False
    paths = get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/metrics"} <= set(paths)


def test_metrics(server: Served) -> None:
    def samples() -> dict[str, float]:
        text = server.client.get("/metrics").text
        return {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}

    before = samples()
    usage = post(server, "/v1/chat/completions", **GREEDY)["usage"]
    after = samples()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["vllm:generation_tokens_total"] >= usage["completion_tokens"]
    assert grown["vllm:time_to_first_token_seconds_count"] == 1
    assert grown["vllm:inter_token_latency_seconds_count"] == usage["completion_tokens"] - 1
    assert grown["vllm:e2e_request_latency_seconds_count"] == 1
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {"model": "gpt-5", "messages": PLANET}, 404),
        ("/v1/chat/completions", {"messages": [{"role": "root", "content": "x"}]}, 400),
        ("/v1/chat/completions", {"messages": PLANET, "temperature": -1}, 400),
        ("/v1/chat/completions", {"messages": PLANET, "top_p": 0}, 400),
        ("/v1/chat/completions", {"messages": PLANET, "max_tokens": 0}, 400),
        ("/v1/completions", {"prompt": [-1]}, 400),
        ("/v1/completions", {"prompt": [10**9]}, 400),
        ("/v1/completions", {"prompt": ""}, 400),
        ("/detokenize", {"tokens": [10**9]}, 400),
        ("/v1/nothing", {}, 404),
        ("/v1/models", {}, 405),
    ],
)
def test_refusals(server: Served, path: str, body: dict[str, Any], status: int) -> None:
    answer = server.client.post(path, json=body)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert {"message", "type", "param", "code", "found", "expected", "hint"} == set(error)


def test_parameters_out_of_range_are_named(server: Served) -> None:
    for name, value in {"temperature": -1, "top_p": 2, "min_p": -1, "presence_penalty": 3, "min_tokens": -1}.items():
        answer = server.client.post("/v1/chat/completions", json={**GREEDY, name: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_anthropic_refusals_have_their_own_shape(server: Served) -> None:
    body = server.client.post("/v1/messages", json={"max_tokens": 1, "messages": []}).json()
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"


def test_request_ids(server: Served) -> None:
    assert server.client.get("/version", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    assert server.client.get("/version", headers={"x-request-id": "a" * 500}).headers["x-request-id"].startswith("req_")


def running(server: Served, replies: int) -> bool:
    """Waits until so many replies have a slot, for a few seconds at most."""
    deadline = time.monotonic() + 10
    while server.service.engine.metrics.running != replies and time.monotonic() < deadline:
        time.sleep(0.005)
    return server.service.engine.metrics.running == replies


def test_a_client_that_leaves_frees_its_slot(server: Served) -> None:
    fields = {"messages": PLANET, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with server.client.stream("POST", "/v1/chat/completions", json=fields):
        assert running(server, 1)
    assert running(server, 0) and not server.service.jobs


def test_a_client_that_leaves_before_a_whole_answer_frees_its_slot(server: Served) -> None:
    fields = {"messages": PLANET, "max_tokens": 1900, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=fields, timeout=0.3)
    assert running(server, 0) and not server.service.jobs


def test_keep_alives_while_nothing_comes(engine: Engine) -> None:
    with served(engine, Settings((NAME,), keep_alive_seconds=0.02)) as server:
        fields = {"messages": PLANET, "max_tokens": 1900, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/chat/completions", json={**fields, "n": 4}):
            assert running(server, 4)
            with server.client.stream("POST", "/v1/chat/completions", json=fields) as answer:
                lines = [line for line, _ in zip(answer.iter_lines(), range(8), strict=False)]
        assert ": keep-alive" in lines
        assert running(server, 0)


def test_deadlines_and_operators_limits(engine: Engine) -> None:
    with served(engine, Settings((NAME,), request_seconds=0.05, limits=Limits(max_tokens=1500))) as server:
        fields = {"messages": PLANET, "max_tokens": 1500, "ignore_eos": True}
        assert server.client.post("/v1/chat/completions", json=fields).status_code == 504
        last = events(server.client.post("/v1/chat/completions", json={**fields, "stream": True}).text)[-1]
        assert last["error"]["type"] == "timeout_error"
    with served(engine, Settings((NAME,), limits=Limits(max_tokens=2))) as server:
        assert post(server, "/v1/chat/completions", **GREEDY)["usage"]["completion_tokens"] == 2


def test_reasoning_that_a_client_carries_comes_back(server: Served) -> None:
    body = post(server, "/v1/responses", input=PLANET, temperature=0, include=["reasoning.encrypted_content"])
    items = [
        {k: v for k, v in item.items() if k != "content" or item["type"] != "reasoning"} for item in body["output"]
    ]
    more = [*PLANET, *items, {"role": "user", "content": "And again?"}]
    kwargs = {"chat_template_kwargs": {"preserve_thinking": True}}
    with_it = post(server, "/v1/responses", input=more, max_output_tokens=1, **kwargs)["usage"]["input_tokens"]
    without = [item for item in more if item.get("type") != "reasoning"]
    lost = post(server, "/v1/responses", input=without, max_output_tokens=1, **kwargs)["usage"]["input_tokens"]
    assert with_it > lost
    json.dumps(body)
