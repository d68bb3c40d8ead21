"""A headless Chromium, driven over the WebDriver protocol."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of an element's id


class Browser:
    """One window. `script` runs JavaScript in the page and returns its value."""

    def __init__(self, session: httpx.Client) -> None:
        self._session = session

    def open(self, url: str) -> None:
        self._session.post("url", json={"url": url}).raise_for_status()

    def script(self, code: str) -> Any:
        answer = self._session.post("execute/sync", json={"script": code, "args": []})
        answer.raise_for_status()
        return answer.json()["value"]

    def click(self, selector: str) -> None:
        self._element(selector, "click", {})

    def type(self, selector: str, text: str) -> None:
        self._element(selector, "value", {"text": text})

    def screenshot(self) -> str:
        """PNG in base64."""
        return str(self._session.get("screenshot").json()["value"])

    def console(self) -> list[str]:
        """Messages of level SEVERE."""
        entries = self._session.post("se/log", json={"type": "browser"}).json()["value"]
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def _element(self, selector: str, action: str, body: dict[str, str]) -> None:
        found = self._session.post("element", json={"using": "css selector", "value": selector})
        found.raise_for_status()
        self._session.post(f"element/{found.json()['value'][ELEMENT]}/{action}", json=body).raise_for_status()


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        pytest.skip("chromium and chromedriver are not installed")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = next(m[1] for line in process.stdout if (m := re.search(r"successfully on port (\d+)", line)))
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=900,700"]
        options = {
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        base = f"http://127.0.0.1:{port}/session"
        made = httpx.post(base, json={"capabilities": {"alwaysMatch": options}}, timeout=60).json()["value"]
        with httpx.Client(base_url=f"{base}/{made['sessionId']}/", timeout=60) as session:
            yield Browser(session)
            httpx.delete(f"{base}/{made['sessionId']}", timeout=60)
    finally:
        process.terminate()
        process.wait(10)
