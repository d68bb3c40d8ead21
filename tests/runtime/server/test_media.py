"""What may be fetched for an image: forms that server-side request forgery takes, and bounds."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deltart.runtime.server import media
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.media import public_address, read_media, refuse_media
from deltart.runtime.server.settings import Limits, Settings

DATA = b"\x89PNG"
SETTINGS = Settings(("m",), media_hosts=("images.example", "127.0.0.1", "2130706433", "::1", "localhost"))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "ftp://images.example/x",
        "gopher://images.example/x",
        "http://other.example/x.png",
        "http://images.example@other.example/x.png",
        "http://user:password@images.example/x.png",
        "http://images.example.other.example/x.png",
        "http:///x",
        "http://[::1/x",
        "http://images.example:99999/x",
        "data:image/png;base64",
        "data:image/png;base64,####",
        "",
    ],
)
def test_urls_that_are_not_allowed(url: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_media(url, SETTINGS, "messages[0].content[0]")
    assert (refused.value.status, refused.value.param) == (400, "messages[0].content[0]")


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "[::1]", "localhost"])
def test_allowed_names_of_this_machine_are_still_refused(host: str) -> None:
    with pytest.raises(RequestError, match=r"not a public one|no address"):
        read_media(f"http://{host}/x.png", SETTINGS, "p")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
     "2002:7f00:1::", "64:ff9b::7f00:1", "ff02::1"],
)  # fmt: skip
def test_a_name_that_resolves_to_a_private_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One such address among public ones is enough: a resolver may answer differently each time."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [_found("93.184.216.34"), _found(address)])
    with pytest.raises(RequestError, match="not a public one"):
        public_address("images.example", 80, "p")


def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the name is looked up once."""
    asked: list[str] = []
    connected: list[Any] = []

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return [_found("93.184.216.34" if len(asked) == 1 else "127.0.0.1")]

    def connect(address: Any, *_: Any, **__: Any) -> socket.socket:
        connected.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(RequestError):
        read_media("http://images.example/x.png", SETTINGS, "p")
    assert (asked, connected) == (["images.example"], [("93.184.216.34", 80)])


Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], str]]:
    """Serves one answer under a URL whose host counts as public."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://images.example:{server.server_port}/a?b"

    monkeypatch.setattr(media, "public_address", lambda *_: "127.0.0.1")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def test_a_public_url_is_read(host: Callable[[Answer], str]) -> None:
    assert read_media(host(lambda handler: send(handler, DATA)), SETTINGS, "p") == DATA


def test_redirects_are_not_followed(host: Callable[[Answer], str]) -> None:
    url = host(lambda handler: send(handler, b"", 302, Location="http://127.0.0.1/secret"))
    with pytest.raises(RequestError, match="answered 302"):
        read_media(url, SETTINGS, "p")


def test_too_much_data(host: Callable[[Answer], str]) -> None:
    few = Settings(("m",), media_hosts=SETTINGS.media_hosts, limits=Limits(media_bytes=1000))
    with pytest.raises(RequestError) as refused:
        read_media(host(lambda handler: send(handler, bytes(1001))), few, "p")
    assert refused.value.status == 413
    url = "data:image/png;base64," + base64.b64encode(bytes(1005)).decode()
    with pytest.raises(RequestError) as refused:
        read_media(url, few, "p")
    assert refused.value.status == 413


def test_data_that_trickles(host: Callable[[Answer], str]) -> None:
    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    hasty = Settings(("m",), media_hosts=SETTINGS.media_hosts, limits=Limits(media_seconds=0.3))
    began = time.monotonic()
    with pytest.raises(RequestError):
        read_media(host(trickle), hasty, "p")
    assert time.monotonic() - began < 2


def test_data_urls_are_read() -> None:
    assert read_media("data:image/png;base64," + base64.b64encode(DATA).decode(), SETTINGS, "p") == DATA
    assert read_media("data:text/plain,a%20b", SETTINGS, "p") == b"a b"


def test_media_without_a_vision_encoder_are_refused() -> None:
    text = {"type": "text", "text": "what?"}
    refuse_media([{"role": "user", "content": [text]}, {"role": "user", "content": "hi"}, {"role": "assistant"}])
    for kind in ("image_url", "video_url", "image", "input_audio", "file"):
        with pytest.raises(RequestError) as refused:
            refuse_media([{"role": "user", "content": [text, {"type": kind, kind: {}}]}])
        assert refused.value.param == "messages[0].content[1]"


def _found(address: str) -> Any:
    return (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
