"""The sandbox that chat templates run in: transformers' settings, and bounds on what a template may cost.

A template is foreign code. jinja2's sandbox keeps it from the machine; this keeps it from running for ever and from
filling the memory, by counting the turns of its loops and calls and by looking at sizes before texts are made.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 10.0
MAX_STEPS = 5_000_000  # turns of loops, and calls
MAX_CHARACTERS = 16_000_000  # of the prompt, and of any text on the way: about 4 million tokens
MAX_BITS = 10_000  # of a power

# Filters, and methods of texts, that can make much out of little.
_GROWING = ("batch", "center", "expandtabs", "format", "indent", "join", "ljust", "replace", "rjust", "slice", "zfill")


class TemplateTooCostly(jinja2.TemplateError):
    """A template that passed one of the bounds."""


class _Budget:
    """Steps and time left to one rendering."""

    def __init__(self) -> None:
        self._steps, self._ends = 0, time.monotonic() + MAX_SECONDS

    def spend(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TemplateTooCostly(f"it makes more than {MAX_STEPS:,} steps")
        if self._steps % 256 == 0 and time.monotonic() > self._ends:
            raise TemplateTooCostly(f"it takes more than {MAX_SECONDS:.0f} seconds")


_budget: ContextVar[_Budget] = ContextVar("template_budget")


@contextmanager
def _bounded() -> Iterator[None]:
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The text of a template of `BoundedEnvironment`.

    Raises:
        TemplateTooCostly: it needs more time, steps or characters than the bounds of this module.
        Exception: whatever else the template raises.
    """
    pieces: list[str] = []
    size = 0
    with _bounded():
        for piece in template.generate(variables):
            size += len(piece)
            _check_size(size)
            pieces.append(piece)
    return "".join(pieces)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The settings, filters and globals that transformers gives to chat templates, with bounds.

    Every `for` goes over `_counted`, every `~` through `_joined`; calls and arithmetic are looked at before.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.filters |= {name: _guarded(name, self.filters[name]) for name in _GROWING if name in self.filters}
        self.filters |= {"tojson": _tojson, "_counted": _counted, "_joined": _joined}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]

    def _generate(
        self, source: jinja2.nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        for loop in source.find_all(jinja2.nodes.For):
            loop.iter = _filter("_counted", loop.iter)
        for concat in list(source.find_all(jinja2.nodes.Concat)):
            concat.nodes = [_filter("_joined", jinja2.nodes.List(list(concat.nodes), lineno=concat.lineno))]
        source.set_environment(self)
        return super()._generate(source, name, filename, defer_init)

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _budget.get().spend()
        text = getattr(obj, "__self__", None)
        if isinstance(text, str):
            _guard(obj.__name__, text, [*args, *kwargs.values()])
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if isinstance(getattr(value, "__self__", None), str) and value.__name__ == "format":
            _guard("format", value.__self__, [])
        return super().wrap_str_format(value)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_BITS:
                raise TemplateTooCostly(f"it computes {left} ** {right}")
        elif operator == "*" and isinstance(left, int) != isinstance(right, int):
            text, times = (right, left) if isinstance(left, int) else (left, right)
            _check_size(len(text) * times if isinstance(text, (str, list, tuple)) else 0)
        elif operator == "%" and isinstance(left, str):
            _guard("format", left, [])
        elif isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012  # the attribute jinja2 reads, typed there

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Turns:
    """What a loop goes over, each of whose turns is a step."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        budget = _budget.get()
        for item in self._items:
            budget.spend()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # a TypeError here is what jinja2 expects


@jinja2.pass_context  # so that jinja2 does not call it when it compiles
def _counted(context: jinja2.runtime.Context, items: Any) -> _Turns:
    return _Turns(items)


@jinja2.pass_context
def _joined(context: jinja2.runtime.Context, parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _filter(name: str, node: Any) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    takes_more = hasattr(function, "jinja_pass_arg")  # environment or context come before the value

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        value, *more = args[1:] if takes_more else args
        _guard(name, value, [*more, *kwargs.values()])
        return function(*args, **kwargs)

    return guarded


def _guard(name: str, value: Any, arguments: list[Any]) -> None:
    """Look at what a growing filter or method is about to make."""
    if name not in _GROWING:
        return
    texts = [argument for argument in arguments if isinstance(argument, str)]
    for number in arguments:
        if isinstance(number, int):
            _check_size(number * (value.count("\n") + 1 if isinstance(value, str) else 1))
    if name == "replace" and len(texts) == 2:
        text = str(value)
        _check_size(len(text) + (text.count(texts[0]) if texts[0] else len(text) + 1) * len(texts[1]))
    elif name == "join":
        sequence = next((item for item in (value, *arguments) if isinstance(item, (list, tuple))), ())
        separator = len(value) if isinstance(value, str) else sum(map(len, texts))
        _check_size(sum(len(item) + separator for item in sequence if isinstance(item, str)))
    elif name == "format" and re.search(r"\d{6}", str(value)):
        raise TemplateTooCostly("it formats a field of more than 99,999 characters")


def _check_size(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise TemplateTooCostly(f"it writes more than {MAX_CHARACTERS:,} characters")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
