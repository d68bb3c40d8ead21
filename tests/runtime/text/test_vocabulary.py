"""The tokenizer of a folder against transformers' AutoTokenizer on the same folder, over what people have on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from deltart.runtime.text.tokenizer import TAGS, Tokenizer

NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"
TEXTS = [
    "one two three four five six seven eight nine ten",
    "a",
    "",
    "  two  spaces\n\n\tand tabs \r\nend ",
    "don't I'LL 1234567 3.14",
    "नमस्ते ประเทศไทย e\u0301tude \uff46\uff55\ufb01 ①",  # combining marks, compositions, what NFKC would change
    "<|im_start|>user\nhi<|im_end|>\n<think>\nso</think><tool_call>x</tool_call> <|endoftext|>",
    "x<extra>y <extra> z <EXTRA> <more><|im_end|>",
    "https://example.org/?q=a&b=c#d  ...!!! 😀👩‍👩‍👧 \u202e",
]
WRONG_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

Edit = Callable[[dict[str, Any], dict[str, Any], dict[str, Any], Path], None]


def _decoder(tokenizer: dict[str, Any], **changes: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json's added tokens as tokenizer_config.json lists them; `changes` by text."""
    return {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        | changes.get(token["content"], {})
        for token in tokenizer["added_tokens"]
    }


def _token(text: str, **flags: bool) -> dict[str, Any]:
    fields = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    return {"content": text, **fields, **flags}


