"""Pictures and videos against transformers' greedy replies, and the runtime's features on prompts that hold some."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from deltart.errors import GenerationError
from deltart.runtime.backends.inputs import media_inputs, mtp_inputs, text_inputs
from deltart.runtime.backends.ort import OrtBackend
from deltart.runtime.backends.slots import PromptMedia
from deltart.runtime.chat_session import ChatSession
from deltart.runtime.conversation import Chats, Prompt
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.schedule.positions import Marks
from deltart.runtime.sequence import Request
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.runtime.vision.encoder import VisionEncoder
from deltart.runtime.vision.patches import patches
from support.schedules import Arrival, Bench, Setting, check, random_params, random_setting
from support.seeing import Seeing, reference_tokens
from support.vision import photograph

GREEDY = SamplingParams(temperature=0, max_new_tokens=64, ignore_eos=True)
Message = dict[str, Any]


@pytest.fixture(scope="module")
def model(seeing: Seeing) -> PreTrainedModel:
    return seeing.model()


@pytest.fixture(scope="module")
def engine(seeing: Seeing) -> Iterator[Engine]:
    with Engine.open(seeing.artifact, options=EngineOptions(slots=2)) as opened:
        yield opened


@pytest.fixture
def chats(engine: Engine) -> Chats:
    return Chats(engine)


def image(height: int, width: int, seed: int = 0) -> Message:
    return {"type": "image", "image": photograph(height, width, seed)}


def video(frames: int, height: int, width: int, fps: float = 2.0) -> Message:
    return {"type": "video", "video": np.stack([photograph(height, width, s) for s in range(frames)]), "fps": fps}


def text(words: str) -> Message:
    return {"type": "text", "text": words}


def user(*parts: Message) -> Message:
    return {"role": "user", "content": list(parts)}


CASES: dict[str, list[Message]] = {
    "image": [user(image(33, 50), text("What is it?"))],
    "image alone": [user(image(64, 64))],
    "narrow image": [user(text("a"), image(8, 300), text("b"))],
    "odd images": [user(image(37, 41), text("and"), image(91, 23), text("differ how?"))],
    "images side by side": [user(image(30, 30), image(30, 30, 1), text("same?"))],
    "video": [user(video(7, 30, 44), text("What happens?"))],
    "long video": [user(text("see"), video(40, 24, 24, 8.0))],
    "mix": [user(text("a"), image(50, 31), video(5, 30, 30), text("b"), image(20, 60), text("c"))],
    "turns": [user(image(33, 50), text("one")), {"role": "assistant", "content": "yes"}, user(video(4, 20, 30))],
}


def generated(engine: Engine, prompt: Prompt, params: SamplingParams = GREEDY) -> Any:
    return engine.submit(prompt.request(params)).result()[0]


FAST = ("image", "odd images", "video", "mix")
PARAMETERS = [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("case", PARAMETERS)
def test_greedy_tokens_equal_transformers(case: str, engine: Engine, model: PreTrainedModel, chats: Chats) -> None:
    prompt = chats.prompt(CASES[case])
    entry = engine.manifest.vision
    assert entry is not None
    expected = reference_tokens(model, entry, prompt.ids, prompt.media, 64)
    assert generated(engine, prompt).tokens == expected
    blind = replace(prompt, media=())
    assert generated(engine, blind).tokens != expected  # so the picture was seen


@pytest.mark.slow
def test_portable_graphs_equal_transformers(seeing: Seeing, model: PreTrainedModel) -> None:
    with Engine.open(seeing.artifact, target="portable", options=EngineOptions(slots=1)) as engine:
        prompt = Chats(engine).prompt(CASES["mix"])
        entry = engine.manifest.vision
        assert entry is not None
        assert generated(engine, prompt).tokens == reference_tokens(model, entry, prompt.ids, prompt.media, 64)


def test_turns_with_new_media(engine: Engine, model: PreTrainedModel, chats: Chats) -> None:
    """Each turn's prompt goes on after the kept state of the last, and answers as transformers does from scratch."""
    entry, messages = engine.manifest.vision, list[Message]()
    assert entry is not None
    for turn, parts in enumerate(
        ([image(40, 60, 5)], [text("and now?")], [video(5, 24, 36)], [image(22, 80), text("?")])
    ):
        messages.append(user(*parts))
        prompt = chats.prompt(messages)
        completion = generated(engine, prompt, replace(GREEDY, max_new_tokens=24))
        assert completion.tokens == reference_tokens(model, entry, prompt.ids, prompt.media, 24)
        assert (completion.usage.cached_tokens > 0) == (turn > 0)
        messages.append(chats.read(prompt, completion).message())


