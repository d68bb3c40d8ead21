"""compressed-tensors' quantization_config: which linears are packed in four bits, which are FP8, and by what groups.

https://github.com/vllm-project/compressed-tensors: groups of targets with one scheme each, and a list of what is left
as it is. An entry is a module's name, "re:" and a pattern that its name begins with, or a class such as "Linear".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltart.errors import ConfigError
from deltart.export.config_fields import Fields
from deltart.json_files import shown

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
FP8_FORMATS = ("float-quantized", "naive-quantized")  # one layout: with and without quantized activations
MIXED = "mixed-precision"  # of a file whose groups have formats of their own
BLOCK, CHANNEL = "block", "channel"  # strategies of FP8 weights: a scale per 128 x 128 values, or per row
GROUP_SIZES = (16, 32, 64, 128, 256)  # of MatMulNBits
PATTERN = "re:"
CLASSES = ("Linear",)
CONVERT = "requantize it with llm-compressor, scheme W4A16"
CONVERT_BLOCK = "requantize it with llm-compressor, scheme FP8_BLOCK"
CONVERT_FP8 = f"{CONVERT_BLOCK} or FP8_DYNAMIC"
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
class Int4Scheme:
    """Packed in groups of `group_size` values of a row."""

    group_size: int

    def __str__(self) -> str:
        return f"int4 in groups of {self.group_size}"


@dataclass(frozen=True)
class Fp8Scheme:
    """E4M3 with a scale per 128 x 128 values (BLOCK) or per row (CHANNEL). Activations are the runtime's business."""

    strategy: str

    def __str__(self) -> str:
        return f"FP8 with a scale per {'128 x 128 values' if self.strategy == BLOCK else 'row'}"


Scheme = Int4Scheme | Fp8Scheme


@dataclass(frozen=True)
class Group:
    """Modules that `targets` name, stored by one scheme."""

    targets: tuple[str, ...]
    scheme: Scheme


@dataclass(frozen=True)
class CompressedSpec:
    """What config.json says of quantized linears. No groups: the tensors alone say it."""

    groups: tuple[Group, ...] = ()
    ignore: tuple[str, ...] = ()

    def scheme(self, module: str) -> Scheme | None:
        """How the linear `module` is stored; None where it is left as it is.

        Of several targets that mean it a name counts before a pattern, a pattern before a class, and of two alike the
        first in the alphabet.
        """
        if names(module, self.ignore):
            return None
        by_target = {target: group.scheme for group in self.groups for target in group.targets}
        found = [target for target in by_target if names(module, [target])]
        return by_target[min(found, key=_generality)] if found else None

    def has(self, kind: type[Scheme]) -> bool:
        """Whether some group is of this kind."""
        return any(isinstance(group.scheme, kind) for group in self.groups)

    def __str__(self) -> str:
        names = {Int4Scheme: "packed int4", Fp8Scheme: "FP8"}
        return " and ".join(name for kind, name in names.items() if self.has(kind))


def _generality(target: str) -> tuple[bool, bool, str]:
    return target in CLASSES, target.startswith(PATTERN), target


def names(module: str, entries: Sequence[str]) -> bool:
    """Whether an entry of a list of targets or of what is ignored means the linear `module`."""
    return any(
        re.match(entry.removeprefix(PATTERN), module) if entry.startswith(PATTERN) else entry in (module, *CLASSES)
        for entry in entries
    )


def read_compressed(quantization: Fields) -> CompressedSpec:
    """The spec of a compressed-tensors block of config.json.

    Raises:
        ConfigError: it is of another scheme than symmetric int4 weights in groups, or FP8 by blocks of 128 or by row.
    """
    groups = quantization.required("config_groups", dict)
    if not groups:
        raise quantization.error("config_groups", groups, "at least one group")
    section = quantization.section("config_groups")
    whole = quantization.optional("format", str, MIXED)
    read = tuple(_group(section.section(name), whole) for name in groups)
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
    return CompressedSpec(read, _entries(quantization, "ignore"))


def refuse_method(quantization: Fields, method: str) -> ConfigError:
    """The error for a quant_method that is not read here, with the way to one that is."""
    known = OTHERS.get(method.lower(), "use a checkpoint in BF16, in the vendor's FP8, or packed by compressed-tensors")
    place = quantization.place("quant_method")
    return ConfigError(f"{place} is {shown(method)}", f"'fp8' or '{METHOD}' with format '{FORMAT}'", known)


def _group(group: Fields, whole: str) -> Group:
    weights = group.section("weights")
    is_fp8 = weights.values.get("type") == "float" and weights.values.get("num_bits") == 8
    form = group.optional("format", str, whole)
    if form == MIXED:
        form = FP8_FORMATS[0] if is_fp8 else FORMAT
    if form not in (FORMAT, *FP8_FORMATS):
        hint = "NVFP4 has no op here: " + CONVERT if "nvfp4" in form else CONVERT
        raise ConfigError(f"{group.place('format')} is {shown(form)}", _or(FORMAT, *FP8_FORMATS), hint)
    if group.optional("output_activations", dict, {}):
        raise ConfigError(f"{group.place('output_activations')} is given", "outputs as they are", CONVERT)
    scheme = _int4(group, weights) if form == FORMAT else _fp8(group, weights)
    return Group(_entries(group, "targets"), scheme)


def _int4(group: Fields, weights: Fields) -> Int4Scheme:
    if group.optional("input_activations", dict, {}):
        raise ConfigError(f"{group.place('input_activations')} is given", "weights alone to be quantized", CONVERT)
    _demand(weights, {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}, CONVERT)
    if weights.optional("actorder", object, None) not in (None, False, "", "weight", "static"):
        hint = "quantize again with actorder='static': it orders the work, not the columns"
        raise ConfigError(
            f"{weights.place('actorder')} is {shown(weights.values['actorder'])}", "'static' or none", hint
        )
    return Int4Scheme(weights.one_of("group_size", GROUP_SIZES))


def _fp8(group: Fields, weights: Fields) -> Fp8Scheme:
    """Of activations only those with scales of their own are refused: dynamic ones leave no trace in the checkpoint."""
    _demand(weights, {"num_bits": 8, "type": "float", "symmetric": True}, CONVERT_FP8)
    strategy = weights.required("strategy", str)
    if strategy not in (BLOCK, CHANNEL):
        raise ConfigError(f"{weights.place('strategy')} is {shown(strategy)}", _or(BLOCK, CHANNEL), CONVERT_FP8)
    if strategy == BLOCK:
        _demand(weights, {"block_structure": [128, 128]}, CONVERT_FP8)
    inputs = group.optional("input_activations", dict, {})
    if inputs and inputs.get("dynamic") is not True:
        place = f"{group.place('input_activations')}: dynamic"
        raise ConfigError(f"{place} is {shown(inputs.get('dynamic', False))}", "true, or none", CONVERT_FP8)
    return Fp8Scheme(strategy)


def _or(*choices: str) -> str:
    return " or ".join(shown(choice) for choice in choices)


def _demand(weights: Fields, values: Mapping[str, object], hint: str) -> None:
    for name, value in values.items():
        found = weights.required(name, object)
        if type(found) is not type(value) or found != value:
            raise ConfigError(f"{weights.place(name)} is {shown(found)}", shown(value), hint)


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
