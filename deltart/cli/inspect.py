"""deltart inspect: what a checkpoint holds and what becomes of every tensor."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deltart.cli.screen import console, table
from deltart.cli.streams import print_json
from deltart.plugins.lm_head.reference import fp8_head_bytes
from deltart.plurals import counted

if TYPE_CHECKING:
    from deltart.export.checkpoint import Checkpoint
    from deltart.export.ledger import Ledger
    from deltart.export.spec import ModelSpec


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "inspect", help="show a checkpoint's model and the fate of every tensor", description=__doc__
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face checkpoint folder")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run, extra="export")


def run(arguments: argparse.Namespace) -> int:
    """Read headers and config, account for every tensor, print.

    Returns:
        2 where config.json says of the weights what is not so; 0 otherwise.
    """
    from deltart.export.checkpoint import Checkpoint
    from deltart.export.pipeline import account
    from deltart.export.spec import read_spec
    from deltart.export.structure import settle

    spec = read_spec(arguments.checkpoint)
    checkpoint = Checkpoint(arguments.checkpoint)
    settled = settle(spec, checkpoint)
    ledger = account(settled.spec, checkpoint)
    if arguments.json:
        found = {"notes": settled.notes, "contradictions": settled.contradictions}
        print_json({"spec": asdict(settled.spec), "tensors": _entries(ledger)} | found)
    else:
        out = console()
        out.print(_model_table(settled.spec, checkpoint))
        out.print(_fate_table(ledger))
        if arguments.tensors:
            out.print(_tensor_table(ledger))
        for note in settled.notes:
            out.print(f"note: {note}", markup=False, soft_wrap=True)
    for contradiction in settled.contradictions:
        print(f"deltart: {contradiction}", file=sys.stderr)
    return 2 if settled.contradictions else 0


def _entries(ledger: Ledger) -> dict[str, dict[str, Any]]:
    def fate(name: str) -> dict[str, Any]:
        if name in ledger.bound:
            return {"fate": "bound", "graphs": ledger.bound[name]}
        return {"fate": "deferred", "reason": ledger.deferred[name]}

    return {name: asdict(info) | fate(name) for name, info in ledger.checkpoint.items()}


def _model_table(spec: ModelSpec, checkpoint: Checkpoint) -> Table:
    linear = spec.layer_types.count("linear_attention")
    size = sum(info.nbytes for info in checkpoint.values())
    rows = {
        "architecture": spec.architecture,
        "layers": f"{len(spec.layer_types)}: {linear} Gated DeltaNet, {len(spec.layer_types) - linear} gated attention",
        "hidden / FFN": f"{spec.hidden_size} / {_width(spec)}",
        "GDN heads": f"{spec.linear_num_key_heads} k, {spec.linear_num_value_heads} v, {spec.linear_key_head_dim} wide",
        "attention": f"{spec.num_attention_heads} q, {spec.num_key_value_heads} kv, {spec.head_dim} wide, "
        f"{spec.rope.rotary_dim} rotary{', YaRN x' + str(spec.rope.yarn.factor) if spec.rope.yarn else ''}",
        "vocabulary / context": f"{spec.vocab_size} / {spec.context_limit}",
        "LM head": _head(spec, checkpoint),
        "weights": f"{size / 1e9:.2f} GB in {counted(len(checkpoint.files), 'file')}, "
        f"{'FP8 block-128' if spec.fp8 else spec.compressed or 'unquantized'}",
        "MTP / vision": f"{'yes' if spec.mtp_num_hidden_layers else 'no'} / {_tower(spec)}",
    }
    return table((), rows.items(), title=str(checkpoint.folder))


def _head(spec: ModelSpec, checkpoint: Checkpoint) -> str:
    """What every token reads of it, and what `build --lm-head fp8` would make of that."""
    end = "embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    found = next((info for name, info in checkpoint.items() if name.endswith(end)), None)
    if found is None:
        return "packed"
    text = f"{found.dtype}, {found.nbytes / 1e6:,.1f} MB{', the embedding' if spec.tie_word_embeddings else ''}"
    if found.dtype != "BF16":
        return text
    return f"{text}; E4M3 once loaded (build --lm-head fp8): {fp8_head_bytes(*found.shape) / 1e6:,.1f} MB"


def _tower(spec: ModelSpec) -> str:
    tower = spec.vision
    return f"yes, {counted(tower.depth, 'block')} of {tower.hidden_size}" if tower else "no"


def _width(spec: ModelSpec) -> str:
    moe = spec.moe
    if moe is None:
        return str(spec.intermediate_size)
    experts = f"{moe.num_experts} experts of {moe.moe_intermediate_size}, {moe.num_experts_per_tok} a token"
    return f"{experts}; one of {moe.shared_expert_intermediate_size} for every token"


def _fate_table(ledger: Ledger) -> Table:
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for entry in _entries(ledger).values():
        where = "+".join(entry["graphs"]) if "graphs" in entry else entry["reason"]
        group = groups[entry["fate"], where, entry["dtype"]]
        group[0] += 1
        group[1] += entry["nbytes"]
    rows = [
        (fate, where, dtype, str(count), f"{nbytes / 1e6:,.1f}")
        for (fate, where, dtype), (count, nbytes) in sorted(groups.items())
    ]
    total = sum(info.nbytes for info in ledger.checkpoint.values())
    shown = table(("fate", "graph or reason", "dtype", "tensors", "MB"), rows)
    shown.add_section()
    shown.add_row("all", "", "", str(len(ledger.checkpoint)), f"{total / 1e6:,.1f}")
    return shown


def _tensor_table(ledger: Ledger) -> Table:
    rows = []
    for name, entry in _entries(ledger).items():
        fate = "bound: " + "+".join(entry["graphs"]) if "graphs" in entry else f"deferred: {entry['reason']}"
        rows.append((name, entry["dtype"], " x ".join(map(str, entry["shape"])), fate))
    return table(("tensor", "dtype", "shape", "fate"), rows)