def test_prefixes_are_those_of_the_same_picture(engine: Engine, chats: Chats) -> None:
    encoder = engine._encoder
    assert encoder is not None
    first, same, other = (chats.prompt([user(text("look"), image(48, 56, seed), text("so?"))]) for seed in (70, 70, 71))
    assert first.ids == same.ids == other.ids
    begin, end = first.media[0].start, first.media[0].end
    before = encoder.calls
    expected = generated(engine, first).tokens
    hit = generated(engine, same)
    assert (hit.tokens, encoder.calls - before) == (expected, 1)
    assert hit.usage.cached_tokens >= end
    stranger = engine.submit(replace(same.request(GREEDY), cache_salt="tenant")).result()[0]
    assert (stranger.tokens, stranger.usage.cached_tokens, encoder.calls - before) == (expected, 0, 2)
    miss = generated(engine, other)
    assert miss.usage.cached_tokens <= begin
    assert encoder.calls - before == 3
    with Engine.open(engine.backend.artifact, options=EngineOptions(slots=1, cache_bytes=0)) as cold:
        assert miss.tokens == generated(cold, other).tokens != expected


@pytest.mark.slow
def test_no_kept_prefix_ends_within_a_picture(engine: Engine, chats: Chats) -> None:
    cache = engine._cache
    assert cache is not None
    prompt = chats.prompt([user(text("long"), *[image(64, 64, seed) for seed in range(20, 90)], text("?"))])
    generated(engine, prompt, replace(GREEDY, max_new_tokens=1))
    keys = prompt.request(GREEDY).keys
    lengths = {len(e.ids) for e in cache._entries.values() if np.array_equal(e.ids, keys[: len(e.ids)])}
    assert any(span.start < 4096 < span.end for span in prompt.media)
    assert any(4096 - 64 < length < 4096 for length in lengths)
    assert not [n for n in lengths for span in prompt.media if span.start < n < span.end]


def test_sizes_that_differ_with_equal_pixels_are_told_apart(engine: Engine, chats: Chats) -> None:
    """Content of one colour: the frames' bytes are equal, the grids are not."""
    plain = [np.full(shape, 200, np.uint8) for shape in ((32, 64, 3), (64, 32, 3))]
    wide, tall = (chats.prompt([user({"type": "image", "image": pixels})]) for pixels in plain)
    assert wide.ids == tall.ids
    assert wide.media[0].medium.digest != tall.media[0].medium.digest
    generated(engine, wide)
    assert generated(engine, tall).usage.cached_tokens <= tall.media[0].start


def prompts(chats: Chats) -> list[Request]:
    return [chats.prompt(CASES[case]).request(GREEDY) for case in CASES if len(chats.prompt(CASES[case]).ids) < 200]


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 60))])
def test_no_schedule_changes_a_token(seed: int, seeing: Seeing, chats: Chats) -> None:
    """Chunks that cut pictures, drafts, kept prefixes, preemption, forks: every reply is that of its request alone."""
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_folder(seeing.artifact)
    marks = Marks(tokenizer.encode("<|im_start|>")[0], tokenizer.encode("user")[0])
    bench = Bench(OrtBackend(seeing.artifact, threads=1), tokenizer, marks)
    requests = prompts(chats)
    arrivals, step = [], 0
    for _ in range(rng.randint(2, 6)):
        step += rng.choice([0, 0, 2, 10])
        params = replace(random_params(rng), top_k=0, top_p=1.0, min_p=0.0)  # cuts sort what rounding tells apart
        request = replace(rng.choice(requests), params=params, n=rng.choice([1, 1, 2]))
        arrivals.append(Arrival(step, request))
    setting = random_setting(rng)
    check(bench, setting, arrivals)


def test_pieces_cut_a_picture_anywhere(seeing: Seeing, chats: Chats) -> None:
    tokenizer = Tokenizer.from_folder(seeing.artifact)
    bench = Bench(OrtBackend(seeing.artifact, threads=1), tokenizer, None)
    request = chats.prompt(CASES["image"]).request(replace(GREEDY, max_new_tokens=8, seed=0))
    for piece in range(1, 12):
        setting = Setting(slots=1, drafts=3, cache_bytes=0, token_budget=10**9, prefill_tokens=piece)
        check(bench, setting, [Arrival(0, request)])


