"""The checkpoint's tokenizer: text to ids, ids to text, and text from a stream of ids."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from deltart import json_files
from deltart.errors import ArtifactError, ConfigError, GenerationError


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; an absent file is an empty mapping.

    Raises:
        ConfigError: not JSON, or not a mapping.
    """
    return json_files.read_json(path, hint="copy the vendor's") if os.path.lexists(path) else {}


class Tokenizer:
    """Byte-level BPE of a checkpoint folder.

    Attributes:
        eos_ids: tokens that end a reply: those of generation_config.json, config.json and the tokenizer.
        vocab_limit: one more than the largest id that stands for text; later rows of the logits are padding.
        generation_config: generation_config.json, empty when there is none.

    Raises:
        ArtifactError: tokenizer.json is absent, malformed or not byte-level, or nothing names an eos token.
        ConfigError: another of the folder's JSON files is malformed.
    """

    def __init__(
        self, core: tokenizers.Tokenizer, eos_ids: Iterable[int], generation_config: Mapping[str, Any]
    ) -> None:
        self._core = core
        self.eos_ids = frozenset(eos_ids)
        self.generation_config = generation_config
        self.vocab_limit = max(core.get_vocab(with_added_tokens=True).values()) + 1
        self._special = frozenset(i for i, added in core.get_added_tokens_decoder().items() if added.special)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Reads tokenizer.json and, where present, the other JSON files that speak of tokens."""
        folder = Path(folder)
        core = _load(folder / "tokenizer.json")
        generation_config = read_json(folder / "generation_config.json")
        config = read_json(folder / "config.json")
        own = token_text(read_json(folder / "tokenizer_config.json").get("eos_token"))
        eos_ids = {
            *_id_list(generation_config, folder / "generation_config.json"),
            *_id_list(config, folder / "config.json"),
            *_id_list(config.get("text_config") or {}, folder / "config.json"),
        }
        own_id = core.token_to_id(own) if own else None
        if own_id is not None:
            eos_ids.add(own_id)
        if not eos_ids:
            raise ArtifactError(
                f"no file of {folder} names an end-of-sequence token",
                "eos_token_id in generation_config.json",
                "copy generation_config.json from the vendor's checkpoint",
            )
        return cls(core, eos_ids, generation_config)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; tokens such as <|im_start|> are recognised in it and none is added.

        Raises:
            GenerationError: the text is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GenerationError(
                f"text that is not Unicode: {error}", "no lone surrogates", "decode the text as UTF-8"
            ) from error
        return self._core.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int | None:
        """The id of the token whose text is `token`; None where the vocabulary has none."""
        found: int | None = self._core.token_to_id(token)
        return found

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`, without the tokens marked special unless `skip_special` is false.

        Added tokens not marked special, such as <think>, stay. Bytes that are not UTF-8 become U+FFFD.
        """
        return self._core.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self, skip_special: bool = True) -> Detokenizer:
        """A fresh incremental decoder, whose pieces add up to what `decode` gives."""
        return Detokenizer(self._core, self._special if skip_special else frozenset())


class Detokenizer:
    """Turns ids into text one at a time, each in time proportional to its own length.

    Pieces hold whole characters only: the bytes of an unfinished one wait for the next token or for `finish`.
    """

    def __init__(self, core: tokenizers.Tokenizer, skipped: frozenset[int]) -> None:
        self._core = core
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, possibly empty.

        Raises:
            GenerationError: an id that is not in the vocabulary.
        """
        if token in self._skipped:
            return ""
        piece = self._core.id_to_token(token)
        if piece is None:
            raise GenerationError(f"token id {token}", "an id of the vocabulary", "pass vocab_limit to the sampler")
        return self._utf8.decode(_bytes_of(piece))

    def finish(self) -> str:
        """U+FFFD for the bytes of an unfinished character, if any are left."""
        return self._utf8.decode(b"", final=True)


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def _bytes_of(piece: str) -> bytes:
    try:
        return bytes(map(_BYTE_OF_CHAR.__getitem__, piece))
    except KeyError:  # an added token, whose text is not written in the alphabet
        return piece.encode("utf-8")


def _load(path: Path) -> tokenizers.Tokenizer:
    hint = "copy tokenizer.json from the vendor's checkpoint"
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", "the tokenizer beside the model", hint)
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ArtifactError(f"{path} can't be read: {error}", "a tokenizers file", hint) from error
    if not isinstance(core.decoder, tokenizers.decoders.ByteLevel):
        raise ArtifactError(f"{path} has decoder {core.decoder!r}", "a ByteLevel decoder", hint)
    return core


def _id_list(config: Mapping[str, Any], path: Path) -> list[int]:
    value = config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ConfigError(f"{path}: eos_token_id = {value!r}", "an id or a list of ids", "copy the vendor's")
    return ids


def token_text(token: Any) -> str | None:
    """The text of a token written in tokenizer_config.json as a string or as a mapping with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
