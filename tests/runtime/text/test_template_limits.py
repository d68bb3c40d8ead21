"""Templates that would run for ever or fill the memory, and templates of the honest kind at their largest."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from deltart.errors import GenerationError
from deltart.runtime.text import template_limits
from deltart.runtime.text.chat import ChatTemplate

NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"
HI = [{"role": "user", "content": "hi"}]
BIG = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(64) %}{% set ns.x = @ %}{% endfor %}{{ ns.x }}"
COSTLY = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one long list": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{{ b }}{% endfor %}{% endfor %}",
    "much output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "recursive loop": "{% for a in [range(9999)] recursive %}{{ loop([range(9)]) }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "doubling by ~": BIG.replace("@", "ns.x ~ ns.x"),
    "doubling by +": BIG.replace("@", "ns.x + ns.x"),
    "doubling by *": BIG.replace("@", "ns.x * 2"),
    "doubling by join": BIG.replace("@", "[ns.x, ns.x] | join"),
    "doubling by join with": BIG.replace("@", "ns.x.join([ns.x, ns.x, ns.x])"),
    "growing by replace": BIG.replace("@", "ns.x | replace('x', 'xxxx')"),
    "growing by replace of a text": BIG.replace("@", "ns.x.replace('x', 'xxxx')"),
    "growing lists": "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a wide field": "{{ 'x' | center(10 ** 9) }}",
    "a wide text": "{{ 'x'.ljust(10 ** 9) }}",
    "a wide format": "{{ '%999999999d' % 1 }}",
    "a wide format filter": "{{ '%999999999d' | format(1) }}",
    "a wide format method": "{{ '{:999999999}'.format(1) }}",
    "a deep indent": "{{ ('\n' * 99999) | indent(99999) }}",
    "a long product": "{{ 'x' * 10 ** 9 }}",
    "a long product, reversed": "{{ 10 ** 9 * 'x' }}",
    "a power of powers": "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "text over and over": "{% for a in range(99999) %}{{ messages | tojson }}{{ 'y' * 9999 }}{% endfor %}",
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_template_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(GenerationError, match=r"stopped|refused") as caught:
        ChatTemplate(COSTLY[name]).render(HI)
    assert time.monotonic() - began < 5
    assert caught.value.hint


SOURCES = {
    "concat": "{{ 'a' ~ 1 ~ none ~ true ~ missing ~ [1, 'b'] }}",
    "loops": "{% for m in [3,1] %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{{ loop.previtem }}{% endfor %}",
    "loop over a mapping": "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }},{% else %}none{% endfor %}",
    "loop over nothing": "{% for k in [] %}x{% else %}0{% endfor %}{% for k in no %}x{% else %}0{% endfor %}",
    "loop with a condition": "{% for m in range(9) if m % 2 %}{{ m }}{{ loop.revindex }}{% endfor %}",
    "loop over a text": "{% for c in 'abc' %}{{ c }}{% if loop.index0 == 1 %}{% break %}{% endif %}{% endfor %}",
    "slices": "{% for m in messages[::-1] %}{{ m.role }}{% endfor %}{{ 'abc'[1:] }}",
    "filters": "{{ ' a ' | trim }}{{ ['a', 'b'] | join(', ') }}{{ 'aXa' | replace('X', 'y') }}{{ 'a\nb' | indent(2) }}",
    "more filters": "{{ 'x' | center(5) }}|{{ '%s-%d' | format('a', 3) }}|{{ [1, 2, 3] | batch(2) | list }}",
    "methods": "{{ 'a-b'.split('-') }}{{ 'x'.join(['1', '2']) }}{{ 'aa'.replace('a', 'b') }}{{ '{:>4}'.format(7) }}",
    "arithmetic": "{{ 2 ** 10 }}{{ 3 * 4 }}{{ 'ab' * 2 }}{{ [1] + [2] }}{{ 7 % 3 }}{{ '%05d' % 42 }}",
    "macros": "{% macro f(x) %}{{ x }}{{ caller() if caller }}{% endmacro %}{{ f(1) }}{% call f(2) %}in{% endcall %}",
    "recursive loop": "{% for a in [[1, [2]], 3] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "tojson": "{{ messages | tojson(indent=1) }}{{ {'é': '<'} | tojson }}",
    "whitespace": "  {% if true %}\n  x  \n  {% endif %}\n{{- ' y' -}}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_the_bounds_change_no_text(name: str) -> None:
    """transformers' own environment is the reference."""
    expected = _compile_jinja_template(SOURCES[name]).render(messages=HI, tools=None, add_generation_prompt=True)
    assert ChatTemplate(SOURCES[name]).render(HI) == expected


def test_a_long_conversation_with_large_tools_fits() -> None:
    template = ChatTemplate.from_folder(NANO)
    call = {"function": {"name": "f", "arguments": {"text": "x" * 1000}}}
    turns: list[dict[str, Any]] = []
    for _ in range(1000):
        turns += [
            {"role": "user", "content": [{"type": "text", "text": "a" * 500}] * 2},
            {"role": "assistant", "content": "b" * 500, "tool_calls": [call]},
            {"role": "tool", "content": "c" * 500},
        ]
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}
    tools = [{"name": f"f{i}", "parameters": schema} for i in range(20)]
    text = template.render(turns, tools)
    assert len(text) > 3_000_000
    assert text.count(json.dumps(schema)) == 20