def test_preempted_prompts_and_replies_go_on(seeing: Seeing, chats: Chats) -> None:
    tokenizer = Tokenizer.from_folder(seeing.artifact)
    bench = Bench(OrtBackend(seeing.artifact, threads=1), tokenizer, None)
    one, two = (chats.prompt(CASES[case]).request(replace(GREEDY, seed=0)) for case in ("image", "odd images"))
    setting = Setting(slots=2, drafts=2, cache_bytes=0, token_budget=len(one.ids) + len(two.ids) + 30, prefill_tokens=9)
    tally = check(bench, setting, [Arrival(0, one), Arrival(0, two)])
    assert tally.preemptions


def test_the_draft_head_reads_pictures(seeing: Seeing, chats: Chats) -> None:
    """Its entries for a prompt: the embedding of the next token, a picture's rows included, at the token's position."""
    backend = OrtBackend(seeing.artifact)
    entry = backend.manifest.vision
    assert entry is not None
    request = chats.prompt(CASES["mix"]).request(GREEDY)
    length = len(request.ids)
    encoder = VisionEncoder(backend.see, entry, 10**9)
    embeds, index = encoder.chunk(request.media, 0, length)
    ids, none = np.array([request.ids]), np.zeros(1, np.int32)
    positions = request.positions[:, None]
    text_state, mtp_state = (backend.new_state(graph, 1, length) for graph in ("model", "mtp"))
    inputs = text_inputs(ids, none, positions=positions) | media_inputs(embeds, index)
    (hidden,) = backend.run("model", text_state, inputs, ["hidden"])
    inputs = mtp_inputs(ids[:, 1:], hidden[:, :-1], none, positions=positions[:, :, :-1])
    inputs |= media_inputs(embeds, index[1:])
    backend.run("mtp", mtp_state, inputs, ["hidden"])
    slots = backend.open_slots(1, 512, 1226)
    for begin in range(0, length, 13):
        end = min(begin + 13, length)
        media = PromptMedia(request.positions, *encoder.chunk(request.media, begin, end))
        slots.prefill(0, request.ids[begin:end], begin, np.array([end - begin - 1]), media)
    snapshot = slots.save(0)
    for name in {name for block in snapshot.blocks for name in block.caches}:
        rows = np.concatenate([block.caches[name] for block in snapshot.blocks], axis=1)
        state = mtp_state if name.startswith("mtp.") else text_state
        expected = state.pair(name.removeprefix("mtp."))[0].numpy()[0, :, : rows.shape[1]]
        assert rows.shape[1] == (length - 1 if name.startswith("mtp.") else length)
        assert np.abs(rows - expected).max() < 1e-4, name


def test_embeddings_are_those_of_the_tower(seeing: Seeing, model: PreTrainedModel, chats: Chats) -> None:
    backend = OrtBackend(seeing.artifact)
    entry = backend.manifest.vision
    assert entry is not None
    encoder = VisionEncoder(backend.see, replace(entry, max_patches=200), 0)
    for case in ("image", "narrow image", "video"):
        for span in chats.prompt(CASES[case]).media:
            medium = span.medium
            rows = torch.from_numpy(patches(medium.frames, entry)).flatten(0, 1)
            with torch.no_grad():
                expected = model.model.visual(rows, grid_thw=torch.tensor([medium.grid])).pooler_output.numpy()
            found = encoder.rows(medium, span.frame)
            begin = span.frame * medium.frame_tokens
            assert np.abs(found - expected[begin : begin + medium.frame_tokens]).max() < 1e-4


class GpuLike(OrtBackend):
    """A backend of an artifact that sees, which itself does not."""

    sees = False


def test_what_is_refused(engine: Engine, chats: Chats, nano_artifact: Any) -> None:
    long = [user(*[image(64, 64, seed) for seed in range(70)])]
    with Engine.open(engine.backend.artifact, options=EngineOptions(slots=1, max_model_len=300)) as small:
        prompt = Chats(small).prompt(long)
        with pytest.raises(GenerationError, match=r"tokens \(image 1: 64 tokens, image 2: 64 tokens"):
            small.submit(prompt.request(GREEDY))
    with pytest.raises(GenerationError, match="System message cannot contain images"):
        chats.prompt([{"role": "system", "content": [image(9, 9)]}, user(text("a"))])
    backend = GpuLike(engine.backend.artifact)
    with Engine(backend, engine.tokenizer, engine.template, EngineOptions(slots=1)) as gpu:
        with pytest.raises(GenerationError, match="this engine has no plan of the vision graph"):
            gpu.submit(chats.prompt(CASES["image"]).request(GREEDY))
        assert not gpu.plan.vision
    with Engine.open(nano_artifact, options=EngineOptions(slots=1)) as blind:
        with pytest.raises(GenerationError, match="no vision graph"):
            blind.submit(chats.prompt(CASES["image"]).request(GREEDY))
        with pytest.raises(GenerationError, match="a part of type 'image'"):
            Chats(blind).prompt(CASES["image"])


