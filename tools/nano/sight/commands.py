"""python -m tools.nano sight train | export | evaluate | check | show."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from deltart.runtime.engine import Engine, EngineOptions
from tools.nano import curve
from tools.nano import evaluate as scores
from tools.nano import heldout as texts
from tools.nano.sight import evaluate, export, heldout, media, reference, runtime, train

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

COMPARED = 100  # held-out questions about pictures on which transformers answers too
LOSSES = {"sight_loss": "questions about pictures", "text_loss": "nano's own conversations", "mtp_loss": "MTP head"}


def add(commands: Commands) -> None:
    """`sight` and its own commands."""
    sight = commands.add_parser("sight", help="the nano that sees: train | export | evaluate | check | show")
    own = sight.add_subparsers(dest="sight_command", required=True)
    for name, action, text in (
        ("train", train_command, "train (or continue) in the work folder, then export and evaluate"),
        ("export", export_command, "write the work folder's weights as the checkpoint"),
        ("evaluate", evaluate_command, "score the checkpoint on its held-out sets through transformers"),
    ):
        command = own.add_parser(name, help=text)
        command.set_defaults(action=action)
        command.add_argument("--work", type=Path, default=Path("artifacts/sight-training"), help="work folder")
        command.add_argument("--checkpoint", type=Path, default=export.CHECKPOINT, help="checkpoint folder")
        command.add_argument("--steps", type=int, default=train.Recipe.steps, help="optimizer steps in all")
    command = own.add_parser("check", help="score an exported artifact, and compare its tokens with transformers'")
    command.set_defaults(action=check_command)
    command.add_argument("artifact", type=Path, help="folder written by 'deltart export tools/nano/sight/checkpoint'")
    command.add_argument("--checkpoint", type=Path, default=export.CHECKPOINT, help="checkpoint folder")
    command = own.add_parser("show", help="write pictures of the held-out set, with what is asked of them")
    command.set_defaults(action=show_command)
    command.add_argument("folder", type=Path, help="folder for the pictures")
    command.add_argument("--each", type=int, default=2, help="questions of a skill")


def train_command(arguments: argparse.Namespace) -> None:
    train.start(train.Recipe(steps=arguments.steps), arguments.work, arguments.checkpoint).train()
    export_command(arguments)
    evaluate_command(arguments)


def export_command(arguments: argparse.Namespace) -> None:
    run = train.start(train.Recipe(), arguments.work, arguments.checkpoint)
    run.model.load_state_dict(torch.load(arguments.work / "state.pt", weights_only=True)["model"])
    export.write_weights(run.model, arguments.checkpoint)
    curve.draw(arguments.work / "log.jsonl", arguments.checkpoint.parent / "curve.png", LOSSES)


def evaluate_command(arguments: argparse.Namespace) -> None:
    model, reader = reference.load(arguments.checkpoint)
    questions = heldout.questions()
    asked = [reference.ask(reader, question) for question in questions]
    answered = reference.greedy(model, reader, asked)
    print(evaluate.table(scores.score(questions, reference.replies(reader, answered))))
    accepted = reference.acceptance(model, reader, asked, answered)
    print(f"\nMTP, k=1: {accepted.mean:.3f} of {accepted.drafts} drafts accepted\n")
    plain = texts.read()
    answered = reference.greedy(model, reader, [reference.ask(reader, question) for question in plain], 128)
    print(scores.table(scores.score(plain, reference.replies(reader, answered))))


def check_command(arguments: argparse.Namespace) -> None:
    model, reader = reference.load(arguments.checkpoint)
    questions = heldout.questions()
    with Engine.open(arguments.artifact, options=EngineOptions(slots=1, cache_bytes=0)) as engine:
        replies, answered = runtime.replies(engine, questions)
    print(evaluate.table(scores.score(questions, replies)))
    chosen = range(0, len(questions), max(1, len(questions) // COMPARED))[:COMPARED]
    asked = [reference.ask(reader, questions[index]) for index in chosen]
    expected = reference.greedy(model, reader, asked)
    same = sum(answered[index] == tokens for index, tokens in zip(chosen, expected, strict=True))
    print(f"\ngreedy tokens equal to transformers': {same} of {len(chosen)} questions about pictures")


def show_command(arguments: argparse.Namespace) -> None:
    """Pictures as PNG files, clips frame by frame, and a line a question in questions.txt."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, question in enumerate(heldout.questions(arguments.each)):
        names = []
        for index, part in enumerate(media.parts(question.messages)):
            pixels = media.pixels(part)
            for frame, each in enumerate(pixels if pixels.ndim == 4 else pixels[None]):
                names.append(f"{number:03}-{question.skill}-{index}-{frame}.png")
                Image.fromarray(each).save(arguments.folder / names[-1])
        last = question.messages[-1]["content"]
        text = next(part["text"] for part in last if part["type"] == "text")
        lines.append(f"{', '.join(names)}: {text} {question.expected}\n")
    (arguments.folder / "questions.txt").write_text("".join(lines))
