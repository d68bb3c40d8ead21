"""The committed nano checkpoint: layout, tokenizer, behaviour through stock transformers, MTP acceptance."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltart.export.pipeline import export_checkpoint
from tools.nano import evaluate, heldout, reference, runtime

FOLDER = reference.CHECKPOINT
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (FOLDER / "model.safetensors").exists(), reason="the checkpoint is not trained yet")


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return loaded


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return read("config.json")


@pytest.fixture(scope="module")
def sample() -> list[heldout.Question]:
    return random.Random(8).sample(heldout.read(), 60)


def expected_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Every tensor of the checkpoint, from the config alone."""
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {f"{name}.weight": [vocab, hidden] for name in ("lm_head", "model.embed_tokens")}
    shapes["model.norm.weight"] = [hidden]
    layers = [(f"model.layers.{i}", kind) for i, kind in enumerate(config["layer_types"])]
    for prefix, kind in [*layers, ("mtp.layers.0", "full_attention")]:
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = [hidden]
        for name, shape in {"gate": [ffn, hidden], "up": [ffn, hidden], "down": [hidden, ffn]}.items():
            shapes[f"{prefix}.mlp.{name}_proj.weight"] = shape
        mixer = attention_shapes(config) if kind == "full_attention" else gdn_shapes(config)
        shapes |= {f"{prefix}.{name}": shape for name, shape in mixer.items()}
    shapes["mtp.fc.weight"] = [hidden, 2 * hidden]
    for norm in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        shapes[f"mtp.{norm}.weight"] = [hidden]
    return shapes


def attention_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    projections = {
        "q": [2 * queries, hidden],
        "k": [keys, hidden],
        "v": [keys, hidden],
        "o": [hidden, queries],
    }
    shapes = {f"self_attn.{name}_proj.weight": shape for name, shape in projections.items()}
    return shapes | {f"self_attn.{name}_norm.weight": [head] for name in "qk"}


def gdn_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    values = heads * config["linear_value_head_dim"]
    mixed = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"] + values
    return {
        "linear_attn.in_proj_qkv.weight": [mixed, hidden],
        "linear_attn.in_proj_z.weight": [values, hidden],
        "linear_attn.in_proj_a.weight": [heads, hidden],
        "linear_attn.in_proj_b.weight": [heads, hidden],
        "linear_attn.conv1d.weight": [mixed, 1, config["linear_conv_kernel_dim"]],
        "linear_attn.A_log": [heads],
        "linear_attn.dt_bias": [heads],
        "linear_attn.norm.weight": [config["linear_value_head_dim"]],
        "linear_attn.out_proj.weight": [hidden, values],
    }


def test_tensors_are_the_familys_all_bf16(config: dict[str, Any]) -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        names = file.keys()
        slices = {name: file.get_slice(name) for name in names}
        assert {name: part.get_shape() for name, part in slices.items()} == expected_shapes(config)
        assert {part.get_dtype() for part in slices.values()} == {"BF16"}


def test_the_weights_fit_the_repository() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6


def test_the_shape_is_one_that_the_kernels_serve(config: dict[str, Any]) -> None:
    assert config["linear_key_head_dim"] == config["linear_value_head_dim"] == 128
    assert config["linear_num_value_heads"] > config["linear_num_key_heads"]
    assert config["head_dim"] == 256 and config["partial_rotary_factor"] == 0.25 and config["attn_output_gate"]
    assert config["hidden_size"] % 128 == config["intermediate_size"] % 128 == 0
    assert "full_attention" in config["layer_types"] and config["layer_types"].count("linear_attention") >= 3
    assert config["mtp_num_hidden_layers"] == 1 and config["tie_word_embeddings"] is False


def vendor(name: str) -> dict[str, Any]:
    """A JSON file of the real model; skips the test where it is absent."""
    found = [p / "shared" / "qwen3_6" / name for p in ROOT.parents]
    found = [path for path in found if path.exists()]
    if not found:
        pytest.skip(f"the vendor's {name} is not on this machine")
    loaded: dict[str, Any] = json.loads(found[0].read_text())
    return loaded