def test_typed_placeholders_show_nothing(engine: Engine, chats: Chats) -> None:
    prompt = chats.prompt([user(text("<|vision_start|><|image_pad|><|vision_end|>"), image(40, 40))])
    assert len(prompt.media) == 1
    assert prompt.ids.count(1205) == prompt.media[0].medium.tokens
    assert "<|image_pad|>" in engine.tokenizer.decode(prompt.ids[: prompt.media[0].start], skip_special=False)
    assert generated(engine, prompt).tokens


def plant_forgotten_shift(patch: pytest.MonkeyPatch) -> None:
    """What follows a picture counts on by tokens."""
    patch.setattr(Request, "rope_shift", 0)


def plant_flat_positions(patch: pytest.MonkeyPatch) -> None:
    """A picture's rows are numbered as text is."""
    patch.setattr(Request, "positions", property(lambda self: np.tile(np.arange(len(self.ids)), (3, 1))))


def plant_keys_of_ids(patch: pytest.MonkeyPatch) -> None:
    """Kept prefixes are told apart by placeholders, which are all alike."""
    patch.setattr(Request, "keys", property(lambda self: self.ids))


def plant_rows_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """A piece that begins within a picture takes its rows from the picture's beginning."""
    real = VisionEncoder.chunk

    def chunk(self: VisionEncoder, spans: Any, begin: int, end: int, salt: str) -> Any:
        embeds, index = real(self, spans, begin, end, salt)
        cut = [span for span in spans if span.start < begin < span.end]
        return (np.roll(embeds, 1, axis=0), index) if cut else (embeds, index)

    patch.setattr(VisionEncoder, "chunk", chunk)


def test_planted_faults_are_seen(
    seeing: Seeing, chats: Chats, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts that differ in a picture's content only, read in pieces, against transformers."""
    prompts = [chats.prompt([user(image(64, 64, seed), text("what?"))]) for seed in (3, 4)]
    backend = OrtBackend(seeing.artifact, threads=1)
    tokenizer = Tokenizer.from_folder(seeing.artifact)
    marks = Marks(tokenizer.encode("<|im_start|>")[0], tokenizer.encode("user")[0])
    bench = Bench(backend, tokenizer, marks)
    entry = backend.manifest.vision
    assert entry is not None
    expected = [reference_tokens(model, entry, prompt.ids, prompt.media, 64) for prompt in prompts]
    setting = Setting(slots=1, drafts=0, cache_bytes=10**8, token_budget=10**9, prefill_tokens=24)

    def replies() -> list[list[int]]:
        arrivals = [Arrival(0, prompt.request(GREEDY)) for prompt in prompts]
        return [group[0].tokens for group in bench.run(setting, arrivals)[0]]

    assert replies() == expected
    for plant in (plant_forgotten_shift, plant_flat_positions, plant_keys_of_ids, plant_rows_off_by_one):
        with monkeypatch.context() as patch:
            plant(patch)
            assert replies() != expected, plant.__name__


def test_a_saved_conversation_keeps_its_pictures(seeing: Seeing, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(photograph(50, 50, 12)).save(path)
    part, params = {"type": "image", "image": path}, replace(GREEDY, max_new_tokens=8, ignore_eos=False)
    told = []
    for turn in range(2):
        with Engine.open(seeing.artifact, options=EngineOptions(slots=1)) as engine:
            session = ChatSession(Chats(engine))
            if turn:
                session.load(tmp_path / "talk.json")
            list(session.say("and?" if turn else "what?", params, [] if turn else [part]))
            assert session.last is not None
            told.append(session.last.completion.usage)
            session.save(tmp_path / "talk.json")
    assert told[0].cached_tokens == 0
    assert told[1].cached_tokens > 36  # beyond the picture
