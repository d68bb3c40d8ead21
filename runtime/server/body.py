"""A request's body: read within bounds, decoded into the fields of an API."""

from __future__ import annotations

import logging
import re
from typing import Any, TypeVar

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request

from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.settings import Limits

log = logging.getLogger("deltart.server")
Fields = TypeVar("Fields", bound=msgspec.Struct)

_AT = re.compile(r" - at `\$\.?(.*?)`$")
_REQUIRED = re.compile(r"missing required field `(.*?)`")


async def read_fields(request: Request, fields: type[Fields], limits: Limits) -> Fields:
    """The body as `fields`. Unknown fields are ignored, and named in the debug log.

    Raises:
        RequestError: 413 or 408 beyond the limits, 400 for what is not JSON or has a field of the wrong type.
        ClientDisconnect: the client left while sending.
    """
    return convert(decode(await read_body(request, limits), limits.depth), fields)


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        RequestError: 413 beyond limits.body_bytes, 408 beyond limits.body_seconds.
        ClientDisconnect: the client left while sending.
    """
    declared = request.headers.get("content-length", "0")
    if int(declared) > limits.body_bytes:
        raise _too_large(declared, limits)
    parts, size = [], 0
    with anyio.move_on_after(limits.body_seconds) as clock:
        async for part in request.stream():
            size += len(part)
            if size > limits.body_bytes:
                raise _too_large(f"more than {limits.body_bytes}", limits)
            parts.append(part)
    if clock.cancelled_caught:
        raise RequestError(
            f"a body that has not arrived within {limits.body_seconds:g} s", "all of it", "send it again", status=408
        )
    return b"".join(parts)


def decode(body: bytes, depth: int) -> Any:
    """The JSON value of `body`, nested at most `depth` deep.

    Raises:
        RequestError: it is not JSON, holds NaN or infinities, or is nested deeper.
    """
    hint = "send UTF-8 JSON, with Content-Type: application/json"
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestError(f"a body that is not JSON: {error}", "a JSON object", hint, code="invalid_json") from error
    except RecursionError:
        value, depth = None, -1
    if depth < 0 or _deeper(value, depth):
        raise RequestError(
            "a body nested too deep", f"JSON at most {max(depth, 0) or 'a few hundred'} levels deep", "flatten it"
        )
    return value


def convert(value: Any, fields: type[Fields]) -> Fields:
    """A decoded body as `fields`; null counts as absent.

    Raises:
        RequestError: 400 that names the field which is missing or of the wrong type.
    """
    if not isinstance(value, dict):
        raise RequestError(f"a body that is a JSON {_json_kind(value)}", "an object", "send the request's fields")
    given = {name: item for name, item in value.items() if item is not None}
    unknown = given.keys() - {field.encode_name for field in msgspec.structs.fields(fields)}
    if unknown:
        log.debug("ignored unknown fields: %s", ", ".join(sorted(map(repr, unknown)))[:1000])
    try:
        return msgspec.convert(given, fields)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error), given) from error


def _wrong_type(text: str, given: dict[str, Any]) -> RequestError:
    at = _AT.search(text)
    param = at[1] if at else None
    what = _AT.sub("", text)
    missing = _REQUIRED.search(what)
    if missing:
        param = f"{param}.{missing[1]}" if param else missing[1]
        return RequestError(f"no field {missing[1]!r}", f"{param}", "add it", param=param)
    hint = f"correct {param}" if param else "correct the body"
    return RequestError(f"{param or 'the body'}: {what}", "a value of that type", hint, param=param)


def _too_large(size: str, limits: Limits) -> RequestError:
    return RequestError(
        f"a body of {size} bytes", f"at most {limits.body_bytes}", "send less, or raise --max-body-mb", status=413
    )


def _deeper(value: Any, depth: int) -> bool:
    level = [value]
    while level:
        if depth <= 0:
            return True
        depth -= 1
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
    return False


def _json_kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


__all__ = ["ClientDisconnect", "convert", "decode", "read_body", "read_fields"]
