"""What the seeing nano is asked about pictures and clips, as endless seeded conversations split as nano's are."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tools.nano.sight.scenes import COLORS, SHAPES, Scene, Thing, canvas, scene
from tools.nano.tasks import Example, Message, Sampler

Part = dict[str, Any]
THOUGHT = "Look."
SMALLEST, LARGEST = 64, 160  # sides of a picture
FRAME_SIDES = (64, 96)  # of a clip
FPS = 2.0
CORNERS: Mapping[str, tuple[float, float]] = {
    "top left": (0.22, 0.22),
    "top right": (0.78, 0.22),
    "bottom left": (0.22, 0.78),
    "bottom right": (0.78, 0.78),
    "middle": (0.5, 0.5),
}
WAYS: Mapping[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COLOR_PROMPTS = ("What color is it?", "What color is this?", "Which color is it?", "Tell me the color.")
SHAPE_PROMPTS = ("What shape is it?", "What shape is this?", "Which shape is it?", "Tell me the shape.")
NAME_PROMPTS = ("What is this?", "What is it?", "What do you see?")
ROW_PROMPTS = ("What do you see?", "Tell me what is there.", "What is in the picture?")
COUNT_PROMPTS = ("How many shapes are there?", "How many shapes?", "How many are there?")
PLACE_PROMPTS = ("Where is it?", "Where is the shape?", "Tell me where it is.")
NUMBER_PROMPTS = ("Read the number.", "What number is this?", "Which number is it?")
MOTION_PROMPTS = ("Which way does it move?", "Where does it go?", "Which way does it go?")


def image(picture: Scene) -> Part:
    return {"type": "image", "scene": picture.as_json()}


def clip(frames: Sequence[Scene]) -> Part:
    """Frames, FPS of them a second."""
    return {"type": "video", "frames": [frame.as_json() for frame in frames]}


def asked(skill: str, media: Sequence[Part], prompt: str, answer: str, sampler: Sampler) -> Example:
    """A question after what it is about, or sometimes before it."""
    parts = [*media, {"type": "text", "text": prompt}]
    if sampler.rng.random() < 0.15:
        parts = [parts[-1], *media]
    return Example(skill, [{"role": "user", "content": parts}], THOUGHT, answer, enable_thinking=thinks(sampler))


def thinks(sampler: Sampler) -> bool:
    return sampler.rng.random() < 0.3


def _name(rng: random.Random) -> tuple[str, str]:
    """(colour, shape)."""
    return rng.choice(list(COLORS)), rng.choice(SHAPES)


def single(sampler: Sampler) -> Scene:
    """One shape anywhere in a picture of any size; the split is by what it is, how large, and about where."""
    rng = sampler.rng

    def draw() -> tuple[str, str, str, int, int, int]:
        return ("single", *_name(rng), rng.randrange(12, 29), rng.randrange(8), rng.randrange(8))

    _, color, shape, radius, column, row = sampler.keep(draw)
    width, height = canvas(rng, SMALLEST, LARGEST)
    x = radius + (width - 2 * radius) * (column + rng.random()) / 8
    y = radius + (height - 2 * radius) * (row + rng.random()) / 8
    return scene(rng, width, height, [Thing(shape, color, round(x, 1), round(y, 1), radius)])


def color(sampler: Sampler) -> Example:
    picture = single(sampler)
    prompt = sampler.rng.choice(COLOR_PROMPTS)
    return asked("color", [image(picture)], prompt, picture.things[0].color, sampler)


def shape(sampler: Sampler) -> Example:
    picture = single(sampler)
    prompt = sampler.rng.choice(SHAPE_PROMPTS)
    return asked("shape", [image(picture)], prompt, picture.things[0].shape, sampler)


def name(sampler: Sampler) -> Example:
    picture = single(sampler)
    prompt = sampler.rng.choice(NAME_PROMPTS)
    return asked("name", [image(picture)], prompt, f"A {picture.things[0].name}.", sampler)


def lined(sampler: Sampler, names: Sequence[tuple[str, str]], tall: bool) -> Scene:
    """Things side by side in a wide picture, or one below the other in a tall one."""
    rng, count = sampler.rng, len(names)
    across, along = rng.randint(56, 80), rng.randint(46, 60) * count
    step = along / count
    things = []
    for index, (its_color, its_shape) in enumerate(names):
        radius = rng.uniform(13, 20)
        at = step * (index + 0.5) + rng.uniform(-3, 3)
        other = rng.uniform(radius + 2, across - radius - 2)
        x, y = (other, at) if tall else (at, other)
        things.append(Thing(its_shape, its_color, round(x, 1), round(y, 1), round(radius, 1)))
    return scene(rng, *((across, along) if tall else (along, across)), things)


def row(sampler: Sampler) -> Example:
    """Everything in a row or a column, in its order."""
    rng = sampler.rng

    def draw() -> tuple[object, ...]:
        most = 2 if sampler.ease > 0.3 else 3
        return ("row", rng.random() < 0.4, *(_name(rng) for _ in range(rng.randint(2, most))))

    _, tall, *names = sampler.keep(draw)
    answer = ", ".join(" ".join(each) for each in names)
    return asked("row", [image(lined(sampler, names, tall))], rng.choice(ROW_PROMPTS), answer, sampler)


def lookup(sampler: Sampler) -> Example:
    """The colour of the thing of a shape, or the shape of the thing of a colour, of two or three."""
    rng = sampler.rng

    def draw() -> tuple[object, ...]:
        count = 2 if rng.random() < 0.6 or sampler.ease > 0.3 else 3
        names = tuple(zip(rng.sample(list(COLORS), count), rng.sample(SHAPES, count), strict=True))
        return "lookup", rng.random() < 0.4, rng.randrange(count), rng.random() < 0.5, names

    _, tall, which, by_shape, names = sampler.keep(draw)
    its_color, its_shape = names[which]
    prompt, answer = f"What color is the {its_shape}?", its_color
    if not by_shape:
        prompt, answer = f"What shape is {its_color}?", its_shape
    return asked("lookup", [image(lined(sampler, names, tall))], prompt, answer, sampler)


def count(sampler: Sampler) -> Example:
    """One to five shapes, spread over the cells of a picture."""
    rng = sampler.rng

    def draw() -> tuple[object, ...]:
        columns, rows = rng.choice(((3, 2), (2, 3), (3, 3), (2, 2), (4, 2)))
        number = rng.randint(1, min(5, columns * rows))
        cells = tuple(sorted(rng.sample(range(columns * rows), number)))
        return "count", columns, rows, cells, tuple(_name(rng) for _ in cells)

    _, columns, rows, cells, names = sampler.keep(draw)
    width, height = (cells_ * rng.randint(36, 44) for cells_ in (columns, rows))
    things = []
    for cell, (its_color, its_shape) in zip(cells, names, strict=True):
        radius = rng.uniform(12, 16)
        x = (cell % columns + 0.5) * width / columns + rng.uniform(-2, 2)
        y = (cell // columns + 0.5) * height / rows + rng.uniform(-2, 2)
        things.append(Thing(its_shape, its_color, round(x, 1), round(y, 1), round(radius, 1)))
    picture = scene(rng, width, height, things)
    return asked("count", [image(picture)], rng.choice(COUNT_PROMPTS), str(len(things)), sampler)


def place(sampler: Sampler) -> Example:
    """In which corner a shape is, or that it is in the middle."""
    rng = sampler.rng

    def draw() -> tuple[object, ...]:
        return ("place", rng.choice(list(CORNERS)), *_name(rng), rng.randint(96, LARGEST), rng.randint(96, LARGEST))

    _, where, its_color, its_shape, width, height = sampler.keep(draw)
    x, y = (side * (at + rng.uniform(-0.06, 0.06)) for side, at in zip((width, height), CORNERS[where], strict=True))
    thing = Thing(its_shape, its_color, round(x, 1), round(y, 1), rng.randint(12, 20))
    return asked("place", [image(scene(rng, width, height, [thing]))], rng.choice(PLACE_PROMPTS), where, sampler)


def written(sampler: Sampler, text: str, its_color: str) -> Scene:
    """Digits side by side."""
    rng = sampler.rng
    height, radius = rng.randint(52, 90), rng.uniform(17, 22)
    step = rng.uniform(1.9, 2.2) * radius
    width = round(step * len(text) + rng.randint(14, 40))
    left, y = rng.uniform(4, width - step * len(text) - 4), rng.uniform(radius + 2, height - radius - 2)
    things = [
        Thing(digit, its_color, round(left + step * (index + 0.5), 1), round(y, 1), round(radius, 1))
        for index, digit in enumerate(text)
    ]
    return scene(rng, width, height, things)


def number(sampler: Sampler) -> Example:
    """One to three digits; the split is by the number itself."""
    rng = sampler.rng

    def draw() -> tuple[str, str]:
        return "number", "".join(rng.choices("0123456789", k=rng.randint(1, 2 if sampler.ease > 0.3 else 3)))

    _, text = sampler.keep(draw)
    picture = written(sampler, text, rng.choice(list(COLORS)))
    return asked("number", [image(picture)], rng.choice(NUMBER_PROMPTS), text, sampler)


def choice(sampler: Sampler) -> Example:
    """The colour or the shape of what the first or the second of two pictures shows."""
    rng = sampler.rng

    def draw() -> tuple[object, ...]:
        names = tuple(zip(rng.sample(list(COLORS), 2), rng.sample(SHAPES, 2), strict=True))
        return "choice", names, rng.randrange(2), rng.random() < 0.5

    _, names, which, by_shape = sampler.keep(draw)
    media = []
    for its_color, its_shape in names:
        width, height = canvas(rng, SMALLEST, 110)
        radius = rng.randint(14, 24)
        x, y = (rng.uniform(radius, side - radius) for side in (width, height))
        thing = Thing(its_shape, its_color, round(x, 1), round(y, 1), radius)
        media.append(image(scene(rng, width, height, [thing])))
    its_color, its_shape = names[which]
    kind, answer = ("shape", its_shape) if by_shape else ("color", its_color)
    prompt = f"What {kind} is the {('first', 'second')[which]} one?"
    return asked("choice", media, prompt, answer, sampler)


def motion(sampler: Sampler) -> Example:
    """A clip of a moving shape."""
    rng = sampler.rng

    def draw() -> tuple[object, ...]:
        return ("motion", rng.choice(list(WAYS)), *_name(rng), rng.randint(4, 6), rng.randrange(8))

    _, way, its_color, its_shape, frames, _ = sampler.keep(draw)
    width, height = canvas(rng, *FRAME_SIDES)
    radius, (right, down) = rng.randint(12, 16), WAYS[way]
    length = rng.uniform(0.75, 1.0) * ((width if right else height) - 2 * radius)
    middle = [rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)]
    along, side = (0, width) if right else (1, height)
    middle[along] = rng.uniform(radius + length / 2, side - radius - length / 2)
    first = scene(rng, width, height, [Thing(its_shape, its_color, round(middle[0], 1), round(middle[1], 1), radius)])
    path = [length * (index / (frames - 1) - 0.5) for index in range(frames)]
    moved = [first.moved(round(right * at, 1), round(down * at, 1)) for at in path]
    return asked("motion", [clip(moved)], rng.choice(MOTION_PROMPTS), way, sampler)


def order(sampler: Sampler) -> Example:
    """A clip of two things, one after the other: what comes first, or last."""
    rng = sampler.rng

    def draw() -> tuple[object, ...]:
        colors = rng.sample(list(COLORS), 2)
        return (
            "order",
            tuple((its_color, rng.choice(SHAPES)) for its_color in colors),
            rng.randrange(2),
            rng.randrange(8),
        )

    _, names, which, _ = sampler.keep(draw)
    width, height = canvas(rng, *FRAME_SIDES)
    radius = rng.randint(14, 24)
    x, y = (round(rng.uniform(radius, side - radius), 1) for side in (width, height))
    shown = [scene(rng, width, height, [Thing(its_shape, its_color, x, y, radius)]) for its_color, its_shape in names]
    media = [clip([frame for frame in shown for _ in range(2)])]
    return asked("order", media, f"Which color comes {('first', 'last')[which]}?", names[which][0], sampler)


def turns(sampler: Sampler) -> Example:
    """Two turns: a question about a picture, and another about a new one or about the first again."""
    if sampler.rng.random() < 0.5:
        first, second = (sampler.rng.choice(STILL)(sampler) for _ in range(2))
        return follow("turns", first, second)
    picture = single(sampler)
    thing, prompts = picture.things[0], [(COLOR_PROMPTS, "color"), (SHAPE_PROMPTS, "shape")]
    sampler.rng.shuffle(prompts)
    texts = [(sampler.rng.choice(group), str(getattr(thing, field))) for group, field in prompts]
    first = asked("turns", [image(picture)], *texts[0], sampler)
    return follow("turns", first, asked("turns", [], *texts[1], sampler))


def follow(skill: str, first: Example, second: Example) -> Example:
    """`second` asked after `first` was answered."""
    answered: Message = {"role": "assistant", "content": first.answer}
    messages = [*first.messages, answered, *second.messages]
    return Example(skill, messages, second.thought, second.answer, enable_thinking=second.enable_thinking)


STILL = (color, shape, name, row, lookup, count, place, number)
Mixture = Mapping[Callable[[Sampler], Example], float]
BROAD: Mixture = {
    color: 0.05,
    shape: 0.09,
    name: 0.1,
    row: 0.16,
    lookup: 0.12,
    count: 0.1,
    place: 0.06,
    number: 0.12,
    choice: 0.08,
    motion: 0.06,
    order: 0.04,
    turns: 0.02,
}
"""Shares of the skills at first; turns come from joining the others too."""
HARD: Mixture = {
    color: 0.02,
    shape: 0.05,
    name: 0.05,
    row: 0.13,
    lookup: 0.14,
    count: 0.09,
    place: 0.08,
    number: 0.16,
    choice: 0.14,
    motion: 0.06,
    order: 0.06,
    turns: 0.02,
}
"""Shares later on: what takes longest to learn."""
SKILLS = tuple(BROAD)


def conversation(sampler: Sampler, mixture: Mixture = BROAD) -> Example:
    """One to three questions of skills drawn by weight, one after the other."""
    skills, weights = list(mixture), list(mixture.values())
    number_of_turns = sampler.rng.choices((1, 2, 3), (0.4, 0.35, 0.25))[0]
    drawn = [skill(sampler) for skill in sampler.rng.choices(skills, weights, k=number_of_turns)]
    whole = drawn[0]
    for following in drawn[1:]:
        whole = follow("conversation", whole, following)
    return whole
