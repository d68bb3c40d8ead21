"""Values of parsed JSON as typed dataclasses: every field checked before it is used."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from deltart.errors import ConfigError, DeltaRTError
from deltart.json_files import shown

V = TypeVar("V")
# Types of dataclass fields that `typed` checks beyond what Python's own say.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


def typed(
    value: Any, kind: type[V], where: str, error: type[DeltaRTError] = ConfigError, hint: str = "correct it"
) -> V:
    """A parsed `value` as `kind`, a dataclass or any type that msgspec knows; nothing is coerced but int to float.

    Raises:
        DeltaRTError: of class `error`; a field is missing, of another type or out of its range, or `kind` is a
            dataclass that has no field of a name in `value`.
    """
    if is_dataclass(kind) and isinstance(value, dict):
        unknown = value.keys() - {field.name for field in fields(kind)}
        if unknown:
            raise error(f"{where} has an unknown field {shown(min(unknown))}", "the fields of this version", hint)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as problem:
        fault, _, place = str(problem).partition(" - at ")
        field = place.strip("`").removeprefix("$").removeprefix(".")
        found = f"{where} is malformed{f' at {field}' if field else ''}"
        raise error(f"{found}: {fault[:1].lower()}{fault[1:]}", "", hint) from None