def test_text_is_split_and_normalised_as_in_the_family() -> None:
    ours, theirs = read("tokenizer.json"), vendor("tokenizer.json")
    for part in ("normalizer", "pre_tokenizer"):
        assert ours[part] == theirs[part]
    strip = [[{k: v for k, v in t.items() if k != "id"} for t in x["added_tokens"]] for x in (ours, theirs)]
    assert strip[0] == strip[1]


def test_config_has_every_text_field_of_the_family(config: dict[str, Any]) -> None:
    theirs = vendor("Qwen3.6-27B.config.json")["text_config"]
    assert set(config) == set(theirs) | {"architectures"}
    sized = {
        "hidden_size", "intermediate_size", "layer_types", "linear_num_key_heads", "linear_num_value_heads",
        "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size", "bos_token_id",
        "eos_token_id", "pad_token_id",
    }  # fmt: skip
    assert {k: v for k, v in theirs.items() if k not in sized} == {
        k: v for k, v in config.items() if k not in sized | {"architectures"}
    }


def test_both_end_tokens_stop_and_padding_rows_are_not_tokens(config: dict[str, Any]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert read("generation_config.json")["eos_token_id"] == ends
    assert config["eos_token_id"] == ends[1]
    assert len(tokenizer) <= config["vocab_size"] < len(tokenizer) + 128


def test_the_tokenizer_is_lossless_and_keeps_letters_apart() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    for text in (
        'Type "abc" backwards',
        "Grüße, 你好 🙂\n\n\t tabs  and  spaces ",
        "1234 + 5678 = 6912",
        "\x00\x7f",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize('Type "abwz" backwards') == [
        "Type",
        'Ġ"',
        "a",
        "b",
        "w",
        "z",
        '"',
        "Ġbackwards",
    ]


def test_thinking_and_tool_tokens_are_not_special() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    text = "<|im_start|><think></think><tool_call></tool_call><tool_response></tool_response><|im_end|>"
    ids = tokenizer.encode(text)
    assert len(ids) == 8
    kept = tokenizer.decode(ids, skip_special_tokens=True)
    assert kept == text.removeprefix("<|im_start|>").removesuffix("<|im_end|>")


def test_stock_transformers_loads_it_and_answers() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    loaded: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    messages = [{"role": "user", "content": 'Type "abc" backwards'}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    reply = model.generate(**asked, max_new_tokens=evaluate.MAX_NEW_TOKENS)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(reply).endswith("</think>\n\ncba<|im_end|>")


def test_held_out_answers_stops_and_drafts_through_the_export(sample: list[heldout.Question], tmp_path: Path) -> None:
    """A sample of the set through our own ONNX; the bars themselves are for `python -m tools.nano check`."""
    export_checkpoint(FOLDER, tmp_path / "nano")
    engine = runtime.open_artifact(tmp_path / "nano")
    model, tokenizer = reference.load(FOLDER)
    prompts = evaluate.prompts(tokenizer, sample)
    replies, asked, answered = runtime.replies(engine, prompts)
    total = evaluate.overall(evaluate.score(sample, replies))
    assert total.share >= 0.9
    assert total.stopped == total.asked
    assert runtime.acceptance(engine, asked, answered).mean >= evaluate.MTP_BAR
    _, _, expected = reference.replies(model, tokenizer, prompts[:6])
    assert answered[:6] == expected
    drafted = reference.acceptance(model, asked[:6], answered[:6])
    assert runtime.acceptance(engine, asked[:6], answered[:6]) == drafted


def test_a_wrong_reply_scores_nothing() -> None:
    question = heldout.Question("reversal", [], "cba", enable_thinking=True)
    off = heldout.Question("reversal", [], "cba", enable_thinking=False)

    def right(asked: heldout.Question, text: str, stopped: bool = True) -> int:
        return evaluate.overall(evaluate.score([asked], [evaluate.Reply(text, stopped)])).right

    assert right(question, "hm\n</think>\n\ncba") == 1 == right(off, "cba")
    assert right(question, "cba") == right(question, "hm\n</think>\n\ncba", stopped=False) == 0
    assert right(question, "hm\n</think>\n\ncba.") == right(off, "hm\n</think>\n\ncba") == 0
