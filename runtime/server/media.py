"""Images and videos of messages: what may be fetched, from where, and how much of it."""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.settings import Settings
from deltart.runtime.vision.parts import media_parts as vision_parts

_MEDIA = ("image", "image_url", "input_image", "video", "video_url", "input_video", "input_audio", "file", "input_file")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses behind a translator
_PIECE = 1 << 16  # bytes a read


def media_parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Content parts that are not text, each after the field that holds it."""
    for i, message in enumerate(messages):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping) and (
                part.get("type") in _MEDIA or set(part) & {"image", "video", "image_url"}
            ):
                yield f"messages[{i}].content[{j}]", part


def refuse_media(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuses images and videos, for an artifact without a vision encoder.

    Raises:
        RequestError: there is one.
    """
    for param, part in media_parts(messages):
        hint = "this artifact has no vision encoder: leave images and videos out, or serve one that has"
        raise _unsupported(part, param, "text", hint)


def fetched(messages: Sequence[Mapping[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """The messages with the bytes of their pictures and videos in the place of URLs.

    Raises:
        RequestError: too many of them, one that can't be read as `read_media` says, or media of another kind.
    """
    found, count = [dict(message) for message in messages], 0
    known = {(part.message, part.part): part for part in vision_parts(messages)}
    for i, message in enumerate(found):
        content = message.get("content")
        for j, given in enumerate(content if isinstance(content, list) else ()):
            param, part = f"messages[{i}].content[{j}]", known.get((i, j))
            if part is not None:
                count += 1
                if count > settings.limits.media:
                    expected = f"at most {settings.limits.media} pictures and videos"
                    raise RequestError("too many pictures and videos", expected, "send fewer", param=param)
                if not isinstance(part.source, str):
                    raise _refused(f"a {part.kind} without a URL", param)
                data = read_media(part.source, settings, param)
                message["content"] = [*message["content"]]
                message["content"][j] = {"type": part.kind, part.kind: data}
            elif isinstance(given, Mapping) and given.get("type") in _MEDIA:
                raise _unsupported(given, param, "text, images and videos", "leave it out")
    return found


def read_media(url: str, settings: Settings, param: str) -> bytes:
    """The bytes behind a data URL, or behind an http(s) URL whose host the operator allowed.

    A name is resolved once, every address it has must be public, and the connection goes to the address that
    was checked. Redirects are not followed. Files are never read.

    Raises:
        RequestError: a URL that is not allowed, too much data, too slow, or an answer that is not 200.
    """
    parts = _split(url, param)
    if parts.scheme == "data":
        return _data_url(url, settings, param)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refused("a URL that is not a data or http(s) URL", param)
    if parts.hostname.lower() not in settings.media_hosts:
        raise _refused(f"a URL of host {parts.hostname[:100]!r}, which this server does not fetch from", param)
    if parts.username is not None or parts.password is not None:
        raise _refused("a URL with a user name", param)
    return _fetch(parts, settings, param)


def public_address(host: str, port: int, param: str) -> str:
    """An address of `host` after all its addresses were found to be public.

    Raises:
        RequestError: it has none, or one of them is private, loopback, link-local or otherwise not global.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _refused(f"host {host[:100]!r}, which has no address", param) from error
    addresses = [str(info[4][0]) for info in found]
    if not addresses or not all(_is_public(address) for address in addresses):
        raise _refused(f"host {host[:100]!r}, whose address is not a public one", param)
    return addresses[0]


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
        inner = address.ipv4_mapped or address.sixtofour or nat64
        if inner is not None and not inner.is_global:
            return False
    return address.is_global and not address.is_multicast


def _fetch(parts: SplitResult, settings: Settings, param: str) -> bytes:
    host, secure = str(parts.hostname), parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    limits = settings.limits
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        plain = socket.create_connection((public_address(host, port, param), port), limits.media_seconds)
        with _closed_after(plain, limits.media_seconds):
            connection = http.client.HTTPConnection(host, port)
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
            connection.request("GET", target, headers={"Accept": "image/*, video/*"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise _refused(f"a URL that answered {answer.status}", param)
            return _read(answer, limits.media_bytes, param)
    except (OSError, http.client.HTTPException) as error:
        raise _refused(f"a URL that can't be read: {type(error).__name__}", param) from error


@contextmanager
def _closed_after(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Ends every read of the connection when time is up, however the bytes trickle in."""
    timer = threading.Timer(seconds, _shut, (connection,))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        connection.close()


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _read(answer: http.client.HTTPResponse, most: int, param: str) -> bytes:
    data = bytearray()
    while piece := answer.read1(_PIECE):
        data += piece
        if len(data) > most:
            raise _refused(f"media of more than {most} bytes", param, status=413)
    if answer.length:
        raise _refused("a URL whose data ended early or came too slowly", param)
    return bytes(data)


def _data_url(url: str, settings: Settings, param: str) -> bytes:
    head, comma, data = url.partition(",")
    most = settings.limits.media_bytes
    if not comma:
        raise _refused("a data URL without data", param)
    if len(data) > 4 * (most // 3 + 1):
        raise _refused(f"media of more than {most} bytes", param, status=413)
    try:
        return base64.b64decode(data, validate=True) if head.endswith(";base64") else unquote_to_bytes(data)
    except (binascii.Error, ValueError) as error:
        raise _refused(f"a data URL that is not base64: {error}", param) from error


def _split(url: str, param: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is not a number
        return parts
    except ValueError as error:
        raise _refused(f"a URL that can't be read: {error}", param) from error


def _unsupported(part: Mapping[str, Any], param: str, expected: str, hint: str) -> RequestError:
    kind = str(part.get("type") or "media")
    return RequestError(
        f"a content part of type {kind!r}"[:200], expected, hint, param=param, code="unsupported_content"
    )


def _refused(found: str, param: str, status: int = 400) -> RequestError:
    expected = "a data URL, or an http(s) URL of a host that this server allows"
    return RequestError(found, expected, "send the bytes as a data URL", param=param, status=status)
