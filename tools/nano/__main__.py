"""Nano, made and scored on a CPU: train | export | drafts | evaluate | check, and sight, the nano that sees."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tools.nano import curve, drafts, evaluate, export, heldout, reference, runtime, train
from tools.nano.sight import commands as sight

COMPARED = 200  # held-out prompts on which transformers answers too


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.nano", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, action, text in (
        ("train", train_command, "train (or continue) in the work folder, then export and evaluate"),
        ("export", export_command, "write the work folder's weights as the checkpoint"),
        ("drafts", drafts_command, "train the checkpoint's MTP head to draft several tokens in a row"),
        ("evaluate", evaluate_command, "score the checkpoint on the held-out set through transformers"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(action=action)
        command.add_argument("--work", type=Path, default=Path("artifacts/nano-training"), help="work folder")
        command.add_argument("--checkpoint", type=Path, default=reference.CHECKPOINT, help="checkpoint folder")
        command.add_argument("--steps", type=int, default=train.Recipe.steps, help="optimizer steps in all")
    command = commands.add_parser("check", help="score an exported artifact, and compare its tokens with transformers'")
    command.set_defaults(action=check_command)
    command.add_argument("artifact", type=Path, help="folder written by 'deltart export tools/nano/checkpoint'")
    command.add_argument("--checkpoint", type=Path, default=reference.CHECKPOINT, help="checkpoint folder")
    sight.add(commands)
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


def drafts_command(arguments: argparse.Namespace) -> None:
    model, tokenizer = reference.load(arguments.checkpoint)
    drafts.train(model, tokenizer, drafts.DraftRecipe())
    drafts.write(model, arguments.checkpoint)


def evaluate_command(arguments: argparse.Namespace) -> None:
    model, tokenizer = reference.load(arguments.checkpoint)
    questions = heldout.read()
    prompts = evaluate.prompts(tokenizer, questions)
    replies, asked, answered = reference.replies(model, tokenizer, prompts)
    print(evaluate.table(evaluate.score(questions, replies)))
    accepted = reference.acceptance(model, asked, answered)
    print(f"\nMTP, k=1: {accepted.mean:.3f} of {accepted.drafts} drafts accepted")
    shares = drafts.acceptance(model, asked, answered, drafts.DraftRecipe.depth)
    print("MTP, drafts in a row, each where those before were right:", " ".join(f"{share:.3f}" for share in shares))


def check_command(arguments: argparse.Namespace) -> None:
    model, tokenizer = reference.load(arguments.checkpoint)
    engine = runtime.open_artifact(arguments.artifact)
    questions = heldout.read()
    prompts = evaluate.prompts(tokenizer, questions)
    replies, asked, answered = runtime.replies(engine, prompts)
    print(evaluate.table(evaluate.score(questions, replies)))
    accepted = runtime.acceptance(engine, asked, answered)
    print(f"\nMTP, k=1: {accepted.mean:.3f} of {accepted.drafts} drafts accepted")
    chosen = range(0, len(prompts), max(1, len(prompts) // COMPARED))[:COMPARED]
    _, _, expected = reference.replies(model, tokenizer, [prompts[i] for i in chosen])
    same = sum(answered[i] == tokens for i, tokens in zip(chosen, expected, strict=True))
    print(f"greedy tokens equal to transformers': {same} of {len(chosen)} prompts")


if __name__ == "__main__":
    main()
