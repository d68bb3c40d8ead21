"""Tokens and masks against the tokenizers library and llguidance."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from deltart.errors import GenerationError
from deltart.runtime.structure.vocabulary import Vocabulary
from deltart.runtime.text.tokenizer import Tokenizer
from support.walks import members

TEXTS = [
    "",
    "plain words",
    "a<think>b</tool_call>",
    "<|im_end|>",
    "e\u0301 is not é",
    "日本語 🚀\n\n\t x",
    "\u200d\ufeff",
]


def test_pieces_are_what_the_tokenizers_library_decodes(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    core = tokenizers.Tokenizer.from_str(tokenizer._core.to_str())
    rng = random.Random(1)
    for _ in range(300):
        ids = [rng.randrange(vocabulary.limit) for _ in range(rng.randrange(1, 12))]
        text = b"".join(vocabulary.pieces[token] for token in ids).decode("utf-8", "replace")
        assert text == core.decode(ids, skip_special_tokens=False)


def test_every_piece_is_that_of_the_real_vocabulary(qwen_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(qwen_folder)
    core = tokenizers.Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_limit)
    texts = core.decode_batch([[token] for token in range(vocabulary.limit)], skip_special_tokens=False)
    wrong = [i for i, text in enumerate(texts) if vocabulary.pieces[i].decode("utf-8", "replace") != text]
    assert not wrong
    assert len(vocabulary.members(vocabulary.text_mask)) > 248_000


@pytest.mark.parametrize("text", TEXTS)
def test_plain_encoding_keeps_the_text_and_knows_no_added_tokens(
    tokenizer: Tokenizer, vocabulary: Vocabulary, text: str
) -> None:
    ids = vocabulary.encode(text)
    assert b"".join(vocabulary.pieces[token] for token in ids).decode() == text
    assert not set(ids) & set(tokenizer.added())


def test_plain_encoding_is_the_usual_one_where_there_is_nothing_special(tokenizer: Tokenizer) -> None:
    for text in ("<parameter=city>\n", "<function=get_weather>\n", '{"name": "x", "n": 12}', "</function>\n"):
        assert tokenizer.encode_plain(text) == tokenizer.encode(text)


def test_masks_hold_the_tokens_that_they_say(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    everything, ends = set(range(vocabulary.limit)), set(tokenizer.eos_ids)
    special = {token for token, is_special in tokenizer.added().items() if is_special}
    assert set(members(vocabulary.mask({0, 31, 32, 777}), vocabulary.limit)) == {0, 31, 32, 777}
    assert set(members(vocabulary.end_mask, vocabulary.limit)) == ends
    assert set(members(vocabulary.going_mask, vocabulary.limit)) == everything - ends
    assert set(members(vocabulary.text_mask, vocabulary.limit)) == everything - ends - special
    assert set(vocabulary.members(vocabulary.text_mask)) == everything - ends - special
    assert vocabulary.mask(()).shape == (-(-vocabulary.limit // 32),)


def test_llguidance_sees_the_same_tokens(vocabulary: Vocabulary) -> None:
    theirs = vocabulary.matcher_tokenizer
    added = set(vocabulary._added)
    assert theirs.vocab_size == vocabulary.limit
    assert sorted(theirs.eos_tokens) == sorted(vocabulary.end_ids)
    for token, piece in enumerate(vocabulary.pieces):
        if token in added:
            assert theirs.is_special_token(token)
        elif piece != b"\xff":  # its mark of special tokens, and no byte of any text
            assert theirs.decode_bytes([token]) == piece


def test_a_smaller_limit_leaves_the_rest_out(tokenizer: Tokenizer) -> None:
    small = Vocabulary(tokenizer, 1000)
    assert len(small.pieces) == 1000
    assert np.unpackbits(small.text_mask.view(np.uint8)).sum() <= 1000
    with pytest.raises(GenerationError, match="no token </think>"):
        small.tag("</think>")
    assert Vocabulary(tokenizer, tokenizer.vocab_limit).tag("</think>") == tokenizer.id_of("</think>")
