"""An adapter as PEFT saves it: adapter_config.json, and the tensors of adapter_model.safetensors by the module they
belong to.

https://huggingface.co/docs/peft/developer_guides/checkpoint: names begin with "base_model.model.", and what follows is
the module's name in the model that was trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltart.errors import ConfigError, MergeError
from deltart.export.checkpoint import Checkpoint
from deltart.export.config_fields import Fields
from deltart.json_files import read_json, shown
from deltart.safetensors import TensorInfo
from deltart.text_files import check_folder

CONFIG, WEIGHTS, PICKLES = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
MATRICES = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB])\.weight|(?P<table>.+)\.(?P<side>lora_embedding_[AB])")
MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.weight)?")
NAMED = re.compile(r".+\.lora_(?:[AB]\.(?P<name>.+)\.weight|embedding_[AB]\.(?P<table>.+))")
BASE_LAYER = ".base_layer"  # PEFT's name of the module that it wraps

# How PEFT starts a training: of these it trains plain LoRA, all others change the base weights, or LoRA itself.
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# What makes LoRA another method, where it is set.
VARIANTS = {
    "lora_bias": "a trained bias has no place in a linear without one: merge it with PEFT",
    "target_parameters": "adapters of parameters (routed experts) are merged by PEFT alone: merge_and_unload()",
    "layer_replication": "a model with replicated layers is another model: PEFT merges none either",
    "trainable_token_indices": "rows of the embedding that were trained apart are merged by PEFT: merge_and_unload()",
    "alora_invocation_tokens": "it acts behind its invocation tokens only, which no merged weight can",
    "use_qalora": "QALoRA pools its inputs: merge it with PEFT",
    "use_bdlora": "block-diagonal LoRA: merge it with PEFT",
    "arrow_config": "Arrow routes between adapters by token, which no merged weight can",
    "kasa_config": "KaSA truncates the base weights: merge it with PEFT",
    "velora_config": "VeLoRA: merge it with PEFT",
    "monteclora_config": "MonteCLoRA: merge it with PEFT",
}
# Fields that leave the merged weights as they are, or that are read below.
KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip


@dataclass(frozen=True)
class LoraConfig:
    """What of adapter_config.json decides the merged weights. Names are PEFT's."""

    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    modules_to_save: tuple[str, ...]
    target_modules: tuple[str, ...]  # none where a pattern says it, or layers narrow it
    base_model: str
    unknown: tuple[str, ...]  # fields that are set and that PEFT does not have

    def rank(self, module: str) -> int:
        """The rank of `module`, by its name in the model that was trained."""
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scaling(self, module: str) -> float:
        """What multiplies B A."""
        rank, alpha = self.rank(module), _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


@dataclass
class Matrices:
    """LoRA of one module: `a` [r, in] and `b` [out, r], DoRA's magnitude [out]; `table`: of an embedding."""

    a: TensorInfo | None = None
    b: TensorInfo | None = None
    magnitude: TensorInfo | None = None
    table: bool = False


