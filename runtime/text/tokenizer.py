"""The checkpoint's tokenizer: text to ids, ids to text, and text from a stream of ids."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from deltart.errors import ArtifactError, ConfigError, GenerationError
from deltart.runtime.text.vocabulary import load_vocabulary, read_json, token_text

# Tags that the reply's parser reads. Some checkpoints mark them special, which would hide them from it.
TAGS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})


class Tokenizer:
    """Byte-level BPE of a checkpoint folder, with the ids and texts of transformers' AutoTokenizer on it.

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
        added = core.get_added_tokens_decoder()
        self._skipped = frozenset(i for i in added if added[i].content not in TAGS and not core.decode([i]))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Reads tokenizer.json and, where present, the other JSON files that speak of tokens."""
        folder = Path(folder)
        core = load_vocabulary(folder)
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

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` as it stands: not normalised, and no added token is recognised in it."""
        pieces = self._core.pre_tokenizer.pre_tokenize_str(text)
        return [token.id for piece, _ in pieces for token in self._core.model.tokenize(piece)]

    def pieces(self) -> list[bytes]:
        """What each id below vocab_limit stands for: bytes, of an added token its text; empty where there is none."""
        found, added = [b""] * self.vocab_limit, self._core.get_added_tokens_decoder()
        for piece, token in self._core.get_vocab(with_added_tokens=False).items():
            found[token] = _bytes_of(piece)
        for token, entry in added.items():
            found[token] = entry.content.encode("utf-8")
        return found

    def added(self) -> dict[int, bool]:
        """The ids of added tokens, each with whether it is marked special."""
        return {token: entry.special for token, entry in self._core.get_added_tokens_decoder().items()}

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`, without the tokens marked special unless `skip_special` is false.

        Added tokens not marked special stay, and so do the tags of thinking and of tool calls, however they are
        marked. Bytes that are not UTF-8 become U+FFFD.
        """
        kept = [token for token in ids if token not in self._skipped] if skip_special else list(ids)
        return self._core.decode(kept, skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` stands for; of special ones their text.

        Raises:
            GenerationError: an id that is not in the vocabulary.
        """
        piece = self._core.id_to_token(token)
        if piece is None:
            raise GenerationError(f"token id {token}", "an id of the vocabulary", "use the checkpoint's own ids")
        return _bytes_of(piece)

    def stream(self, skip_special: bool = True) -> Detokenizer:
        """A fresh incremental decoder, whose pieces add up to what `decode` gives."""
        return Detokenizer(self._core, self._skipped if skip_special else frozenset())


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


def _id_list(config: Mapping[str, Any], path: Path) -> list[int]:
    value = config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ConfigError(f"{path}: eos_token_id = {value!r}", "an id or a list of ids", "copy the vendor's")
    return ids
