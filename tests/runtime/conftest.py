"""Two checkpoint folders without weights: the vendor's own text files, and a small one made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

_VENDOR_FILES = {
    "tokenizer.json": "tokenizer.json",
    "tokenizer_config.json": "tokenizer_config.json",
    "generation_config.json": "generation_config.json",
    "Qwen3.6-27B.config.json": "config.json",
    "Qwen3.6-27B.chat_template.jinja": "chat_template.jinja",
}


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like Qwen3.6-27B, from shared/qwen3_6 beside the repository (or above it)."""
    roots = Path(__file__).resolve().parents[2:]
    vendor = next((root / "shared/qwen3_6" for root in roots if (root / "shared/qwen3_6").is_dir()), None)
    if vendor is None:
        pytest.skip("shared/qwen3_6 is not beside the repository")
    folder = tmp_path_factory.mktemp("qwen3_6")
    for source, name in _VENDOR_FILES.items():
        shutil.copy(vendor / source, folder / name)
    return folder


SMALL_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant"] %}
        {{- raise_exception("unknown role " ~ message.role) }}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- if not preserve_thinking and not loop.last %}{% continue %}{% endif %}
        {%- generation %}{{ message.content }}{% endgeneration %}
    {%- else %}
        {{- "[" ~ message.role ~ "] " ~ message.content | trim }}
    {%- endif %}
    {{- eos_token }}
{%- endfor %}
{% if tools %}
  {% for tool in tools %}
* {{ tool | tojson(indent=2) }}
  {% endfor %}
{% endif %}
{% if add_generation_prompt %}
<bot>{{ "" if enable_thinking else "<think></think>" }}
{% endif %}
year {{ strftime_now("%Y") | length }}"""


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 300 entries with special token <end> and two that are not special."""
    folder = tmp_path_factory.mktemp("small")
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["the quick brown fox jumps over the lazy dog, the end"] * 3, trainer)
    core.add_special_tokens(["<end>"])
    core.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>")])
    core.save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": "<end>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": SMALL_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
