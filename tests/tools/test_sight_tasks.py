"""The seeing nano's pictures: every answer read back from the pixels alone, and a held-out side that training lacks."""

from __future__ import annotations

import json
import random
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools.nano.__main__ import main
from tools.nano.sight import heldout, media, tasks
from tools.nano.sight.scenes import COLORS, DIGITS
from tools.nano.tasks import Example, Sampler

SKILLS = {skill.__name__: skill for skill in tasks.SKILLS}
Blob = tuple[np.ndarray, np.ndarray]  # rows and columns of pixels that hang together


def draws(skill: str, held_out: bool = False, count: int = 40) -> list[Example]:
    sampler = Sampler(random.Random(f"{skill}{held_out}"), held_out=held_out)
    return [SKILLS[skill](sampler) for _ in range(count)]


def shown(example: Example) -> list[np.ndarray]:
    return [media.pixels(part) for part in media.parts(example.messages)]


def prompt(example: Example) -> str:
    return next(part["text"] for part in example.messages[-1]["content"] if part["type"] == "text")


def blobs(picture: np.ndarray) -> list[Blob]:
    """What stands out of the gray, thing by thing, from the left."""
    background = np.median(picture.reshape(-1, 3), axis=0)
    out = np.abs(picture - background).max(-1) > 36
    found, seen = list[Blob](), np.zeros(out.shape, bool)
    for start in zip(*np.nonzero(out), strict=True):
        if seen[start]:
            continue
        seen[start], queue, pixels = True, deque([start]), []
        while queue:
            row, column = queue.popleft()
            pixels.append((row, column))
            for place in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                inside = 0 <= place[0] < out.shape[0] and 0 <= place[1] < out.shape[1]
                if inside and out[place] and not seen[place]:
                    seen[place] = True
                    queue.append(place)
        if len(pixels) > 20:
            rows, columns = np.array(pixels).T
            found.append((rows, columns))
    return sorted(found, key=lambda blob: blob[1].mean())


def color_of(picture: np.ndarray, blob: Blob) -> str:
    middle = np.median(picture[blob], axis=0)
    return min(COLORS, key=lambda name: float(np.abs(np.array(COLORS[name]) - middle).sum()))


def shape_of(blob: Blob) -> str:
    """By how much of its box it fills, and whether its middle lies above its box's."""
    rows, columns = blob
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    filled = len(rows) / (height * width)
    if filled > 0.93:
        return "square"
    if rows.mean() > rows.min() + 0.56 * height:
        return "triangle"
    return "circle" if filled > 0.68 else "cross"


def name_of(picture: np.ndarray, blob: Blob) -> str:
    return f"{color_of(picture, blob)} {shape_of(blob)}"


@pytest.mark.parametrize("skill", ["color", "shape", "name"])
def test_a_single_shape_is_what_the_answer_says(skill: str) -> None:
    for example in draws(skill):
        (picture,) = shown(example)
        (blob,) = blobs(picture)
        said = {"color": color_of(picture, blob), "shape": shape_of(blob), "name": f"A {name_of(picture, blob)}."}
        assert example.answer == said[skill]


def test_rows_are_named_in_their_order() -> None:
    for example in draws("row"):
        (picture,) = shown(example)
        found = blobs(picture)
        if picture.shape[0] > picture.shape[1]:
            found.sort(key=lambda blob: blob[0].mean())
        assert example.answer == ", ".join(name_of(picture, blob) for blob in found)


def test_lookups_have_one_answer() -> None:
    for example in draws("lookup"):
        (picture,) = shown(example)
        names = [name_of(picture, blob).split() for blob in blobs(picture)]
        asked = prompt(example).rstrip("?").split()[-1]
        (answer,) = [set(name) - {asked} for name in names if asked in name]
        assert answer == {example.answer}


def test_counts_are_of_what_stands_there() -> None:
    numbers = set()
    for example in draws("count"):
        assert example.answer == str(len(blobs(shown(example)[0])))
        numbers.add(example.answer)
    assert numbers == set("12345")


def test_places_are_where_the_shape_is() -> None:
    for example in draws("place"):
        (picture,) = shown(example)
        ((rows, columns),) = blobs(picture)
        down, right = rows.mean() / picture.shape[0] - 0.5, columns.mean() / picture.shape[1] - 0.5
        corner = f"{'top' if down < 0 else 'bottom'} {'left' if right < 0 else 'right'}"
        assert example.answer == ("middle" if max(abs(down), abs(right)) < 0.15 else corner)


