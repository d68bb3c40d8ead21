"""Which files of a folder hold its weights, and what to do where they are not named as transformers names them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from deltart.errors import CheckpointError
from deltart.json_files import read_json, shown
from deltart.safetensors import INDEX, SINGLE

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SHOWN = 4  # names in a message


def find_weights(folder: Path) -> tuple[list[str], Mapping[str, str] | None]:
    """(names of the safetensors files, which file the index gives each tensor): the index's, or the single file.

    Raises:
        CheckpointError: there is neither, or both and not of the same weights; the message says what there is.
    """
    index, single = folder / INDEX, folder / SINGLE
    if not index.exists():
        if not single.exists():
            raise _no_weights(folder)
        return [SINGLE], None
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    if single.exists() and SINGLE not in names:
        raise CheckpointError(
            f"{folder} holds both {SINGLE} and {INDEX}, which names {_listed(names)}",
            "one of them: they are two sets of weights",
            f"delete {INDEX} and its files if {SINGLE} is the newer one (transformers reads it), else delete {SINGLE}",
        )
    return names, weight_map


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no usable 'weight_map'", "a map of tensor name to shard file")
    if not weight_map:
        raise CheckpointError(f"{index} names no tensors", "a map of tensor name to shard file")
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or "\0" in shard:
            raise CheckpointError(f"{index} names shard {shown(shard)}", "a file name beside the index")
        if not os.path.isfile(index.parent / shard):  # False also for a name that no file can have
            found = f"{index} names shard {shown(shard)}, which does not exist"
            raise CheckpointError(found, "every shard beside it", "finish the download")
    return weight_map


def _no_weights(folder: Path) -> CheckpointError:
    """What the folder holds instead, and what to do about it."""
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    safetensors = [name for name in files if name.endswith(".safetensors")]
    shards = [name for name in safetensors if _SHARD.fullmatch(name)]
    expected = f"{SINGLE}, or {INDEX} and its files"
    if "adapter_config.json" in files or any(name.startswith("adapter_model") for name in files):
        found = f"{folder} holds a LoRA adapter (adapter_config.json), not a model"
        return CheckpointError(found, expected, f"merge it into its base model: deltart merge BASE {folder} -o OUT")
    if shards:
        return CheckpointError(f"{folder} holds {_listed(shards)} without {INDEX}", expected, _without_index(shards))
    if safetensors:
        rename = f"rename {safetensors[0]} to {SINGLE}" if len(safetensors) == 1 else f"name the model's file {SINGLE}"
        return CheckpointError(f"{folder} holds {_listed(safetensors)}, but no {SINGLE}", expected, rename)
    pickles = [name for name in files if name.endswith(_PICKLES)]
    if pickles:
        convert = "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new), which writes safetensors"
        return CheckpointError(
            f"{folder} holds {_listed(pickles)}, which are pickles", expected, f"convert it: {convert}"
        )
    gguf = [name for name in files if name.endswith(".gguf")]
    if gguf:
        return CheckpointError(f"{folder} holds {_listed(gguf)}", expected, "use the original Hugging Face checkpoint")
    below = [name for name in files if (folder / name / "config.json").is_file()]
    hint = f"name the folder {folder / below[-1]}" if below else "point at a Hugging Face checkpoint folder"
    return CheckpointError(f"{folder} holds no weights", expected, hint)


def _without_index(shards: list[str]) -> str:
    """The hint for files that are numbered as shards."""
    stem, _, count = _SHARD.fullmatch(shards[0]).groups()  # type: ignore[union-attr]
    every = [f"{stem}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
    missing = [name for name in every if name not in shards]
    if missing:
        return f"finish the download: {_listed(missing)} and {INDEX} are missing"
    return f"copy {INDEX} from where the files came from, or save the model again with save_pretrained"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
