"""The chat page in a real browser: a reply with its thinking folded, its rate, the stop button, a new chat."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from browser import Browser, browser

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
    until(page, "document.getElementById('send').textContent === 'Send' && document.querySelector('.rate').textContent")
    assert page.script("return document.querySelector('.user').textContent") == 'Type "planet" backwards'
    assert page.script("return document.querySelector('.reply .text').textContent").strip()
    assert page.script("return document.querySelector('details').open") is False
    assert page.script("return document.querySelector('details div').textContent")
    assert "tokens/s" in page.script("return document.querySelector('.rate').textContent")
    assert not page.console()


def test_the_stop_button(page: Browser) -> None:
    page.click("#clear")
    page.script("const plain = window.fetch; window.fetch = (url, given) => plain(url, given && given.body ? {...given, body: "
                "JSON.stringify({...JSON.parse(given.body), ignore_eos: true, max_tokens: 20000})} : given)")  # fmt: skip
    page.type("#input", "hi\n")
    until(page, "document.querySelector('.rate').textContent && document.getElementById('send').textContent === 'Stop'")
    page.click("#send")
    until(page, "document.getElementById('send').textContent === 'Send'")
    assert "stopped" in page.script("return document.querySelector('.rate').textContent")


def test_what_a_model_writes_is_text(page: Browser, address: str) -> None:
    page.open(address)
    page.script("window.fetch = async () => new Response('data: ' + JSON.stringify({choices: [{delta: {content: "
                "'<img src=x onerror=document.title=1><script>document.title=2</scr' + 'ipt>'}}]}) + '\\n\\n')")  # fmt: skip
    page.type("#input", "hi\n")
    until(
        page,
        "document.querySelector('.reply .text') && document.querySelector('.reply .text').textContent.includes('<img')",
    )
    assert page.script("return document.querySelectorAll('.reply img').length") == 0
    assert page.script("return document.title") == "DeltaRT"
