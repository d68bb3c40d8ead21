"""The tokenizer that transformers' AutoTokenizer makes of a checkpoint folder, from the same files.

transformers does not load tokenizer.json as it is for this family: its tokenizer class takes vocabulary and merges
from the file, brings normaliser and pre-tokenizer itself, and adds the tokens that tokenizer_config.json lists.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from deltart import json_files
from deltart.errors import ArtifactError

# How Qwen3_5Tokenizer and Qwen2Tokenizer split text before merging: the second does not keep combining marks with
# their letters.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"Qwen3_5Tokenizer": _QWEN3_5, "Qwen2Tokenizer": _QWEN2}
# Model types whose tokenizer_class transformers does not believe.
_ALWAYS_QWEN3_5 = ("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text")
_FAMILY = (*_ALWAYS_QWEN3_5, "qwen3_5_text")
_ENDOFTEXT = {name: "<|endoftext|>" for name in ("unk_token", "eos_token", "pad_token")}  # of both classes
_HINT = "copy tokenizer.json and tokenizer_config.json from the vendor's checkpoint"

Json = dict[str, Any]
Special = Mapping[str, str | AddedToken]


def read_json(path: Path) -> Json:
    """The mapping in a JSON file; an absent file is an empty mapping.

    Raises:
        ConfigError: not JSON, or not a mapping.
    """
    return json_files.read_json(path, hint="copy the vendor's") if os.path.lexists(path) else {}


def token_text(token: Any) -> str | None:
    """The text of a token written in tokenizer_config.json as a string or as a mapping with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def load_vocabulary(folder: Path) -> Tokenizer:
    """Encoder and decoder of a folder, without truncation and padding.

    Raises:
        ArtifactError: tokenizer.json is absent, malformed or not byte-level, or what is listed beside it is no token.
        ConfigError: tokenizer_config.json or config.json is malformed.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", "the tokenizer beside the model", _HINT)
    config = read_json(folder / "tokenizer_config.json")
    model_type = read_json(folder / "config.json").get("model_type")
    try:
        return _load(path, config, _tokenizer_class(config.get("tokenizer_class"), model_type))
    except ArtifactError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ArtifactError(f"{path} can't be read: {error}", "a tokenizers file", _HINT) from error


def _tokenizer_class(named: Any, model_type: Any) -> str | None:
    """The class that transformers takes, where it brings its own splitting; else None: the file's is used."""
    if model_type not in _FAMILY:
        return None
    if model_type in _ALWAYS_QWEN3_5 or not isinstance(named, str):
        return "Qwen3_5Tokenizer"
    name = named.removesuffix("Fast")
    return name if name in _SPLITS else None


def _load(path: Path, config: Json, own_class: str | None) -> Tokenizer:
    listed = config.get("added_tokens_decoder")
    written = read_json(path) if own_class or listed is None else {}
    core = _rebuilt(written, config, own_class) if own_class else Tokenizer.from_file(str(path))
    core.no_truncation()
    core.no_padding()
    if not isinstance(core.decoder, decoders.ByteLevel):
        raise ArtifactError(f"{path} has decoder {core.decoder!r}", "a ByteLevel decoder", _HINT)
    core.encode_special_tokens = config.get("split_special_tokens") is True
    special = _special_tokens(path.parent, config, defaults=_ENDOFTEXT if own_class else {})
    tokens = _old_listing(path.parent, written, special) if listed is None else _listing(listed)
    core.add_tokens(list(_missing_tokens(core, special, tokens)))
    if own_class == "Qwen2Tokenizer":
        core.add_tokens([AddedToken(str(token), special=True) for token in special.values()])
    return core


def _rebuilt(written: Json, config: Json, own_class: str) -> Tokenizer:
    model = written.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ArtifactError("tokenizer.json holds no BPE model", "a byte-level BPE", _HINT)
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(left, right) for left, right in pairs]
    core = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, fuse_unk=False, byte_fallback=False))
    core.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLITS[own_class]), behavior="isolated", invert=False)
    level = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") is True, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    core.decoder = decoders.ByteLevel()
    return core


def _special_tokens(folder: Path, config: Json, defaults: Mapping[str, str]) -> Special:
    """Special tokens by their name in the configuration; those without a name by a number."""
    named: Json = {**defaults, **config}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if config.get("added_tokens_decoder") is None:
        older = read_json(folder / "special_tokens_map.json")
        named |= older
        more = older.get("extra_special_tokens") or []
        extra = extra + more if isinstance(extra, list) and isinstance(more, list) else more or extra
    tokens = {name: token for name, token in named.items() if name.endswith("_token")}
    tokens |= extra if isinstance(extra, dict) else {str(number): token for number, token in enumerate(extra)}
    return {name: _special_token(token) for name, token in tokens.items() if token_text(token)}


def _special_token(token: Any) -> str | AddedToken:
    if not isinstance(token, dict):
        return str(token)
    fields = ("content", "single_word", "lstrip", "rstrip", "normalized")
    return AddedToken(**{name: token[name] for name in fields if name in token}, special=True)


def _listing(entries: Json) -> dict[int, AddedToken]:
    """Added tokens by id, from tokenizer_config.json."""
    return {int(index): AddedToken(**entry) for index, entry in entries.items()}


def _old_listing(folder: Path, written: Json, special: Special) -> dict[int, AddedToken]:
    """Added tokens by id, from added_tokens.json and tokenizer.json."""
    listed: dict[int, AddedToken] = {}
    texts = {str(token) for token in special.values()}
    for text, index in read_json(folder / "added_tokens.json").items():
        listed[index] = AddedToken(text, normalized=text not in texts, special=text in texts)
    for entry in written.get("added_tokens", []):
        listed[entry["id"]] = AddedToken(**{key: value for key, value in entry.items() if key != "id"})
    return listed


def _missing_tokens(core: Tokenizer, special: Special, listed: Mapping[int, AddedToken]) -> Iterator[AddedToken]:
    """The tokens that the core lacks, in the order in which transformers gives them ids."""
    there = core.get_added_tokens_decoder().values()
    same, seen = {repr(token) for token in there}, {token.content for token in there}
    by_text = {token.content: token for token in listed.values()}
    named = {str(token) for name, token in special.items() if not name.isdigit()}
    for token in (listed[index] for index in sorted(listed)):
        if repr(token) not in same:
            token.special = token.special or token.content in named
            seen.add(token.content)
            yield token
    for named_token in special.values():
        text = str(named_token)
        if text not in seen:
            seen.add(text)
            own = named_token if isinstance(named_token, AddedToken) else AddedToken(text, special=True)
            yield by_text.get(text, own)
