"""Sampling parameters: their bounds, and generation_config.json as transformers reads it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from transformers import GenerationConfig

from deltart.errors import GenerationError
from deltart.runtime.sampling.params import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("max_new_tokens", 0),
        ("stop", "word"),
        ("stop", ("",)),
        ("stop", (3,)),
        ("ignore_eos", 1),
        ("logit_bias", [(1, 2)]),
        ("logit_bias", {"1": 2}),
        ("logit_bias", {-1: 2}),
        ("logit_bias", {1: 100.5}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: True}),
        ("min_tokens", -1),
        ("min_tokens", 513),
        ("stop_token_ids", [1]),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", (True,)),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(GenerationError, match=name) as caught:
        SamplingParams(**{name: value})
    assert all((caught.value.expected, caught.value.hint))


def test_generation_config_of_the_vendor() -> None:
    config = {
        "bos_token_id": 248044,
        "do_sample": True,
        "eos_token_id": [248046, 248044],
        "pad_token_id": 248044,
        "temperature": 1.0,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": None,
        "transformers_version": "4.57.1",
    }
    assert SamplingParams.from_generation_config(config) == SamplingParams(top_k=20, top_p=0.95)
    assert SamplingParams.from_generation_config({}) == SamplingParams(temperature=0.0)
    assert SamplingParams.from_generation_config({"do_sample": False, "temperature": 0.6}).greedy


DEFAULTS = {
    "no file": {},
    "temperature alone": {"temperature": 0.6, "top_p": 0.9},
    "do_sample null": {"do_sample": None, "temperature": 0.6},
    "do_sample false": {"do_sample": False, "top_k": 20},
    "do_sample true": {"do_sample": True, "temperature": 0.6},
    "sampling of the vendor": {"do_sample": True, "temperature": 1.0, "top_k": 20, "top_p": 0.95},
    "a penalty": {"repetition_penalty": 1.05},
    "a length": {"do_sample": True, "max_new_tokens": 7},
    "a least length": {"min_new_tokens": 3},
    "a stop string": {"stop_strings": "END"},
    "stop strings": {"stop_strings": ["END", "\n\n"], "do_sample": True},
    "null stop strings": {"stop_strings": None},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_generation_config_means_what_transformers_makes_of_it(name: str) -> None:
    config = DEFAULTS[name]
    theirs = GenerationConfig(**config)
    defaults = GenerationConfig._get_default_generation_params()
    params = SamplingParams.from_generation_config(config)
    samples = defaults["do_sample"] if theirs.do_sample is None else theirs.do_sample
    assert params.greedy == (not samples)
    if samples and theirs.temperature is not None:
        assert params.temperature == theirs.temperature
    stops = theirs.stop_strings or ()
    assert params.stop == ((stops,) if isinstance(stops, str) else tuple(stops))
    assert params.max_new_tokens == (theirs.max_new_tokens or SamplingParams().max_new_tokens)
    assert params.min_tokens == (theirs.min_new_tokens or 0)
    assert params.repetition_penalty == (theirs.repetition_penalty or 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_sample", 1),
        ("do_sample", "true"),
        ("stop_strings", 3),
        ("stop_strings", [""]),
        ("stop_strings", ""),
        ("stop_strings", [3]),
        ("stop_strings", {"a": 1}),
        ("max_new_tokens", 1.5),
        ("top_k", "20"),
        ("min_new_tokens", -1),
        ("penalty_alpha", 0.6),
        ("forced_eos_token_id", 3),
        ("dola_layers", "high"),
    ],
)
def test_generation_config_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(GenerationError) as caught:
        SamplingParams.from_generation_config({name: value})
    assert caught.value.expected
    assert caught.value.hint


def test_generation_config_that_asks_for_more_is_refused() -> None:
    neutral = {"num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "guidance_scale": None}
    assert SamplingParams.from_generation_config(neutral) == SamplingParams(temperature=0.0)
    for name, value in [("num_beams", 4), ("no_repeat_ngram_size", 3), ("bad_words_ids", [[5]])]:
        with pytest.raises(GenerationError, match=name):
            SamplingParams.from_generation_config({name: value})
    with pytest.raises(GenerationError, match="top_p"):
        SamplingParams.from_generation_config({"top_p": 2})
