"""The seeing nano's training form equals transformers' model, and its runs resume; its template is the family's."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from transformers.utils.chat_template_utils import _compile_jinja_template

from deltart.runtime.vision.patches import patches
from tools.nano import gdn
from tools.nano import reference as nano
from tools.nano.sight import corpus, media, reference, tasks, tower, train
from tools.nano.sight.export import CHECKPOINT
from tools.nano.tasks import Example, Sampler

SMALL = train.Recipe(
    steps=4, sight_tokens=150, text_tokens=60, warmup=1, decay_from=1000, easy_steps=0, mtp_every=2,
    tower=tower.TowerRecipe(steps=1, pictures=4),
)  # fmt: skip
TEMPLATES = {"nano": nano.CHECKPOINT / "chat_template.jinja", "sight": CHECKPOINT / "chat_template.jinja"}
VENDOR = [
    parent / "shared" / "qwen3_6" / "Qwen3.6-27B.chat_template.jinja" for parent in Path(__file__).resolve().parents
]
IMAGE, VIDEO, WORDS = {"type": "image"}, {"type": "video"}, {"type": "text", "text": " What is it? "}
USER = {"role": "user", "content": [IMAGE, WORDS]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "picture": [USER],
    "picture last": [{"role": "user", "content": [WORDS, {"type": "image_url", "image_url": {"url": "x"}}]}],
    "only a picture": [{"role": "user", "content": [IMAGE]}],
    "mix": [{"role": "user", "content": [IMAGE, VIDEO, WORDS, {"image": "x.png"}, {"video": "x.mp4"}]}],
    "turns": [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "A dog."}, USER],
    "tool": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]},
        {"role": "tool", "content": [IMAGE, WORDS]},
    ],
}
SETTINGS: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": True, "enable_thinking": False, "add_vision_id": True},
]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> train.Run:
    return train.start(SMALL, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    sampler = Sampler(random.Random(12))
    makers = (tasks.row, tasks.motion, tasks.choice, tasks.turns, tasks.order, tasks.number)
    return [make(sampler) for make in makers] + [tasks.conversation(sampler) for _ in range(4)]


@torch.no_grad()
def test_frames_of_many_sizes_in_one_batch_equal_transformers_tower(fresh: train.Run, examples: list[Example]) -> None:
    media = [medium for example in examples for medium in corpus.encode(fresh.reader, example).media]
    assert len({medium.grid for medium in media}) > 5
    made = [patches(medium.frames, fresh.reader.entry) for medium in media]
    pixels = torch.from_numpy(np.concatenate([each.reshape(-1, each.shape[-1]) for each in made]))
    grids = torch.tensor([medium.grid for medium in media])
    expected = fresh.model.model.visual(pixels, grids).pooler_output
    torch.testing.assert_close(fresh.model.rows(media, fresh.reader.entry), expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_padded_batches_equal_transformers_forward(fresh: train.Run, examples: list[Example]) -> None:
    """transformers is given one prompt a call, its patches and no positions."""
    items = [corpus.encode(fresh.reader, example) for example in examples]
    batch = corpus.pad(items)
    with gdn.installed():
        embedded = fresh.model.embedded(batch.tokens, batch.media, fresh.reader.entry)
        found = fresh.model.lm_head(fresh.model.hidden(embedded, batch.positions))
    for example, item, row in zip(examples[:6], items, found, strict=False):
        question = reference.Question(example.skill, example.messages, example.answer, example.enable_thinking)
        asked = reference.ask(fresh.reader, question)
        logits = fresh.model(**reference.inputs(fresh.reader, [asked])).logits[0]
        assert asked.ids == tuple(item.ids[: item.prompt])
        torch.testing.assert_close(row[: item.prompt], logits, atol=2e-4, rtol=0)


def test_only_replies_are_trained_on_and_all_of_them(fresh: train.Run, examples: list[Example]) -> None:
    decode = fresh.reader.tokenizer.decode
    for example in examples:
        item = corpus.encode(fresh.reader, example)
        said = [message["content"] for message in example.messages if message["role"] == "assistant"]
        expected = "".join(f"{answer}<|im_end|>" for answer in said)
        thought = f"{tasks.THOUGHT}\n</think>\n\n" if example.enable_thinking else ""
        expected += f"{thought}{example.answer}<|im_end|>"
        assert decode(item.ids[item.trained].tolist(), skip_special=False) == expected


def test_a_resumed_run_equals_an_unbroken_one(fresh: train.Run, tmp_path: Path) -> None:
    def run(steps: int, folder: str) -> train.Run:
        made = train.start(replace(SMALL, steps=steps), tmp_path / folder)
        made.train(save_every=2, log_every=2)
        return made

    whole = run(4, "whole")
    assert run(2, "broken").step == 2
    rest = run(4, "broken")
    for name, expected in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], expected), name
    assert len((tmp_path / "broken" / "log.jsonl").read_text().splitlines()) == 2


def test_labels_are_of_the_blocks_in_which_things_lie(fresh: train.Run) -> None:
    """Read back from the pixels: a block with a thing's middle differs from the gray around it."""
    sampler, entry = Sampler(random.Random(4)), fresh.reader.entry
    for _ in range(20):
        part = next(media.parts(tasks.row(sampler).messages))
        medium, scene = media.load(part, entry), tower.Scene.from_json(part["scene"])
        known = tower.labels(scene, medium)
        frame, block = medium.frames[0].astype(int), entry.patch * entry.merge
        assert (known.color >= 0).sum() == (known.kind > 0).sum() == len(scene.things)
        for index in known.kind.nonzero()[:, 0].tolist():
            y, x = (block * place for place in divmod(index, medium.block_columns))
            inside = frame[y : y + block, x : x + block].reshape(-1, 3)
            color = np.array(tower.COLORS[list(tower.COLORS)[known.color[index]]])
            assert np.abs(inside - color).sum(-1).min() < 90


def test_a_step_moves_tower_trunk_and_head(fresh: train.Run, tmp_path: Path) -> None:
    run = train.start(replace(SMALL, steps=1), tmp_path)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    after = run.model.state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert not {name for name in same if name.startswith(("model.visual.", "model.language_model.layers.", "mtp."))}


def render(template: str, messages: list[dict[str, Any]], **settings: Any) -> str:
    return str(_compile_jinja_template(TEMPLATES[template].read_text()).render(messages=messages, **settings))


def test_a_picture_is_one_placeholder() -> None:
    assert render("sight", [USER], add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|> What is it?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_matches_the_vendor(name: str, settings: dict[str, Any]) -> None:
    found = [path for path in VENDOR if path.exists()]
    if not found:
        pytest.skip("the vendor's chat template is not on this machine")
    expected = _compile_jinja_template(found[0].read_text()).render(messages=CONVERSATIONS[name], **settings)
    assert render("sight", CONVERSATIONS[name], **settings) == expected


def test_text_is_rendered_as_nanos_own_template_does() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning_content": "d"},
        {"role": "user", "content": " e "},
    ]
    for settings in SETTINGS:
        assert render("sight", messages, **settings) == render("nano", messages, **settings)


@pytest.mark.parametrize("part", [IMAGE, VIDEO])
def test_system_messages_with_media_are_refused(part: dict[str, str]) -> None:
    with pytest.raises(jinja2.TemplateError, match="system"):
        render("sight", [{"role": "system", "content": [part]}, USER])
