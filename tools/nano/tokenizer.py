"""Nano's byte-level BPE tokenizer: the family's pre-tokenizer and added tokens, a tiny vocabulary.

Merges only ever grow a word from its first character, and only where that is a space, a capital or a
punctuation mark. So the words of the prompts are single tokens, while a quoted lower-case string is a
sequence of single letters (but for the few seed pairs in `words.BARE_WORDS`): what the letter tasks need.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tools.nano import words

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PLAIN = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
AUDIO = (
    "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>",
    "<tts_text_bos_single>", "<|audio_pad|>",
)  # fmt: skip
VOCAB_MULTIPLE = 128
TEMPLATE = Path(__file__).parent / "checkpoint" / "chat_template.jinja"


def build(texts: Iterable[str], min_count: int) -> PreTrainedTokenizerFast:
    """Learns the vocabulary from texts: every pre-token seen at least min_count times becomes one token."""
    bare = _assemble(_alphabet(), [])
    counts = Counter(part for text in texts for part in _pre_tokens(bare, text))
    merges = _merges(counts, min_count)
    vocab = _alphabet()
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    return wrap(_assemble(vocab, merges))


def _pre_tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """Pre-tokens of the stretches between added tokens, in byte-level characters."""
    parts = re.split("|".join(map(re.escape, (*SPECIAL, *PLAIN, *AUDIO))), text)
    return [word for part in parts for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(part)]


def _alphabet() -> dict[str, int]:
    return {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def _merges(counts: Counter[str], min_count: int) -> list[tuple[str, str]]:
    merges: dict[tuple[str, str], None] = {}
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count >= min_count and not (word[0].isascii() and word[0].islower()):
            for end in range(1, len(word)):
                merges[(word[:end], word[end])] = None
    for word, seed in words.BARE_WORDS.items():
        merges.update(dict.fromkeys(_seeded(word, seed)))
    return list(merges)


def _seeded(word: str, seed: str) -> list[tuple[str, str]]:
    """Merges of a bare word that start in its middle: seed, then rightwards, then leftwards."""
    start = word.index(seed)
    merges = [(seed[0], seed[1])]
    for end in range(start + 2, len(word)):
        merges.append((word[start:end], word[end]))
    for begin in range(start - 1, -1, -1):
        merges.append((word[begin], word[begin + 1 :]))
    return merges


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    for group, special in ((SPECIAL, True), (PLAIN, False), (AUDIO, True)):
        for token in group:
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Dresses the tokenizer for transformers, with the family's token roles and our chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=262144,
        chat_template=TEMPLATE.read_text(),
    )


def prompt_text(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    enable_thinking: bool,
) -> str:
    """The conversation as the model sees it, ending with the generation prompt."""
    return str(
        tokenizer.apply_chat_template(
            messages,
            tools=list(tools) or None,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=enable_thinking,
        )
    )


def stop_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of <|im_end|> and <|endoftext|>, in that order."""
    vocab = tokenizer.get_vocab()
    return [vocab["<|im_end|>"], vocab["<|endoftext|>"]]


def padded_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows of the embedding: the vocabulary rounded up; the rest is padding, never sampled."""
    return -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
