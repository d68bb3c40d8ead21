"""Pictures and videos through the APIs: every form is seen as the engine sees it, within the server's limits."""

from __future__ import annotations

import base64
import io
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.server.settings import Limits, Settings
from support.seeing import Seeing
from support.serving import NAME, Served, served
from support.vision import photograph

PIXELS = photograph(40, 60, 8)
SETTINGS = Settings((NAME,), limits=Limits(media=3, media_bytes=20_000), media_hosts=("127.0.0.1",))


def data_url(pixels: np.ndarray = PIXELS) -> str:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


@pytest.fixture(scope="module")
def sighted(seeing: Seeing) -> Iterator[Served]:
    options = EngineOptions(slots=2, max_model_len=1024)
    with Engine.open(seeing.artifact, threads=1, options=options) as engine, served(engine, SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def expected(sighted: Served) -> str:
    """What the engine says of the picture."""
    content = [{"type": "image", "image": PIXELS}, {"type": "text", "text": "what?"}]
    params = SamplingParams(temperature=0, max_new_tokens=12)
    return Chats(sighted.service.engine).reply([{"role": "user", "content": content}], params=params).completion.text


def chat(server: Served, *parts: dict[str, Any], **fields: Any) -> Any:
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what?"}]}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 12, **fields}
    return server.client.post("/v1/chat/completions", json=body)


def said(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    return (message.get("reasoning_content") or "") + (message["content"] or "")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": data_url(), "detail": "auto"}},
        {"type": "image_url", "image_url": data_url()},
        {"type": "input_image", "image_url": data_url()},
        {"type": "image", "image": data_url()},
    ],
)
def test_pictures_of_chat_completions(part: dict[str, Any], sighted: Served, expected: str) -> None:
    assert said(chat(sighted, part)).strip() == expected.strip()


def test_pictures_of_the_other_apis(sighted: Served, expected: str) -> None:
    part = {"type": "input_image", "image_url": data_url()}
    body = {"input": [{"role": "user", "content": [part, {"type": "input_text", "text": "what?"}]}]}
    answer = sighted.client.post("/v1/responses", json={**body, "temperature": 0, "max_output_tokens": 12})
    assert answer.status_code == 200, answer.text
    texts = [c["text"] for item in answer.json()["output"] for c in item.get("content") or item.get("summary") or ()]
    assert "".join(texts).strip() == expected.strip()
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data_url().split(",")[1]}}
    messages = [{"role": "user", "content": [block, {"type": "text", "text": "what?"}]}]
    answer = sighted.client.post(
        "/v1/messages", json={"model": NAME, "messages": messages, "temperature": 0, "max_tokens": 12}
    )
    assert answer.status_code == 200, answer.text
    assert "".join(block.get("text", "") for block in answer.json()["content"]).strip() == expected.strip()


def test_options_of_the_processor(sighted: Served) -> None:
    url = {"type": "image_url", "image_url": {"url": data_url(photograph(64, 64))}}
    plain, small = (chat(sighted, url, **more) for more in ({}, {"mm_processor_kwargs": {"max_pixels": 1024}}))
    counts = [answer.json()["usage"]["prompt_tokens"] for answer in (plain, small)]
    assert counts[0] - counts[1] == 64 - 16
    for wrong in ({"max_pixels": 2**40}, {"max_pixels": "1"}, {"device": "cuda"}):
        answer = chat(sighted, url, mm_processor_kwargs=wrong)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_same_picture_again_is_not_read_again(sighted: Served) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(photograph(50, 50, 99))}}
    first, second = (chat(sighted, part).json()["usage"] for _ in range(2))
    assert second["prompt_tokens_details"]["cached_tokens"] > 36
    assert first["prompt_tokens"] == second["prompt_tokens"]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "data or http"),
        ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "data or http"),
        ({"type": "image", "image": "/etc/passwd"}, "data or http"),
        ({"type": "video", "video": "/etc/passwd"}, "data or http"),
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}, "not a public one"),
        ({"type": "image_url", "image_url": {"url": "http://example.com/x.png"}}, "does not fetch from"),
        ({"type": "image_url", "image_url": {}}, "without a URL"),
        ({"type": "video", "video": [[0]]}, "without a URL"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "picture that can't be read"),
        ({"type": "image_url", "image_url": {"url": data_url(np.zeros((1, 500, 3), np.uint8))}}, "500 x 1 pixels"),
        ({"type": "image_url", "image_url": {"url": "data:;base64," + "A" * 40_000}}, "more than 20000 bytes"),
        ({"type": "input_audio", "input_audio": {"data": ""}}, "'input_audio'"),
    ],
)
def test_what_is_refused(part: dict[str, Any], words: str, sighted: Served) -> None:
    answer = chat(sighted, part)
    assert answer.status_code in (400, 413), answer.text
    assert words in answer.json()["error"]["message"]


def test_a_file_that_loses_its_decoder_is_refused_and_the_next_is_answered(sighted: Served, expected: str) -> None:
    """The child that decodes is stopped, as by a file that has it spin, or killed, as by one that crashes it."""
    part = {"type": "image_url", "image_url": {"url": data_url()}}
    settings = replace(SETTINGS, limits=replace(SETTINGS.limits, image_seconds=3.0))
    with served(sighted.service.engine, settings) as server:
        assert said(chat(server, part)).strip() == expected.strip()
        child = server.service._decoder._idle[-1]._process
        child.send_signal(signal.SIGSTOP)
        answer = chat(server, part)
        assert answer.status_code == 400
        assert "a picture that takes more than 3 s to decode" in answer.json()["error"]["message"]
        assert child.poll() == -signal.SIGKILL
        assert said(chat(server, part)).strip() == expected.strip()
        child = server.service._decoder._idle[-1]._process
        child.kill()
        child.wait()
        assert said(chat(server, part)).strip() == expected.strip()
        child = server.service._decoder._idle[-1]._process
    assert child.poll() is not None


def test_too_many_pictures(sighted: Served) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url()}}
    assert chat(sighted, *[part] * 3).status_code == 200
    answer = chat(sighted, *[part] * 4)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].content[3]")


def test_a_prompt_that_pictures_make_too_long(sighted: Served) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(np.zeros((64, 64, 3), np.uint8))}}
    answer = chat(sighted, part, {"type": "text", "text": "long " * 1000})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "image 1: 64 tokens" in answer.json()["error"]["message"]


def test_videos(sighted: Served) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for seed in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(photograph(32, 48, seed), format="rgb24")))
        container.mux(stream.encode())
    url = "data:video/mp4;base64," + base64.b64encode(target.getvalue()).decode()
    found = said(chat(sighted, {"type": "video_url", "video_url": {"url": url}}))
    content = [{"type": "video", "video": target.getvalue()}, {"type": "text", "text": "what?"}]
    params = SamplingParams(temperature=0, max_new_tokens=12)
    expected = Chats(sighted.service.engine).reply([{"role": "user", "content": content}], params=params)
    assert found.strip() == expected.completion.text.strip()


def test_a_model_is_said_to_see_where_its_backend_does(sighted: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sighted.client.get("/model_info").json()["has_image_understanding"] is True
    monkeypatch.setattr(type(sighted.service.engine), "sees", False)  # a GPU's engine of an artifact with vision
    assert sighted.client.get("/model_info").json()["has_image_understanding"] is False
