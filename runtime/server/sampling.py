"""The sampling fields that OpenAI's APIs share, with those that vLLM added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from deltart.errors import GenerationError
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.server.ask import OutputFormat
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.settings import Limits

_SEEDS = 1 << 64  # OpenAI's seeds may be negative


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """vLLM's way to ask for the form of a text; at most one field."""

    json: dict[str, Any] | str | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """Fields of a request; absent ones take the checkpoint's own defaults."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    cache_salt: str | None = None
    user: str | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


def sampling_of(fields: SamplingFields, limits: Limits) -> dict[str, Any]:
    """The fields of SamplingParams that a request sets.

    Raises:
        RequestError: too many stop strings, or a logit_bias whose keys are not token ids.
    """
    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    values = {name: getattr(fields, name) for name in (*names, "ignore_eos", "min_tokens")}
    values["top_k"] = 0 if fields.top_k == -1 else fields.top_k  # -1: vLLM's word for all
    values["seed"] = None if fields.seed is None else fields.seed % _SEEDS
    values["stop"] = _stops(fields.stop, limits)
    values["stop_token_ids"] = None if fields.stop_token_ids is None else tuple(fields.stop_token_ids)
    values["logit_bias"] = None if fields.logit_bias is None else _biases(fields.logit_bias)
    return {name: value for name, value in values.items() if value is not None}


def params_from(defaults: SamplingParams, given: Mapping[str, Any]) -> SamplingParams:
    """`defaults` with the request's fields.

    Raises:
        RequestError: 400 that names the field whose value is out of range.
    """
    try:
        return replace(defaults, **given)
    except GenerationError as error:
        raise RequestError(error.found, error.expected, "", param=_culprit(defaults, given)) from error


def output_of(fields: SamplingFields) -> OutputFormat | None:
    """The form that vLLM's fields ask for, if any.

    Raises:
        RequestError: a choice without words.
    """
    asked = fields.structured_outputs or StructuredOutputs(
        json=fields.guided_json,
        regex=fields.guided_regex,
        choice=fields.guided_choice,
        grammar=fields.guided_grammar,
    )
    param = "structured_outputs" if fields.structured_outputs else "guided_"
    if asked.json is not None and asked.json is not False:
        schema = _schema(asked.json, f"{param}.json")
        return OutputFormat("json_schema", schema, param)
    if asked.regex is not None:
        return OutputFormat("regex", asked.regex, param)
    if asked.choice is not None:
        if not asked.choice:
            raise RequestError("an empty choice", "at least one text", "list the texts to choose from", param=param)
        return OutputFormat("regex", _any_of(asked.choice), param)
    if asked.grammar is not None:
        return OutputFormat("grammar", asked.grammar, param)
    return OutputFormat("json_object", None, param) if asked.json_object else None


def _culprit(defaults: SamplingParams, given: Mapping[str, Any]) -> str | None:
    for name, value in given.items():
        try:
            replace(defaults, **{name: value})
        except GenerationError:
            return name
    return None


def _stops(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...] | None:
    if stop is None:
        return None
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > limits.stops:
        raise RequestError(f"{len(stops)} stop strings", f"at most {limits.stops}", "send fewer", param="stop")
    return tuple(text for text in stops if text) or None


def _biases(biases: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in biases.items()}
    except ValueError as error:
        raise RequestError(
            f"logit_bias with key {str(error).rpartition(':')[2].strip()}", "token ids", "", param="logit_bias"
        ) from error


def _schema(value: dict[str, Any] | str | bool, param: str) -> dict[str, Any] | bool:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RequestError(f"a JSON schema that is not JSON: {error}", "an object", "", param=param) from error


def _any_of(words: list[str]) -> str:
    """A regular expression of exactly these texts, for engines whose syntax escapes as Rust's does."""
    return "|".join("".join(f"\\{c}" if c in r"\.+*?()|[]{}^$#&-~/" else c for c in word) for word in words)