def test_numbers_are_those_in_the_picture() -> None:
    """Each digit by its table: the cells' middles are lit or dark as it says."""
    for example in draws("number"):
        part = next(media.parts(example.messages))
        (picture,) = shown(example)
        assert "".join(thing["shape"] for thing in part["scene"]["things"]) == example.answer
        for thing in part["scene"]["things"]:
            cell = 2 * thing["radius"] / 7
            rows = np.rint(thing["y"] + (np.arange(7) - 3) * cell - 0.5).astype(int)
            columns = np.rint(thing["x"] + (np.arange(5) - 2) * cell - 0.5).astype(int)
            lit = np.ptp(picture[np.ix_(rows, columns)].astype(int), axis=-1) > 40
            if thing["color"] == "white":
                lit = picture[np.ix_(rows, columns)].min(-1) > 160
            table = np.array([[cell == "1" for cell in row] for row in DIGITS[int(thing["shape"])]])
            assert (lit == table).mean() > 0.97


def test_choices_are_of_the_picture_that_was_asked_for() -> None:
    for example in draws("choice"):
        names = [name_of(picture, blobs(picture)[0]).split() for picture in shown(example)]
        _, kind, *_, which, _ = prompt(example).split()
        assert example.answer == names[("first", "second").index(which)][("color", "shape").index(kind)]
        assert len({*names[0], *names[1]}) == 4


def test_clips_move_as_the_answer_says() -> None:
    for example in draws("motion", count=20):
        (frames,) = shown(example)
        assert 4 <= len(frames) <= 6
        middles = np.array([[axis.mean() for axis in blobs(frame)[0]] for frame in frames])
        down, right = middles[-1] - middles[0]
        across = {"left": -right, "right": right, "up": -down, "down": down}
        assert max(across, key=lambda way: across[way]) == example.answer and across[example.answer] > 10


def test_clips_show_one_thing_after_the_other() -> None:
    for example in draws("order", count=20):
        (frames,) = shown(example)
        colors = [color_of(frame, blobs(frame)[0]) for frame in frames]
        assert colors[0] == colors[1] != colors[2] == colors[3]
        assert example.answer == colors[0 if "first" in prompt(example) else 2]


def test_second_turns_ask_about_what_came_last() -> None:
    for example in draws("turns"):
        first, answer, second = example.messages
        assert (first["role"], answer["role"], second["role"]) == ("user", "assistant", "user")
        assert any(media.parts([first]))
        assert answer["content"]


@pytest.mark.parametrize("skill", ["row", "lookup", "count", "number", "choice"])
def test_the_two_sides_share_no_content(skill: str) -> None:
    """What a picture shows, without its size, grain and exact places; of choices, whole questions."""

    def contents(held_out: bool) -> set[str]:
        return {content(example) for example in draws(skill, held_out, 400)}

    def content(example: Example) -> str:
        things = [part["scene"]["things"] for part in media.parts(example.messages)]
        if skill == "number":
            return example.answer
        names: Any = [[(thing["color"], thing["shape"]) for thing in of_one] for of_one in things]
        if skill == "count":
            scene = next(media.parts(example.messages))["scene"]
            grain = (scene["width"] // 30, scene["height"] // 30)
            names = [names, grain, [(round(t["x"]) // 36, round(t["y"]) // 36) for t in things[0]]]
        return repr((names, prompt(example) if skill in ("lookup", "choice") else "", _tall(example, skill)))

    train, held = contents(False), contents(True)
    assert len(held) > 20 and not train & held


def _tall(example: Example, skill: str) -> bool:
    scene = next(media.parts(example.messages))["scene"]
    return skill in ("row", "lookup") and scene["height"] > scene["width"]


def test_the_held_out_set_is_what_its_seed_makes_and_its_pictures_are_what_it_says() -> None:
    first, again = heldout.questions(3), heldout.questions(3)
    assert first == again
    assert [question.skill for question in first] == [skill for skill in SKILLS for _ in range(3)]
    for question in first:
        written = json.loads(json.dumps(question.messages))
        for part, same in zip(media.parts(question.messages), media.parts(written), strict=True):
            assert np.array_equal(media.pixels(part), media.pixels(same))


def test_show_writes_the_pictures_with_their_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nano", "sight", "show", str(tmp_path), "--each", "1"])
    main()
    lines = (tmp_path / "questions.txt").read_text().splitlines()
    for line, question in zip(lines, heldout.questions(1), strict=True):
        names, said = line.split(": ", 1)
        files = iter(names.split(", "))
        for part in media.parts(question.messages):
            for frame in media.pixels(part).reshape(-1, *media.pixels(part).shape[-3:]):
                assert np.array_equal(np.array(Image.open(tmp_path / next(files))), frame)
        assert said.endswith(question.expected) and next(files, None) is None
