"""compressed-tensors' quantization_config: which linears are packed in four bits, and in groups of how many values.

https://github.com/vllm-project/compressed-tensors: groups of targets with one scheme each, and a list of what is left
as it is. An entry is a module's name, "re:" and a pattern that its name begins with, or a class such as "Linear".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deltart.errors import ConfigError
from deltart.export.config_fields import Fields
from deltart.json_files import shown

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
GROUP_SIZES = (16, 32, 64, 128, 256)  # of MatMulNBits
PATTERN = "re:"
CLASSES = ("Linear",)
CONVERT = "requantize it with llm-compressor, scheme W4A16"
# Other packings of four bits by quant_method, and how to get to this one.
OTHERS = {
    "gptq": f"GPTQ's own packing runs along the other axis: {CONVERT} and GPTQModifier",
    "awq": f"AWQ's own packing interleaves its values: {CONVERT} and AWQModifier",
    "auto-round": "export it from AutoRound with format='llm_compressor'",
    "intel/auto-round": "export it from AutoRound with format='llm_compressor'",
    "auto_round": "export it from AutoRound with format='llm_compressor'",
    "modelopt": "NVFP4 and ModelOpt's other formats have no op here: " + CONVERT,
    "bitsandbytes": f"bitsandbytes has codes of its own: {CONVERT}",
    "mxfp4": f"MXFP4 has no op here: {CONVERT}",
}


@dataclass(frozen=True)
class Int4Group:
    """Modules that `targets` name, packed in groups of `group_size` values of a row."""

    targets: tuple[str, ...]
    group_size: int


@dataclass(frozen=True)
class Int4Spec:
    """What config.json says of packed linears. No groups: the tensors alone say it."""

    groups: tuple[Int4Group, ...] = ()
    ignore: tuple[str, ...] = ()

    def group_size(self, module: str) -> int | None:
        """Values per group of the linear `module`; None where it is not to be packed."""
        if names(module, self.ignore):
            return None
        return next((group.group_size for group in self.groups if names(module, group.targets)), None)


def names(module: str, entries: Sequence[str]) -> bool:
    """Whether an entry of a list of targets or of what is ignored means the linear `module`."""
    return any(
        re.match(entry.removeprefix(PATTERN), module) if entry.startswith(PATTERN) else entry in (module, *CLASSES)
        for entry in entries
    )


def read_int4(quantization: Fields) -> Int4Spec:
    """The spec of a compressed-tensors block of config.json.

    Raises:
        ConfigError: it is of another scheme than symmetric int4 weights in groups.
    """
    groups = quantization.required("config_groups", dict)
    if not groups:
        raise quantization.error("config_groups", groups, "at least one group")
    section = quantization.section("config_groups")
    read = tuple(_group(section.section(name), quantization.optional("format", str, FORMAT)) for name in groups)
    if quantization.optional("kv_cache_scheme", dict, {}):
        raise quantization.error("kv_cache_scheme", quantization.values["kv_cache_scheme"], "none: the cache is f32")
    if quantization.optional("transform_config", dict, {}):
        raise ConfigError(
            f"{quantization.place('transform_config')} is given", "weights as they are, not rotated", CONVERT
        )
    sparsity = quantization.optional("sparsity_config", dict, {})
    if sparsity.get("format", "dense") != "dense":
        raise quantization.error("sparsity_config", sparsity, "none, or format 'dense'")
    quantization.only_if_present("quantization_status", ["compressed"])
    return Int4Spec(read, _entries(quantization, "ignore"))


def refuse_method(quantization: Fields, method: str) -> ConfigError:
    """The error for a quant_method that is not read here, with the way to one that is."""
    known = OTHERS.get(method.lower(), "use a checkpoint in BF16, in the vendor's FP8, or packed by compressed-tensors")
    place = quantization.place("quant_method")
    return ConfigError(f"{place} is {shown(method)}", f"'fp8' or '{METHOD}' with format '{FORMAT}'", known)


def _group(group: Fields, whole: str) -> Int4Group:
    form = group.optional("format", str, whole)
    if form != FORMAT:
        hint = "NVFP4 has no op here: " + CONVERT if "nvfp4" in form else CONVERT
        raise ConfigError(f"{group.place('format')} is {shown(form)}", f"'{FORMAT}'", hint)
    for name in ("input_activations", "output_activations"):
        if group.optional(name, dict, {}):
            raise ConfigError(f"{group.place(name)} is given", "weights alone to be quantized", CONVERT)
    weights = group.section("weights")
    _demand(weights, "num_bits", 4)
    _demand(weights, "type", "int")
    _demand(weights, "symmetric", True)
    _demand(weights, "strategy", "group")
    if weights.optional("actorder", object, None) not in (None, False, "", "weight", "static"):
        hint = "quantize again with actorder='static': it orders the work, not the columns"
        raise ConfigError(
            f"{weights.place('actorder')} is {shown(weights.values['actorder'])}", "'static' or none", hint
        )
    return Int4Group(_entries(group, "targets"), weights.one_of("group_size", GROUP_SIZES))


def _demand(weights: Fields, name: str, value: object) -> None:
    found = weights.required(name, object)
    if type(found) is not type(value) or found != value:
        raise ConfigError(f"{weights.place(name)} is {shown(found)}", shown(value), CONVERT)


def _entries(fields: Fields, name: str) -> tuple[str, ...]:
    entries = fields.optional(name, list, [])
    for entry in entries:
        if not isinstance(entry, str):
            raise fields.error(name, entry, "names of modules, patterns or 'Linear'")
        try:
            re.compile(entry.removeprefix(PATTERN) if entry.startswith(PATTERN) else "")
        except re.error as error:
            raise fields.error(name, entry, f"a pattern ({error})") from None
    return tuple(entries)