@dataclass
class Adapter:
    """An adapter's tensors by module and, of those that replace one of the model's whole, by its name."""

    folder: Path
    config: LoraConfig
    tensors: Checkpoint
    matrices: dict[str, Matrices] = field(default_factory=dict)
    whole: dict[str, TensorInfo] = field(default_factory=dict)


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`.

    Raises:
        ConfigError, CheckpointError: its config or its file is broken.
        MergeError: it is none, is of another method than LoRA and DoRA, or a tensor has a name that PEFT gives none.
    """
    check_folder(folder, MergeError, "the folder of a LoRA adapter")
    if not (folder / CONFIG).is_file():
        raise _no_adapter(folder, CONFIG)
    config = _read_config(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise _no_adapter(folder, WEIGHTS)
    tensors = Checkpoint.of_files(folder, [WEIGHTS])
    tensors.check_layout()
    adapter = Adapter(folder, config, tensors)
    for info in tensors.values():
        _place(adapter, info)
    return adapter


def _place(adapter: Adapter, info: TensorInfo) -> None:
    """Put a tensor where its name says that it belongs."""
    if not info.name.startswith(PREFIX):
        place = f"{WEIGHTS} of {adapter.folder} holds '{info.name}'"
        raise MergeError(place, f"names that begin with '{PREFIX}'", "save the adapter with PEFT's save_pretrained()")
    name = info.name.removeprefix(PREFIX)
    if found := MATRICES.fullmatch(name):
        module = found["module"] or found["table"]
        if module.endswith(BASE_LAYER):
            raise MergeError(f"'{info.name}' belongs to a parameter", "linears", VARIANTS["target_parameters"])
        own = adapter.matrices.setdefault(module, Matrices())
        own.table = found["table"] is not None
        if (found["part"] or found["side"]).endswith("A"):
            own.a = info
        else:
            own.b = info
    elif found := MAGNITUDE.fullmatch(name):
        adapter.matrices.setdefault(found["module"], Matrices()).magnitude = info
    elif "lora_" in name:
        raise _unknown(info.name)
    else:
        whole = name.replace(f"{BASE_LAYER}.", ".")
        other = adapter.whole.setdefault(whole, info)
        if other is not info:
            raise MergeError(f"'{other.name}' and '{info.name}' both replace '{whole}'", "one of them")


def _unknown(name: str) -> MergeError:
    """The error for a tensor of LoRA with a name that PEFT's save_pretrained does not give."""
    found = NAMED.fullmatch(name)
    if found:
        hint = "it is a training state: save the adapter with PEFT's save_pretrained(), which leaves that name out"
        return MergeError(f"'{name}' has the name '{found['name'] or found['table']}' in it", "none there", hint)
    if name.endswith(".bias"):
        return MergeError(f"'{name}' is a bias of LoRA", "adapters without biases", VARIANTS["lora_bias"])
    return MergeError(f"'{name}' is of no LoRA that is known here", "lora_A, lora_B, lora_magnitude_vector")


def _read_config(path: Path) -> LoraConfig:
    config = Fields(read_json(path), str(path))
    kind = config.required("peft_type", str)
    if kind.upper() != "LORA":
        raise MergeError(f"{config.place('peft_type')} is {shown(kind)}", "'LORA'", "merge it with PEFT, or retrain it")
    for name, why in VARIANTS.items():
        if config.values.get(name):
            raise MergeError(f"{config.place(name)} is {shown(config.values[name])}", "LoRA or DoRA without it", why)
    start = config.values.get("init_lora_weights", True)
    if not any(type(start) is type(known) and start == known for known in STARTS):
        raise MergeError(
            f"{config.place('init_lora_weights')} is {shown(start)}, which changed the base weights",
            "an adapter of the base as it is",
            "save it again as LoRA: save_pretrained(folder, path_initial_model_for_weight_conversion=...)",
        )
    return LoraConfig(
        r=config.positive("r"),
        lora_alpha=config.number("lora_alpha", -math.inf),
        use_rslora=config.optional("use_rslora", bool, False),
        use_dora=config.optional("use_dora", bool, False),
        rank_pattern=_patterns(config, "rank_pattern", whole=True),
        alpha_pattern=_patterns(config, "alpha_pattern"),
        modules_to_save=_names(config, "modules_to_save"),
        target_modules=_targets(config),
        base_model=config.optional("base_model_name_or_path", str, ""),
        unknown=tuple(
            name for name, value in config.values.items() if value and name not in KNOWN and name not in VARIANTS
        ),
    )


def _patterns(config: Fields, name: str, whole: bool = False) -> dict[str, Any]:
    """Numbers by a pattern that the end of a module's name matches."""
    if name not in config:
        return {}
    section = config.section(name)
    for pattern in section.values:
        try:
            re.compile(_pattern(pattern))
        except re.error as error:
            raise ConfigError(f"{config.place(name)} has {shown(pattern)}", f"a pattern ({error})") from None
    return {key: section.positive(key) if whole else section.number(key, -math.inf) for key in section.values}


def _pattern(text: str) -> str:
    return rf"(.*\.)?({text})$"


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches, as PEFT looks it up."""
    return next((value for text, value in patterns.items() if re.match(_pattern(text), module)), default)


def _names(config: Fields, name: str) -> tuple[str, ...]:
    names = config.optional(name, list, [])
    if not all(isinstance(entry, str) for entry in names):
        raise config.error(name, names, "names of modules")
    return tuple(names)


def _targets(config: Fields) -> tuple[str, ...]:
    narrowed = any(config.values.get(name) for name in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    if narrowed or not isinstance(config.values.get("target_modules"), list):
        return ()
    return _names(config, "target_modules")


def _no_adapter(folder: Path, missing: str) -> MergeError:
    """What the folder holds instead, and what to do about it."""
    files = sorted(path.name for path in folder.iterdir())
    if missing == WEIGHTS and PICKLES in files:
        hint = "convert it: PeftModel.from_pretrained(base, folder).save_pretrained(new), which writes safetensors"
        return MergeError(f"{folder} holds {PICKLES}, a pickle", WEIGHTS, hint)
    below = [name for name in files if (folder / name / CONFIG).is_file()]
    hint = f"name the folder {folder / below[-1]}" if below else "name the folder that PEFT's save_pretrained() wrote"
    if "config.json" in files and not below:
        hint = "that is a model: the order is BASE ADAPTER"
    return MergeError(f"{folder} holds no {missing}", f"{CONFIG} and {WEIGHTS}", hint)
