"""The chat page in a real browser: a reply with its thinking folded, its rate, the stop button, pictures, videos."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import Browser, browser
from PIL import Image
from serve_process import serving

from deltart.export.pipeline import export_checkpoint
from support.seeing import Seeing
from support.vision import photograph
from tools.nano.sight.export import CHECKPOINT as SIGHT
from tools.nano.sight.scenes import Scene, Thing, draw

BUTTON, RATE = "document.getElementById('send').textContent", "document.querySelector('.rate').textContent"
# Every request asks for a reply that does not end by itself.
ENDLESS = """
const plain = window.fetch, endless = {ignore_eos: true, max_tokens: 20000};
const longer = (given) => ({...given, body: JSON.stringify({...JSON.parse(given.body), ...endless})});
window.fetch = (url, given) => plain(url, given && given.body ? longer(given) : given);
"""
# The model's reply is markup.
MARKUP = """
const content = "<img src=x onerror=document.title=1><scr" + "ipt>document.title=2</scr" + "ipt>";
const text = "data: " + JSON.stringify({choices: [{delta: {content}}]}) + "\\n\\n";
window.fetch = async () => new Response(text);
"""
# Requests are greedy, and what they hold is kept.
GREEDY = """
window.sent = [];
const plain = window.fetch;
window.fetch = (url, given) => {
  if (given && given.body) window.sent.push(given.body = JSON.stringify({...JSON.parse(given.body), temperature: 0}));
  return plain(url, given);
};
"""
pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Browser]:
    with browser() as page:
        page.open(address)
        yield page


def until(page: Browser, condition: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not page.script(f"return Boolean({condition})"):
        assert time.monotonic() < deadline, page.script("return document.body.innerText")
        time.sleep(0.05)


def test_a_reply(page: Browser) -> None:
    until(page, "document.getElementById('model').textContent === 'deltart-nano'")
    page.type("#input", 'Type "planet" backwards')
    page.click("#send")
    until(page, f"{BUTTON} === 'Send' && {RATE}")
    assert page.script("return document.querySelector('.user').textContent") == 'Type "planet" backwards'
    assert page.script("return document.querySelector('.reply .text').textContent").strip()
    assert page.script("return document.querySelector('details').open") is False
    assert page.script("return document.querySelector('details div').textContent")
    assert "tokens/s" in page.script(f"return {RATE}")
    assert page.script("return document.getElementById('attach').hidden")  # the model does not see
    assert not page.console()


def test_the_stop_button(page: Browser) -> None:
    page.click("#clear")
    page.script(ENDLESS)
    page.type("#input", "hi\n")
    until(page, f"{BUTTON} === 'Stop' && {RATE}")
    page.click("#send")
    until(page, f"{BUTTON} === 'Send'")
    assert "stopped" in page.script(f"return {RATE}")


def test_what_a_model_writes_is_text(page: Browser, address: str) -> None:
    page.open(address)
    page.script(MARKUP)
    page.type("#input", "hi\n")
    until(page, "(document.querySelector('.reply .text') || document.body).textContent.includes('<img')")
    assert page.script("return document.querySelectorAll('.reply img').length") == 0
    assert page.script("return document.title") == "DeltaRT"


def test_a_picture_goes_along(page: Browser, seeing: Seeing, tmp_path: Path) -> None:
    Image.fromarray(photograph(40, 60, 8)).save(tmp_path / "a.png")
    with serving(seeing.artifact, "--max-tokens", "12", "--max-model-len", "1024") as address:
        page.open(address)
        until(page, "!document.getElementById('attach').hidden")
        page.script(GREEDY)
        page.type("#files", str(tmp_path / "a.png"))
        until(page, "document.querySelector('#attached img')?.naturalWidth === 60")
        page.type("#input", "what?\n")
        until(page, f"{BUTTON} === 'Send' && {RATE}")
        assert page.script("return document.querySelector('.user img').naturalHeight") == 40
        assert page.script("return document.querySelectorAll('#attached img').length") == 0
        body = json.loads(page.script("return window.sent[0]"))
        picture, question = body["messages"][0]["content"]
        sent = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
        assert sent == (tmp_path / "a.png").read_bytes() and question == {"type": "text", "text": "what?"}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body | {"stream": False, "stream_options": None})
        expected = answer.json()["choices"][0]["message"]
        assert expected["content"]
        assert page.script("return document.querySelector('.reply .text').textContent") == expected["content"]
        assert not page.script("return document.querySelector('.reply .error')")
        assert not page.console()


def clip(moves: int) -> bytes:
    """An MP4 of two seconds: a circle that moves by so many pixels a frame."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    first, target = Scene(96, 64, 40, (Thing("circle", "red", 48 - 3 * moves, 32, 14),), 5), io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 64, 96, "yuv420p", 10**6
        for index in range(8):
            frame = draw(first.moved(moves * index, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def test_a_video_goes_along_and_is_understood(page: Browser, tmp_path: Path) -> None:
    export_checkpoint(SIGHT, tmp_path / "artifact")
    for name, moves in (("right", 8), ("left", -8)):
        (tmp_path / f"{name}.mp4").write_bytes(clip(moves))
    with serving(tmp_path / "artifact", "--max-tokens", "32", "--max-model-len", "1024") as address:
        page.open(address)
        until(page, "!document.getElementById('attach').hidden")
        page.script(GREEDY)
        for turn, name in enumerate(("right", "left")):
            page.type("#files", str(tmp_path / f"{name}.mp4"))
            until(page, f"document.querySelector('#attached').textContent.includes('{name}.mp4')")
            page.type("#input", "Which way does it move?\n")
            until(page, f"{BUTTON} === 'Send' && document.querySelectorAll('.rate').length > {turn}")
            video, question = json.loads(page.script(f"return window.sent[{turn}]"))["messages"][-1]["content"]
            sent = base64.b64decode(video["video_url"]["url"].removeprefix("data:video/mp4;base64,"))
            assert sent == (tmp_path / f"{name}.mp4").read_bytes()
            assert question == {"type": "text", "text": "Which way does it move?"}
            assert page.script("return [...document.querySelectorAll('.reply .text')].at(-1).textContent") == name
        assert f"{name}.mp4" in page.script("return [...document.querySelectorAll('.user')].at(-1).textContent")
        assert not page.script("return document.querySelector('.reply .error')")
        assert not page.console()
