"""The committed checkpoint that sees: its files, its answers through transformers, and the runtime's against those."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, Qwen3_5ForConditionalGeneration

from deltart.cli import main
from deltart.export.pipeline import export_checkpoint
from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine, EngineOptions
from tools.nano import evaluate as scores
from tools.nano import reference as nano
from tools.nano.heldout import Question
from tools.nano.sight import evaluate, heldout, media, reference, runtime
from tools.nano.sight.corpus import Reader
from tools.nano.sight.export import CHECKPOINT
from tools.nano.sight.model import VISION, Seeing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sight") / "artifact"
    export_checkpoint(CHECKPOINT, folder)
    return folder


@pytest.fixture(scope="module")
def engine(artifact: Path) -> Iterator[Engine]:
    with Engine.open(artifact, options=EngineOptions(slots=3)) as opened:
        yield opened


@pytest.fixture(scope="module")
def loaded() -> tuple[Seeing, Reader]:
    return reference.load()


def spread(count: int) -> list[Question]:
    """Held-out questions, the skills in turn."""
    each = heldout.questions()
    skills = len(each) // heldout.EACH
    return [each[heldout.EACH * (n % skills) + n // skills] for n in range(count)]


def expected(loaded: tuple[Seeing, Reader], questions: list[Question]) -> list[list[int]]:
    model, reader = loaded
    return reference.greedy(model, reader, [reference.ask(reader, question) for question in questions])


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHECKPOINT / name).read_text())
    return found


def test_it_is_small_bf16_and_whole() -> None:
    """The tensors that transformers' own model of the config has, and nano's MTP head's."""
    with torch.device("meta"):
        model = Qwen3_5ForConditionalGeneration(AutoConfig.from_pretrained(CHECKPOINT))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    with safe_open(nano.CHECKPOINT / "model.safetensors", "pt") as file:
        names = file.keys()
        shapes |= {name: file.get_slice(name).get_shape() for name in names if name.startswith("mtp.")}
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        names = file.keys()
        slices = {name: file.get_slice(name) for name in names}
    assert {name: part.get_shape() for name, part in slices.items()} == shapes
    assert {part.get_dtype() for part in slices.values()} == {"BF16"}
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 12e6


def test_files_are_the_familys(real_files_anywhere: Path) -> None:
    config, vendor = read("config.json"), json.loads((real_files_anywhere / "Qwen3.6-27B.config.json").read_text())
    assert {*vendor} - {*config} <= {"language_model_only", "transformers_version"} and {*config} <= {*vendor}
    assert {*config["text_config"]} == {*vendor["text_config"]}
    assert {*config["vision_config"]} == {*vendor["vision_config"]} and config["vision_config"] == VISION
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        theirs = json.loads((real_files_anywhere / name).read_text())
        assert {**read(name), "size": 0} == {**theirs, "size": 0} and {*read(name)["size"]} == {*theirs["size"]}


@pytest.fixture(scope="module")
def real_files_anywhere() -> Path:
    found = [parent / "shared" / "qwen3_6" for parent in ROOT.parents if (parent / "shared" / "qwen3_6").is_dir()]
    if not found:
        pytest.skip("the real model's files are not on this machine")
    return found[0]


def test_nano_is_untouched_and_its_tokenizer_shared() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (CHECKPOINT / name).read_bytes() == (nano.CHECKPOINT / name).read_bytes()


def test_stock_transformers_loads_it_and_names_a_picture() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT)
    made: Any = Qwen3_5ForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32, output_loading_info=True
    )
    model, report = made
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    question = next(q for q in heldout.questions() if q.skill == "color")
    reader = reference.read(CHECKPOINT)
    asked = reference.ask(reader, question)
    reply = model.generate(**reference.inputs(reader, [asked]), max_new_tokens=32)[0, len(asked.ids) :]
    assert tokenizer.decode(reply).endswith(f"{question.expected}<|im_end|>")