def _vendor_class(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    config["tokenizer_class"] = "Qwen2Tokenizer"


def _listed(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    config["added_tokens_decoder"] = _decoder(tokenizer)


def _listed_only_there(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    config["added_tokens_decoder"] = _decoder(tokenizer)
    tokenizer["added_tokens"] = []


def _more_listed(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    config["added_tokens_decoder"] = _decoder(tokenizer)
    after = max(map(int, config["added_tokens_decoder"])) + 1
    config["added_tokens_decoder"] |= {str(after): _token("<extra>"), str(after + 1): _token("<more>", special=True)}


def _special_flag(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    marked = {"<think>": {"special": True}, "</tool_call>": {"special": True}, "<|im_start|>": {"special": False}}
    config["added_tokens_decoder"] = _decoder(tokenizer, **marked)


def _stripping(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    _more_listed(tokenizer, config, model, folder)
    first, second = list(config["added_tokens_decoder"].values())[-2:]
    first |= {"lstrip": True, "rstrip": True}
    second |= {"single_word": True}


def _normalized(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    _more_listed(tokenizer, config, model, folder)
    list(config["added_tokens_decoder"].values())[-2]["normalized"] = True
    tokenizer["normalizer"] = {"type": "Lowercase"}


def _gap(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    config["added_tokens_decoder"] = _decoder(tokenizer) | {"1275": _token("<extra>")}


def _older_files(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    after = max(token["id"] for token in tokenizer["added_tokens"]) + 1
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": after, "<more>": after + 1}))
    more = {"eos_token": _token("<|im_end|>"), "image_token": "<|image|>", "additional_special_tokens": ["<more>"]}
    del more["eos_token"]["special"]
    (folder / "special_tokens_map.json").write_text(json.dumps(more))


def _additional(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    config["additional_special_tokens"] = ["<extra>", "<think>", "<more>"]


def _extra_named(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    config["extra_special_tokens"] = {"image_token": "<extra>", "audio": "<more>"}
    config["video_token"] = "<video>"


def _extra_unnamed(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    _listed(tokenizer, config, model, folder)
    config["extra_special_tokens"] = ["<extra>", "</think>"]


def _new_eos(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    config["eos_token"] = {"__type": "AddedToken", **_token("<extra>", special=True)}


def _wrong_split(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    tokenizer["pre_tokenizer"] = WRONG_SPLIT


def _wrong_split_of_text(
    tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path
) -> None:
    tokenizer["pre_tokenizer"] = WRONG_SPLIT
    model["model_type"] = "qwen3_5_text"


def _no_class(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    _wrong_split_of_text(tokenizer, config, model, folder)
    del config["tokenizer_class"]


def _older_class(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    _wrong_split_of_text(tokenizer, config, model, folder)
    config["tokenizer_class"] = "Qwen2TokenizerFast"


def _wrapper_class(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    _older_class(tokenizer, config, model, folder)
    model["model_type"] = "qwen3_5"


def _new_class(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    _wrong_split_of_text(tokenizer, config, model, folder)
    config["tokenizer_class"] = "Qwen3_5Tokenizer"


def _unknown_class(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    _wrong_split_of_text(tokenizer, config, model, folder)
    config["tokenizer_class"] = "OurOwnTokenizer"


def _normalizer(kind: str | None) -> Edit:
    def edit(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
        tokenizer["normalizer"] = kind and {"type": kind}
        config["tokenizer_class"] = "Qwen2Tokenizer"

    return edit


def _model_fields(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    tokenizer["model"] |= {"dropout": 0.5, "byte_fallback": True, "ignore_merges": True, "fuse_unk": True}
    config["tokenizer_class"] = "Qwen2Tokenizer"


def _merges_as_text(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    tokenizer["model"]["merges"] = merges
    config["tokenizer_class"] = "Qwen2Tokenizer"


def _truncation(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    tokenizer["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "direction": "Right", "stride": 0}
    fixed = {
        "direction": "Left",
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
        "pad_to_multiple_of": None,
    }
    tokenizer["padding"] = {"strategy": {"Fixed": 12}, **fixed}


def _truncation_of_the_class(
    tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path
) -> None:
    _truncation(tokenizer, config, model, folder)
    config |= {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 5, "truncation_side": "left"}


def _field(name: str, value: Any) -> Edit:
    def edit(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
        config |= {"tokenizer_class": "Qwen2Tokenizer", name: value}

    return edit


def _template_processor(tokenizer: dict[str, Any], config: dict[str, Any], model: dict[str, Any], folder: Path) -> None:
    pieces = [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    named = {"<|im_end|>": {"id": "<|im_end|>", "ids": [1195], "tokens": ["<|im_end|>"]}}
    post = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": named}
    tokenizer["post_processor"] = post


VARIANTS: dict[str, Edit] = {
    "as it is": lambda *_: None,
    "the vendor's class": _vendor_class,
    "tokens listed in both files": _listed,
    "tokens listed in tokenizer_config.json alone": _listed_only_there,
    "more tokens listed in tokenizer_config.json": _more_listed,
    "special flags in tokenizer_config.json": _special_flag,
    "tokens that strip": _stripping,
    "tokens that are normalized": _normalized,
    "a gap in the ids": _gap,
    "added_tokens.json and special_tokens_map.json": _older_files,
    "additional_special_tokens": _additional,
    "named extra_special_tokens": _extra_named,
    "unnamed extra_special_tokens": _extra_unnamed,
    "a new eos token": _new_eos,
    "another split, wrapper's model type": _wrong_split,
    "another split, text model type, generic class": _wrong_split_of_text,
    "another split, no class": _no_class,
    "another split, text model type, Qwen2TokenizerFast": _older_class,
    "another split, wrapper's model type, Qwen2TokenizerFast": _wrapper_class,
    "another split, Qwen3_5Tokenizer": _new_class,
    "another split, unknown class": _unknown_class,
    "NFKC": _normalizer("NFKC"),
    "Lowercase": _normalizer("Lowercase"),
    "no normalizer": _normalizer(None),
    "dropout and other fields of the model": _model_fields,
    "merges as text": _merges_as_text,
    "truncation and padding": _truncation,
    "truncation and padding, the vendor's class": _truncation_of_the_class,
    "add_prefix_space": _field("add_prefix_space", True),
    "split_special_tokens": _field("split_special_tokens", True),
    "add_bos_token": _field("add_bos_token", True),
    "clean_up_tokenization_spaces": _field("clean_up_tokenization_spaces", True),
    "another unk_token": _field("unk_token", "<unk>"),
    "a post-processor that adds tokens": _template_processor,
}


@pytest.fixture(params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        shutil.copy(NANO / name, tmp_path / name)
    names = ("tokenizer.json", "tokenizer_config.json", "config.json")
    values = [json.loads((tmp_path / name).read_text()) for name in names]
    VARIANTS[request.param](values[0], values[1], values[2], tmp_path)
    for name, value in zip(names, values, strict=True):
        (tmp_path / name).write_text(json.dumps(value))
    return tmp_path


def test_equals_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    tags = {theirs.convert_tokens_to_ids(tag) for tag in TAGS}
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False, truncation=False, padding=False)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids), text
        if not tags & {*ids}:
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    assert ours.vocab_limit == max(theirs.get_vocab().values()) + 1
    every = range(ours.vocab_limit)
    known = [token for token in every if theirs.convert_ids_to_tokens(token) is not None and token not in tags]
    for token in known:
        assert ours.decode([token]) == theirs.decode([token], skip_special_tokens=True), token
        stream = ours.stream()
        assert stream.push(token) + stream.finish() == ours.decode([token]), token


@pytest.mark.parametrize("special", [True, False])
def test_tags_reach_the_parser_whatever_their_flag(tmp_path: Path, special: bool) -> None:
    shutil.copytree(NANO, tmp_path, dirs_exist_ok=True)
    value = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in value["added_tokens"]:
        token["special"] = special or token["special"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = "<think>so</think>\n\n<tool_call>\n</tool_call>"
    ids = tokenizer.encode(f"{text}<|im_end|>")
    stream = tokenizer.stream()
    assert tokenizer.decode(ids) == "".join(map(stream.push, ids)) == text
