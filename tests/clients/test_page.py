"""The chat page in a real browser: a reply with its thinking folded, its rate, the stop button, a new chat."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from browser import Browser, browser

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
