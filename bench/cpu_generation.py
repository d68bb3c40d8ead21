"""DeltaRT, ONNX Runtime GenAI and transformers side by side on the CPU: export wall, decode and prefill rates, f32.

Run by `make bench`. Every rate is taken in a process of its own; peers take turns, and the median of the rounds counts.
    python bench/cpu_generation.py [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cpu_checkpoint

PREFILL, DECODE = 1024, 128
PEERS = ("deltart", "genai", "transformers")


def main() -> None:
    """Export once per round, then measure once per round; print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("PEER", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        peer, folder = arguments.measure
        print(json.dumps({"deltart": _deltart, "genai": _genai, "transformers": _transformers}[peer](Path(folder))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = compare(Path(scratch), arguments.rounds)
    _print(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def compare(scratch: Path, rounds: int) -> dict[str, Any]:
    """Medians per peer, and the greedy tokens each produced."""
    checkpoint = scratch / "checkpoint"
    cpu_checkpoint.write(checkpoint)
    samples: dict[str, dict[str, list[float]]] = {peer: {} for peer in PEERS}
    tokens: dict[str, list[int]] = {}
    for round_number in range(rounds):
        for peer in PEERS:
            folder, seconds = _export(peer, checkpoint, scratch / f"{peer}{round_number}")
            measured = _in_process(peer, folder)
            tokens[peer] = measured.pop("tokens")
            for name, value in {"export_seconds": seconds, **measured}.items():
                samples[peer].setdefault(name, []).append(value)
            print(f"round {round_number + 1} {peer}: {measured}", file=sys.stderr)
    medians = {p: {n: statistics.median(v) for n, v in s.items()} for p, s in samples.items()}
    agree = {peer: tokens[peer] == tokens["transformers"] for peer in PEERS}
    return {"machine": platform.processor() or platform.machine(), "medians": medians, "same_tokens": agree} | {
        "samples": samples,
        "versions": {p: version(p) for p in ("onnxruntime", "onnxruntime-genai", "transformers", "torch")},
    }


def _export(peer: str, checkpoint: Path, output: Path) -> tuple[Path, float]:
    commands = {
        "deltart": [sys.executable, "-m", "deltart", "export", str(checkpoint), "-o", str(output), "--no-mtp"],
        "genai": [
            sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint), "-o", str(output),
            "-p", "fp32", "-e", "cpu", "-c", str(output / "cache"), "--extra_options", "exclude_mtp=true",
        ],
    }  # fmt: skip
    if peer not in commands:
        return checkpoint, 0.0
    began = time.perf_counter()
    subprocess.run(commands[peer], check=True, capture_output=True)
    return output, time.perf_counter() - began


def _in_process(peer: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", peer, str(folder)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return measured


def _prompt() -> list[int]:
    import numpy as np

    prompt: list[int] = np.random.default_rng(0).integers(0, cpu_checkpoint.VOCAB - 1, PREFILL).tolist()
    return prompt


def _timed(prefill: Any, step: Any) -> dict[str, Any]:
    """Rates of a fresh sequence: prefill(ids) and step() each return the next token."""
    for warm_up in (True, False):
        began = time.perf_counter()
        tokens = [prefill(_prompt())]
        prefilled = time.perf_counter()
        tokens += [step(tokens[-1]) for _ in range(16 if warm_up else DECODE)]
        done = time.perf_counter()
    return {
        "prefill_rate": PREFILL / (prefilled - began),
        "decode_rate": DECODE / (done - prefilled),
        "tokens": tokens,
    }


def _deltart(folder: Path) -> dict[str, Any]:
    import numpy as np

    from deltart.runtime.backends.inputs import text_inputs
    from deltart.runtime.backends.ort import PREFILL_TOKENS, OrtBackend

    backend = OrtBackend(folder)
    sequence: dict[str, Any] = {}

    def prefill(ids: list[int]) -> int:
        sequence.update(state=backend.new_state("model", 1, PREFILL + DECODE + 1), past=0)
        return [feed(ids[at : at + PREFILL_TOKENS]) for at in range(0, len(ids), PREFILL_TOKENS)][-1]

    def step(token: int) -> int:
        return feed([token])

    def feed(ids: list[int]) -> int:
        inputs = text_inputs(np.array([ids]), np.array([sequence["past"]], np.int32))
        (logits,) = backend.run("model", sequence["state"], inputs, ["logits"])
        sequence["past"] += len(ids)
        return int(logits[0, -1].argmax())

    return _timed(prefill, step)


def _genai(folder: Path) -> dict[str, Any]:
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    sequence: dict[str, Any] = {}

    def prefill(ids: list[int]) -> int:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=PREFILL + DECODE + 2, do_sample=False)
        sequence["generator"] = og.Generator(model, parameters)
        sequence["generator"].append_tokens(ids)
        return step(0)

    def step(_: int) -> int:
        sequence["generator"].generate_next_token()
        return int(sequence["generator"].get_next_tokens()[0])

    return _timed(prefill, step)


def _transformers(folder: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sequence: dict[str, Any] = {}

    def forward(ids: list[int]) -> int:
        output = model(torch.tensor([ids]), past_key_values=sequence.get("cache"), use_cache=True, logits_to_keep=1)
        sequence["cache"] = output.past_key_values
        return int(output.logits[0, -1].argmax())

    def prefill(ids: list[int]) -> int:
        sequence.clear()
        return forward(ids)

    return _timed(prefill, lambda token: forward([token]))


def _print(results: dict[str, Any]) -> None:
    print(f"\n{'':14}{'export s':>10}{'prefill tok/s':>15}{'decode tok/s':>14}{'same tokens':>13}")
    for peer in PEERS:
        row, same = results["medians"][peer], "yes" if results["same_tokens"][peer] else "no"
        export = f"{row['export_seconds']:.1f}" if row["export_seconds"] else "-"
        print(f"{peer:14}{export:>10}{row['prefill_rate']:>15.0f}{row['decode_rate']:>14.0f}{same:>13}")
    ours, theirs = results["medians"]["deltart"], results["medians"]["genai"]
    ratios = {n: ours[n] / theirs[n] for n in ("prefill_rate", "decode_rate")}
    ratios["export_seconds"] = theirs["export_seconds"] / ours["export_seconds"]
    print("deltart / genai: " + ", ".join(f"{n} {r:.2f}x" for n, r in ratios.items()) + " (above 1 is better)")


if __name__ == "__main__":
    main()