PICTURES = [pytest.param(12), pytest.param(108, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", PICTURES)
def test_tokens_equal_transformers(count: int, engine: Engine, loaded: tuple[Seeing, Reader]) -> None:
    """Pictures of every size, two at once, clips, second turns: three rows at a time, drafts, prefixes as they come."""
    questions = spread(count)
    replies, answered = runtime.replies(engine, questions)
    assert answered == expected(loaded, questions)
    total = scores.overall(scores.score(questions, replies))
    assert total.share >= evaluate.BAR and total.stopped == total.asked
    blind = [_blind(question) for question in questions]
    assert scores.overall(scores.score(questions, runtime.replies(engine, blind)[0])).share < 0.6


def _blind(question: Question) -> Question:
    """The same questions, of gray pictures."""

    def emptied(part: Any) -> Any:
        if part["type"] == "image":
            return {**part, "scene": {**part["scene"], "things": []}}
        if part["type"] == "video":
            return {**part, "frames": [{**frame, "things": []} for frame in part["frames"]]}
        return part

    messages = [
        m if isinstance(m["content"], str) else {**m, "content": [emptied(part) for part in m["content"]]}
        for m in question.messages
    ]
    return replace(question, messages=messages)


@pytest.mark.parametrize("drafts", [0, 3])
def test_drafts_change_no_token_and_some_are_accepted(
    drafts: int, artifact: Path, loaded: tuple[Seeing, Reader]
) -> None:
    questions = [question for question in heldout.questions() if question.skill in ("row", "motion")][::25]
    with Engine.open(artifact, options=EngineOptions(slots=1, cache_bytes=0, draft_tokens=drafts)) as engine:
        chats, drafted, hits, answered = Chats(engine), 0, 0, []
        for question in questions:
            prompt = chats.prompt(runtime.messages(question), enable_thinking=question.enable_thinking)
            (completion,) = engine.submit(prompt.request(runtime.GREEDY)).result()
            answered.append(completion.drawn)
            drafted += completion.usage.draft_tokens
            hits += completion.usage.accepted_tokens
    assert answered == expected(loaded, questions)
    assert (drafted > 0) == (hits > 0) == (drafts > 0)


def test_a_kept_prefix_is_the_same_pictures(engine: Engine) -> None:
    """Two pictures that differ in colour alone, asked for it; the first is then met again."""
    question = next(q for q in heldout.questions() if q.skill == "color" and not q.enable_thinking)
    part = next(media.parts(question.messages))
    things = [{**thing, "color": "red" if thing["color"] != "red" else "blue"} for thing in part["scene"]["things"]]
    other = replace(
        question,
        messages=[{"role": "user", "content": [{**part, "scene": {**part["scene"], "things": things}}, _words()]}],
        expected=things[0]["color"],
    )
    same = replace(question, messages=[{"role": "user", "content": [part, _words()]}])
    chats, cached = Chats(engine), []
    for each in (same, other, same):
        prompt = chats.prompt(runtime.messages(each), enable_thinking=False)
        (completion,) = engine.submit(prompt.request(runtime.GREEDY)).result()
        assert completion.text == each.expected
        cached.append(completion.usage.cached_tokens > prompt.media[0].end)
    assert cached[1:] == [False, True]


def _words() -> dict[str, str]:
    return {"type": "text", "text": "What color is it?"}


def test_the_command_line_answers_about_a_file(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = next(q for q in heldout.questions() if q.skill == "name")
    Image.fromarray(media.pixels(next(media.parts(question.messages)))).save(tmp_path / "picture.png")
    text = next(part["text"] for part in question.messages[-1]["content"] if part["type"] == "text")
    command = ["generate", str(artifact), text, "--image", str(tmp_path / "picture.png"), "--temperature", "0"]
    assert main(command) == 0
    assert question.expected in capsys.readouterr().out


@pytest.mark.slow
def test_the_bar_on_all_held_out_questions(engine: Engine) -> None:
    questions = heldout.questions()
    replies, _ = runtime.replies(engine, questions)
    total = scores.overall(scores.score(questions, replies))
    assert total.share >= evaluate.BAR
    assert total.stopped / total.asked >= scores.STOP_BAR
    assert np.mean([reply.text != "" for reply in replies]) == 1
