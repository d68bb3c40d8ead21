"""What a request asks of the sampler: plain data, with the checkpoint's own defaults."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltart.errors import GenerationError
from deltart.json_files import shown

# Fields of generation_config.json that change what transformers generates and that are not offered here,
# with the values that switch them off.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "force_words_ids": ([],),
    "constraints": ([],),
    "watermarking_config": (),
    "token_healing": (False,),
    "max_time": (),
    "typical_p": (1.0,),
    "top_h": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "min_length": (0,),
    "guidance_scale": (1.0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
}


# Fields that generation_config.json shares with SamplingParams.
_SHARED = (
    "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "max_new_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when generation ends. The defaults sample from the plain distribution.

    Attributes:
        temperature: divides the logits; 0 means greedy, where ties go to the lowest id.
        top_k: keep the k largest logits, ties with the k-th included; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches top_p; 1 keeps all.
        min_p: drop tokens less probable than min_p times the most probable one; 0 keeps all.
        presence_penalty: subtracted once from the logit of every token generated so far.
        frequency_penalty: subtracted from a token's logit once per time it was generated.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in the prompt or
            generated; 1 does nothing.
        seed: makes the draws repeatable; None takes a fresh one.
        max_new_tokens: generation ends after this many tokens.
        stop: strings that end generation; they are not part of the text.
        ignore_eos: go on after an end-of-sequence token.
        logit_bias: token id to what is added to its logit, from -100 to 100 as OpenAI defines it. It comes first
            of all, so the other rules see biased logits; ids outside the vocabulary are refused by the sampler.
        min_tokens: no token that ends the reply is drawn before this many others were.
        stop_token_ids: tokens that end generation as an end-of-sequence token does; they are not part of the text.

    Raises:
        GenerationError: a value of the wrong type or out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._number("temperature", 0, math.inf)
        self._integer("top_k", 0, None)
        self._number("top_p", 0, 1, above=True)
        self._number("min_p", 0, 1)
        self._number("presence_penalty", -2, 2)
        self._number("frequency_penalty", -2, 2)
        self._number("repetition_penalty", 0, math.inf, above=True)
        if self.seed is not None:
            self._integer("seed", 0, 2**64 - 1)
        self._integer("max_new_tokens", 1, None)
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            self._refuse("stop", "a tuple of non-empty strings")
        if not isinstance(self.ignore_eos, bool):
            self._refuse("ignore_eos", "true or false")
        if not isinstance(self.logit_bias, Mapping) or not all(map(_is_bias, self.logit_bias.items())):
            self._refuse("logit_bias", "a mapping of token ids to numbers from -100 to 100")
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))  # the caller may go on changing its own
        self._integer("min_tokens", 0, self.max_new_tokens)
        if not isinstance(self.stop_token_ids, tuple) or not all(map(_is_token, self.stop_token_ids)):
            self._refuse("stop_token_ids", "a tuple of token ids")

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingParams:
        """The checkpoint's own sampling defaults, from its parsed generation_config.json.

        As in transformers, generation is greedy unless `do_sample` is true, and `stop_strings` end it. Absent or
        null fields take the defaults of this class, and fields that have nothing to do with sampling are passed
        over.

        Raises:
            GenerationError: a value is out of range, or the file asks for a method that is not offered.
        """
        for name, neutral in _UNSUPPORTED.items():
            if config.get(name) is not None and config[name] not in neutral:
                raise GenerationError(
                    f"generation_config.json asks for {name} = {config[name]!r}, which is not offered",
                    f"{name} absent or null",
                    "remove the field, or pass sampling parameters explicitly",
                )
        given = {name: config[name] for name in _SHARED if config.get(name) is not None}
        samples = config.get("do_sample")
        if not isinstance(samples, bool | None):
            raise GenerationError(
                f"generation_config.json: do_sample = {samples!r}", "true or false", "correct the field, or remove it"
            )
        if not samples:
            given["temperature"] = 0.0
        if config.get("min_new_tokens") is not None:
            given["min_tokens"] = config["min_new_tokens"]
        return cls(**given, stop=_stop_strings(config.get("stop_strings")))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def end_ids(self, eos_ids: Collection[int]) -> frozenset[int]:
        """The tokens that end a reply, given the model's end-of-sequence tokens."""
        return frozenset(self.stop_token_ids) | (frozenset() if self.ignore_eos else frozenset(eos_ids))

    def _number(self, name: str, low: float, high: float, *, above: bool = False) -> None:
        value = getattr(self, name)
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not real or not abs(value) <= sys.float_info.max or not low <= value <= high or (above and value == low):
            bounds = f"{'>' if above else '>='} {low}" + ("" if high == math.inf else f" and <= {high}")
            self._refuse(name, f"a number {bounds}")

    def _integer(self, name: str, low: int, high: int | None) -> None:
        value = getattr(self, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < low or (high is not None and value > high):
            self._refuse(name, f"an integer >= {low}" + ("" if high is None else f" and <= {high}"))

    def _refuse(self, name: str, expected: str) -> None:
        raise GenerationError(
            f"sampling parameter {name} = {shown(getattr(self, name))}",
            expected,
            f"change {name}, or leave it out",
        )


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_bias(entry: tuple[Any, Any]) -> bool:
    token, bias = entry
    real = isinstance(bias, (int, float)) and not isinstance(bias, bool)
    return _is_token(token) and real and -100 <= bias <= 100


def _stop_strings(value: Any) -> tuple[str, ...]:
    """`stop_strings` of generation_config.json: a text or a list of them."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise GenerationError(
            f"generation_config.json: stop_strings = {value!r}",
            "a non-empty string, or a list of them",
            "correct the field, or remove it",
        )
    return tuple(texts)
