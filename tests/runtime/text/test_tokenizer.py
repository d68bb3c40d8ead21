"""The tokenizer wrapper against the tokenizers library's own decode and transformers' encode."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import tokenizers
from transformers import AutoTokenizer

from deltart.errors import ArtifactError, ConfigError, DeltaRTError, GenerationError
from deltart.runtime.text.tokenizer import Tokenizer

TEXTS = [
    "",
    "Hello, world!\n\n  def f(x):\n\treturn x ** 2  # ok\r\n",
    "It's 12,345.67 — naïve café, Zürich, Ελληνικά, русский, עברית, العربية",
    "深層学習は楽しい。你好,世界!한국어도 됩니다.",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 👍🏽 a👍b \U0001d518\U0001d52b \U0001faf6",
    "e\u0301 decomposed, \u200b zero width, \x00 nul",
    "<|im_start|>user\n2+2?<|im_end|>\n<think>\nfour\n</think>\n\n<tool_call>\n</tool_call>",
]


@pytest.fixture(scope="session")
def qwen(qwen_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(qwen_folder)


@pytest.fixture(scope="session")
def small(small_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(small_folder)


@pytest.fixture(params=["small", "qwen"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def _stream(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special)
    return [*map(stream.push, ids), stream.finish()]


def test_facts_of_the_vendors_tokenizer(qwen: Tokenizer) -> None:
    assert qwen.eos_ids == {248046, 248044}
    assert qwen.vocab_limit == 248077
    assert qwen.encode("<|im_end|><think></think><tool_call></tool_call><|endoftext|>") == [
        *(248046, 248068, 248069, 248058, 248059, 248044)
    ]
    assert qwen.generation_config["top_k"] == 20


def test_only_tokens_marked_special_are_skipped(qwen: Tokenizer) -> None:
    text = "<|im_start|><think>a</think><tool_call>b</tool_call><|im_end|>"
    ids = qwen.encode(text)
    kept = "<think>a</think><tool_call>b</tool_call>"
    assert "".join(_stream(qwen, ids)) == qwen.decode(ids) == kept
    assert "".join(_stream(qwen, ids, skip_special=False)) == qwen.decode(ids, skip_special=False) == text


def test_encoding_is_that_of_transformers(qwen: Tokenizer, qwen_folder: Path) -> None:
    reference = AutoTokenizer.from_pretrained(qwen_folder)
    for text in TEXTS:
        assert qwen.encode(text) == reference.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("skip_special", [True, False])
def test_stream_equals_decode_of_random_tokens(tokenizer: Tokenizer, skip_special: bool) -> None:
    draw = random.Random(int(skip_special))
    special = [i for i in range(tokenizer.vocab_limit) if i >= tokenizer.vocab_limit - 33]
    for length in [0, 1, 2, 3] * 20 + [100] * 100:
        ids = [
            draw.choice(special) if draw.random() < 0.1 else draw.randrange(tokenizer.vocab_limit)
            for _ in range(length)
        ]
        assert "".join(_stream(tokenizer, ids, skip_special)) == tokenizer.decode(ids, skip_special)


def test_stream_equals_decode_of_random_bytes(small: Tokenizer) -> None:
    alphabet = [i for i in range(small.vocab_limit) if len(small.decode([i], skip_special=False)) == 1]
    assert len(alphabet) >= 256
    draw = random.Random(0)
    for _ in range(2000):
        ids = draw.choices(alphabet, k=draw.randint(1, 12))
        assert "".join(_stream(small, ids)) == small.decode(ids)


def test_pieces_hold_whole_characters(tokenizer: Tokenizer) -> None:
    for text in TEXTS[:-1]:
        ids = tokenizer.encode(text)
        pieces = _stream(tokenizer, ids)
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert pieces[-1] == ""
    # One character of several tokens comes out with its last one.
    *early, last, rest = _stream(tokenizer, tokenizer.encode("\U0001faf6"))
    assert early
    assert (set(early), last, rest) == ({""}, "\U0001faf6", "")


def test_an_unfinished_character_is_flushed_at_the_end(small: Tokenizer) -> None:
    *start, _ = small.encode("ab\U0001faf6")
    pieces = _stream(small, start)
    assert "".join(pieces[:-1]) == "ab"
    assert pieces[-1] == "\ufffd" == small.decode(start)[2:]


def test_a_push_takes_the_same_time_late_in_a_long_stream(qwen: Tokenizer) -> None:
    draw = random.Random(0)
    ids = [draw.randrange(qwen.vocab_limit) for _ in range(40_000)]
    stream = qwen.stream()
    seconds = list[float]()
    for token in ids:
        start = time.perf_counter()
        stream.push(token)
        seconds.append(time.perf_counter() - start)
    assert median(seconds[-10_000:]) < 3 * median(seconds[:10_000])


def test_ids_outside_the_vocabulary_are_refused(small: Tokenizer) -> None:
    with pytest.raises(GenerationError, match=f"token id {small.vocab_limit}"):
        small.stream().push(small.vocab_limit)


def test_lone_surrogates_are_refused(small: Tokenizer) -> None:
    with pytest.raises(GenerationError, match="Unicode"):
        small.encode("a\ud800")


def _copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


@pytest.mark.parametrize(
    ("generation", "config", "names"),
    [
        (None, None, {"<end>"}),
        ({"eos_token_id": [1, 2]}, None, {"<end>", 1, 2}),
        ({"eos_token_id": 1}, {"eos_token_id": 3}, {"<end>", 1, 3}),
        (None, {"eos_token_id": None, "text_config": {"eos_token_id": 4}}, {"<end>", 4}),
    ],
)
def test_eos_is_the_union_of_what_the_files_say(
    small_folder: Path,
    tmp_path: Path,
    generation: dict[str, Any] | None,
    config: dict[str, Any] | None,
    names: set[str | int],
) -> None:
    folder = _copy(small_folder, tmp_path)
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        if value is not None:
            (folder / name).write_text(json.dumps(value))
    tokenizer = Tokenizer.from_folder(folder)
    end = tokenizer.encode("<end>")[0]
    assert tokenizer.eos_ids == {end if name == "<end>" else name for name in names}


def test_a_folder_without_any_eos_is_refused(small_folder: Path, tmp_path: Path) -> None:
    folder = _copy(small_folder, tmp_path)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ArtifactError, match="end-of-sequence"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("file", "text", "error", "match"),
    [
        ("tokenizer.json", None, ArtifactError, "missing"),
        ("tokenizer.json", '{"version": ', ArtifactError, "can't be read"),
        ("tokenizer_config.json", "{", ConfigError, "is not valid JSON"),
        ("generation_config.json", "[1]", ConfigError, "holds a list"),
        ("generation_config.json", '{"eos_token_id": "x"}', ConfigError, "eos_token_id"),
        ("config.json", '{"eos_token_id": [1, null]}', ConfigError, "eos_token_id"),
    ],
)
def test_broken_files_are_refused_by_name(
    small_folder: Path, tmp_path: Path, file: str, text: str | None, error: type[DeltaRTError], match: str
) -> None:
    folder = _copy(small_folder, tmp_path)
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(error, match=match) as caught:
        Tokenizer.from_folder(folder)
    assert file in str(caught.value)


def test_another_kind_of_decoder_is_refused(small_folder: Path, tmp_path: Path) -> None:
    folder = _copy(small_folder, tmp_path)
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.decoder = tokenizers.decoders.Metaspace()
    core.save(str(folder / "tokenizer.json"))
    with pytest.raises(ArtifactError, match="Metaspace"):
        Tokenizer.from_folder(folder)
