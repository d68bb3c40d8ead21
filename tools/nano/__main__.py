"""The nano checkpoint, made and scored on a CPU: train | export | evaluate | heldout."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tools.nano import curve, evaluate, export, heldout, reference, train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.nano", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, action, text in (
        ("train", train_command, "train (or continue) in the work folder, then export and evaluate"),
        ("export", export_command, "write the work folder's weights as the checkpoint"),
        ("evaluate", evaluate_command, "score the checkpoint on the held-out set through transformers"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(action=action)
        command.add_argument("--work", type=Path, default=Path("artifacts/nano-training"), help="work folder")
        command.add_argument(
            "--checkpoint", type=Path, default=reference.CHECKPOINT, help="checkpoint folder"
        )
        command.add_argument("--steps", type=int, default=train.Recipe.steps, help="optimizer steps in all")
    arguments = parser.parse_args()
    arguments.action(arguments)


def train_command(arguments: argparse.Namespace) -> None:
    train.start(train.Recipe(steps=arguments.steps), arguments.work).train()
    export_command(arguments)
    evaluate_command(arguments)


def export_command(arguments: argparse.Namespace) -> None:
    run = train.start(train.Recipe(steps=arguments.steps), arguments.work)
    run.model.load_state_dict(torch.load(arguments.work / "state.pt", weights_only=True)["model"])
    export.write(run.model, run.words, arguments.checkpoint)
    curve.draw(arguments.work / "log.jsonl", arguments.checkpoint.parent / "curve.png")


def evaluate_command(arguments: argparse.Namespace) -> None:
    model, tokenizer = reference.load(arguments.checkpoint)
    questions = heldout.read()
    prompts = evaluate.prompts(tokenizer, questions)
    replies, asked, answered = reference.replies(model, tokenizer, prompts)
    print(evaluate.table(evaluate.score(questions, replies)))
    accepted = reference.acceptance(model, asked, answered)
    print(f"\nMTP, k=1: {accepted.mean:.3f} of {accepted.drafts} drafts accepted")


if __name__ == "__main__":
    main()
