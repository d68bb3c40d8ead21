"""Rotary positions as config.json describes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltart.export import defaults
from deltart.export.config_fields import LARGEST, Fields

BETA_FAST, BETA_SLOW = 32.0, 1.0  # of YaRN, where the config leaves them out


@dataclass(frozen=True)
class YarnSpec:
    """Static YaRN scaling (Peng et al., 2023)."""

    factor: float
    original_max_position: int
    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW

    @property
    def context(self) -> int:
        """Tokens that the stretched model is made for."""
        return int(self.factor * self.original_max_position)


@dataclass(frozen=True)
class RopeSpec:
    """Interleaved multimodal RoPE over the first `rotary_dim` of each head."""

    theta: float
    rotary_dim: int
    mrope_section: tuple[int, int, int]
    yarn: YarnSpec | None


def read_rope(text: Fields) -> RopeSpec:
    """The rope_parameters of a text config; what they leave out is read as transformers does.

    Raises:
        ConfigError: a field has a value that no graph here implements.
    """
    rope = _section(text)
    kind = rope.one_of(
        "type" if not rope.is_given("rope_type") and "type" in rope else "rope_type", ["default", "yarn"]
    )
    rope.only_if_present("mrope_interleaved", [True])
    rotary_dim = int(text.positive("head_dim") * rope.number("partial_rotary_factor", 0, 1, above=True))
    theta = rope.number("rope_theta", 1, above=True)
    yarn = _yarn(rope, theta, rotary_dim) if kind == "yarn" else None
    spec = RopeSpec(theta, rotary_dim, _mrope_section(rope, rotary_dim), yarn)
    text.taken.update({f"rope_parameters.{name}": value for name, value in rope.taken.items()})
    return spec


def yarn_pairs(yarn: YarnSpec, theta: float, rotary_dim: int) -> tuple[int, int]:
    """The rotary pairs between which YaRN goes from the model's own frequencies to those divided by the factor."""

    def pair_turning(rotations: float) -> float:
        turns = yarn.original_max_position / (rotations * 2 * math.pi)
        return rotary_dim * math.log(turns) / (2 * math.log(theta))

    low, high = math.floor(pair_turning(yarn.beta_fast)), math.ceil(pair_turning(yarn.beta_slow))
    return max(low, 0), min(high, rotary_dim - 1)


def _section(text: Fields) -> Fields:
    """rope_parameters, or the older rope_scaling, with the fields that may stand beside them."""
    beside = {name: text.required(name, object) for name in ("rope_theta", "partial_rotary_factor") if name in text}
    given = text.optional("rope_parameters", dict, {})
    name = "rope_parameters"
    if text.optional("rope_scaling", dict, {}):
        if given or "rope_theta" not in beside:
            raise text.error(
                "rope_scaling",
                text.required("rope_scaling", dict),
                "its fields inside rope_parameters, beside rope_theta and mrope_section",
            )
        name = "rope_scaling"
    nested = [key for key, value in given.items() if isinstance(value, dict)]
    if nested:
        raise text.error(f"rope_parameters.{nested[0]}", given[nested[0]], "one set of parameters for all layers")
    given = text.optional(name, dict, {})
    original = "original_max_position_embeddings"
    if original in text:  # which transformers prefers to the section's own
        given = {**given, original: text.required(original, object)}
    absent = defaults.ROPE | {original: text.positive("max_position_embeddings")}
    return Fields({**beside, **given}, text.place(name), absent)


def _mrope_section(rope: Fields, rotary_dim: int) -> tuple[int, int, int]:
    section = rope.required("mrope_section", list)
    counts = len(section) == 3 and all(type(count) is int and count >= 0 for count in section)
    if not counts or rotary_dim % 2 or sum(section) != rotary_dim // 2:
        raise rope.error("mrope_section", section, f"three counts that add up to {rotary_dim // 2} rotary pairs")
    if any(axis + 3 * (section[axis] - 1) >= rotary_dim // 2 for axis in (1, 2)):
        raise rope.error("mrope_section", section, "H and W counts that fit between the T pairs, every third each")
    return section[0], section[1], section[2]


def _yarn(rope: Fields, theta: float, rotary_dim: int) -> YarnSpec:
    for name in ("attention_factor", "mscale", "mscale_all_dim"):
        if name in rope:
            raise rope.error(name, rope.required(name, object), "absent: the factor alone decides it here")
    rope.only_if_present("truncate", [True])
    yarn = YarnSpec(
        factor=rope.number("factor", 1),
        original_max_position=rope.positive("original_max_position_embeddings"),
        beta_fast=rope.number("beta_fast", 0, above=True) if "beta_fast" in rope else BETA_FAST,
        beta_slow=rope.number("beta_slow", 0, above=True) if "beta_slow" in rope else BETA_SLOW,
    )
    if yarn.factor * yarn.original_max_position > LARGEST:
        raise rope.error("factor", yarn.factor, f"a context of at most {LARGEST} tokens")
    low, high = yarn_pairs(yarn, theta, rotary_dim)
    if low > high:
        found = f"{yarn.original_max_position} with beta_fast {yarn.beta_fast:g} and beta_slow {yarn.beta_slow:g}"
        raise rope.error("original_max_position_embeddings", found, "a context and betas between which pairs lie")
    return yarn
