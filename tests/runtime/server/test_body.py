from __future__ import annotations

import logging

import pytest

from deltart.runtime.server.body import convert, decode
from deltart.runtime.server.chat.request import ChatRequest
from deltart.runtime.server.errors import RequestError, anthropic_body, headers_of, openai_body

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\x00", b"\xff", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b'"\\ud800"', b"{'a': 1}"],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        decode(body, 100)
    assert refused.value.status == 400


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 101 + b"]" * 101])
def test_deep_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        decode(body, 100)


def test_json_within_the_depth_is_read() -> None:
    assert decode(b"[" * 100 + b"]" * 100, 100)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": MESSAGES, "temperature": "1"}, "temperature"),
        ({"messages": MESSAGES, "temperature": True}, "temperature"),
        ({"messages": MESSAGES, "max_tokens": 1.5}, "max_tokens"),
        ({"messages": MESSAGES, "stop": [1]}, "stop[0]"),
        ({"messages": MESSAGES, "stream": 1}, "stream"),
        ({"messages": MESSAGES, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        convert(fields, ChatRequest)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_null_is_absent_and_unknown_fields_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "deltart.server")
    fields = convert({"messages": MESSAGES, "tools": None, "top_p": None, "verbosity": "low"}, ChatRequest)
    assert fields.tools is None and fields.top_p is None
    assert "'verbosity'" in caplog.text and "top_p" not in caplog.text


def test_errors_have_the_shape_of_each_api() -> None:
    error = RequestError("a", "b", "c", param="p", status=429, code="x", retry_after=1.2)
    body = openai_body(error)["error"]
    assert {
        "message": "a; expected b; c",
        "type": "rate_limit_error",
        "param": "p",
        "code": "x",
    }.items() <= body.items()
    assert (body["found"], body["expected"], body["hint"]) == ("a", "b", "c")
    assert anthropic_body(error)["error"] == {"type": "rate_limit_error", "message": "p: a; expected b; c"}
    assert headers_of(error) == {"Retry-After": "2"}
