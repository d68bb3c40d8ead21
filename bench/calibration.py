"""What calibration gains and costs: `python -m bench.calibration quality|answers|cost|wide [--work FOLDER]`.

quality: every method on the nano checkpoint and on a mid-size random one with heavy-tailed weights: error of every
linear's output on held-out inputs, and agreement of the whole model's next-token distributions on held-out text.
Constants of the methods were tuned with seed 0; other seeds draw other prompts, weights and text.
answers: what nano answers by every method, calibrated with the text that ships, to held-out questions of the seeds.
cost: time and peak memory of every method on a 1.7 GB checkpoint, comparison with the original included where there
is text; for absmax against reading and writing the same bytes.
wide: time and peak memory of hessian on one layer as wide as the 27B's, on as many tokens as the default text has.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from deltart.calib.dataset import DEFAULT, Dataset, read_dataset
from deltart.calib.evaluate import evaluate, layers_of
from deltart.calib.formats import FP8, Format, Int4Groups
from deltart.calib.forward import batches_of, sweep
from deltart.calib.observe import observe
from deltart.calib.pipeline import calibrate
from deltart.calib.progress import Progress
from deltart.calib.quantize import LADDER, Method
from deltart.calib.selection import candidates
from deltart.calib.variants import Variant
from deltart.export.checkpoint import Checkpoint
from deltart.export.pipeline import export_checkpoint
from deltart.export.spec import read_spec
from deltart.export.structure import settle
from deltart.export.synthetic import write as synthetic
from deltart.export.synthetic.presets import Config, causal_lm, text_config
from deltart.export.weights import load_parameters
from tools.nano import evaluate as evaluation
from tools.nano import heldout, reference, runtime

NANO = Path(__file__).parent.parent / "tools" / "nano"
TAG = "deltart-bench"  # tells the folder of an earlier run; `make clean` knows it
MID: Config = dict(hidden=1024, ffn=2816, layers=8, heads=8, kv_heads=2, k_heads=4, v_heads=8, max_position=32768)
BIG: Config = dict(hidden=2048, ffn=6144, layers=12, heads=8, kv_heads=2, k_heads=8, v_heads=16, max_position=32768)
DEGREES = 3  # of Student's t: finite variance, infinite kurtosis

FORMATS: dict[str, Format] = {"fp8": FP8, "int4-128": Int4Groups(128), "int4-32": Int4Groups(32)}


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "answers", "cost", "wide", "run"])
    parser.add_argument("--work", type=Path, default=Path("artifacts/bench-calibration"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the prompts, weights and text")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=list(FORMATS),
        help="what linears become, of quality and answers",
    )
    parser.add_argument("--method", choices=LADDER, help="for `run`, which the others start in a process of its own")
    parser.add_argument("--checkpoint", type=Path, help="for `run`")
    parser.add_argument("--data", type=Path, help="for `run`")
    arguments = parser.parse_args()
    work: Path = arguments.work
    if arguments.what == "run":
        run(arguments.checkpoint, work / "out", arguments.method, arguments.data)
        return
    if work.exists() and any(work.iterdir()) and not (work / TAG).is_file():
        parser.error(f"--work {work} holds something else than an earlier run's files")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / TAG).touch()
    if arguments.what == "answers":
        write_json(arguments.json, answers(work, arguments.seeds, arguments.formats))
        return
    figures: Any = {"cost": cost, "wide": wide}[arguments.what](work) if arguments.what != "quality" else []
    for seed in arguments.seeds if arguments.what == "quality" else ():
        own = work / str(seed)
        own.mkdir()
        for form in arguments.formats:
            figures.append(quality("nano", NANO / "checkpoint", prompts(own, seed), own, form) | {"seed": seed})
            write_json(arguments.json, figures)
    for seed in arguments.seeds if arguments.what == "quality" else ():
        own = work / str(seed)
        checkpoint, text = heavy_tailed(own, seed), random_text(own, seed)
        for form in arguments.formats:
            figures.append(quality("heavy-tailed", checkpoint, text, own, form) | {"seed": seed})
            write_json(arguments.json, figures)
    write_json(arguments.json, figures)


def write_json(path: Path | None, figures: Any) -> None:
    """Where asked for, the figures as they are so far."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n")


def quality(name: str, checkpoint: Path, text: Path, work: Path, form: str) -> dict[str, Any]:
    """Calibrate by every method; print a table and return its figures."""
    outputs = {method: work / f"{name}-{form}-{method}" for method in LADDER}
    seconds = {}
    for method, output in outputs.items():
        start = time.monotonic()
        calibrate(
            checkpoint, output, method=method, form=FORMATS[form], data=text, statistics=work / f"{name}-statistics"
        )
        seconds[method] = time.monotonic() - start
    spec, tensors = read_spec(checkpoint), Checkpoint(checkpoint)
    dataset = read_dataset(text, checkpoint, spec.vocab_size)
    quantized = {method: Checkpoint(output) for method, output in outputs.items()}
    variants = [Variant(m, settle(read_spec(o), quantized[m]).spec, quantized[m]) for m, o in outputs.items()]
    progress = Progress("comparing", len(layers_of(spec)), lambda line: None)
    perplexity, agreement = evaluate(Variant("original", spec, tensors), variants, dataset.held_out, progress)
    errors = list(output_errors(checkpoint, quantized, FORMATS[form], dataset))
    tokens = ", ".join(f"{count} {part}" for part, count in dataset.tokens.items())
    print(f"\n{name}, {FORMATS[form].name}: tokens {tokens}; {len(errors)} linears;", end=" ")
    print(f"perplexity of the original {perplexity:.5g}")
    print("| method | output error / absmax: mean | worst | KL, nats | same top token | perplexity | s |")
    print("|---|---|---|---|---|---|---|")
    found: dict[str, Any] = {
        "name": name,
        "format": form,
        "tokens": dataset.tokens,
        "perplexity": perplexity,
        "methods": {},
    }
    for method in LADDER:
        ratios = [own[method] / own["absmax"] for own in errors]
        mean, a = math.exp(sum(map(math.log, ratios)) / len(ratios)), agreement[method]
        cells = [method, f"{mean:.3f}", f"{max(ratios):.3f}", f"{a.kl:.3e}", f"{a.top1:.2%}", f"{a.perplexity:.5g}"]
        print("|", " | ".join([*cells, f"{seconds[method]:.0f}"]), "|", flush=True)
        found["methods"][method] = {
            "mean": mean,
            "worst": max(ratios),
            "above_0.7": sum(ratio > 0.7 for ratio in ratios),
            "linears": len(ratios),
            "kl": a.kl,
            "top1": a.top1,
            "perplexity": a.perplexity,
            "seconds": seconds[method],
        }
    return found


def answers(work: Path, seeds: list[int], forms: list[str]) -> list[dict[str, Any]]:
    """Ask nano as it is and by every format and method; print a table and return its figures."""
    texts = []
    for seed in seeds:
        (work / str(seed)).mkdir()
        texts.append(prompts(work / str(seed), seed))
    questions = [question for text in texts for question in heldout.read(text)]
    asked = evaluation.prompts(reference.load(NANO / "checkpoint")[1], questions)
    print("| format | method | size, MB | exact | replies equal to BF16's |")
    print("|---|---|---|---|---|")
    found: list[dict[str, Any]] = []
    expected: list[list[int]] = []
    for form in ("bf16", *forms):
        for method in LADDER if form in FORMATS else (None,):
            folder, artifact = NANO / "checkpoint", work / f"artifact-{form}-{method}"
            if method is not None:
                folder = work / f"{form}-{method}"
                calibrate(NANO / "checkpoint", folder, method=method, form=FORMATS[form], data=DEFAULT)
            export_checkpoint(folder, artifact)
            with runtime.open_artifact(artifact) as engine:
                replies, _, drawn = runtime.replies(engine, asked)
            expected = expected or drawn
            own = {
                "format": form,
                "method": method,
                "bytes": sum(file.size for file in Checkpoint(folder).files),
                "questions": len(questions),
                "right": evaluation.overall(evaluation.score(questions, replies)).right,
                "equal": sum(a == b for a, b in zip(drawn, expected, strict=True)),
            }
            found.append(own)
            cells = [form, method or "", f"{own['bytes'] / 1e6:.2f}", f"{own['right'] / len(questions):.2%}"]
            print("|", " | ".join([*cells, f"{own['equal']} of {len(questions)}"]), "|", flush=True)
    return found


def output_errors(
    checkpoint: Path, quantized: dict[Method, Checkpoint], form: Format, dataset: Dataset
) -> Iterator[dict[str, float]]:
    """For every linear, the squared error of its output on the original's held-out inputs, by method."""
    spec, tensors = read_spec(checkpoint), Checkpoint(checkpoint)
    sites = list(candidates(spec, tensors))
    for step in sweep(spec, tensors, batches_of(dataset.held_out)):
        own = [site for site in sites if site.block == step.key]
        statistics = observe(step, own)
        load_parameters(step.module, step.block, tensors)
        for site in own:
            for module in site.modules:
                linear = step.module.get_submodule(module.removeprefix(f"{step.key}."))
                found = {}
                for method, checkpoint_of in quantized.items():
                    stored = form.load(checkpoint_of, module).dequantized()
                    error = stored - linear.weight.float()  # type: ignore[operator]
                    moments = statistics.inputs[site.modules[0]].moments
                    columns = error.split([len(H) for H in moments], dim=1)
                    found[method] = sum(float(((E @ H) * E).sum()) for E, H in zip(columns, moments, strict=True))
                yield found


def prompts(work: Path, seed: int) -> Path:
    """Held-out questions of nano, as prompts: what it was never trained on. Seed 0 has those that ship with it."""
    path = work / "nano.jsonl"
    if seed == 0:
        shutil.copyfile(heldout.PATH, path)
        return path
    heldout.write(path, seed)
    known = set(heldout.PATH.read_text().splitlines())
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines() if line not in known))
    return path


def random_text(work: Path, seed: int) -> Path:
    """Token rows with Zipf's frequencies."""
    rng, path = np.random.default_rng(seed), work / "random.jsonl"
    rows = [(rng.zipf(1.2, 400) % 8192).tolist() for _ in range(30)]
    path.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    return path


def heavy_tailed(work: Path, seed: int) -> Path:
    """A random checkpoint whose matrices are drawn from Student's t instead of a normal distribution."""
    folder = work / "heavy-tailed"
    synthetic.write_checkpoint(causal_lm(text_config(**MID, vocab=8192)), folder, seed=seed)
    for number, info in enumerate(Checkpoint(folder).values()):
        if len(info.shape) == 2:
            rng = np.random.default_rng([seed, number] if seed else number)
            values = rng.standard_t(DEGREES, info.shape) * (info.shape[1] * DEGREES / (DEGREES - 2)) ** -0.5
            with (folder / info.file).open("r+b") as file:
                file.seek(info.offset)
                file.write(values.astype(ml_dtypes.bfloat16).tobytes())
    return folder


def cost(work: Path) -> dict[str, Any]:
    """Print and return time and peak memory of every method, and the time of reading and writing as many bytes."""
    synthetic.write_checkpoint(causal_lm(text_config(**BIG, vocab=32768)), work / "big")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(NANO / "checkpoint" / name, work / "big" / name)
    source = sum(file.size for file in Checkpoint(work / "big").files)
    copying = [read_and_write(work, int(source * 0.58)) for _ in range(3)]
    figures: dict[str, Any] = {"bytes": source, "cores": os.cpu_count(), "copying_seconds": copying}
    for method in LADDER:
        evict(work / "big")
        figures[method] = own = measured(work, work / "big", method, None if method == "absmax" else DEFAULT)
        pace = own["seconds"] / source * 1e9
        print(f"{method}: {pace:.1f} s per GB; 27B (55.6 GB): {pace * 55.6 / 60:.0f} min", flush=True)
    ratio = figures["absmax"]["seconds"] / sorted(copying)[1]
    print(
        f"reading and writing as much: {', '.join(f'{c:.1f}' for c in copying)} s; absmax takes {ratio:.1f}x the median"
    )
    return figures | {"absmax_over_copying": ratio}


def wide(work: Path) -> dict[str, Any]:
    """Print and return time and peak memory of hessian on one GDN layer of the 27B's size."""
    sizes: Config = dict(hidden=5120, ffn=17408, layers=1, heads=24, kv_heads=4, k_heads=16, v_heads=48)
    synthetic.write_checkpoint(causal_lm(text_config(**sizes, vocab=8192, mtp=False)), work / "wide")
    rng, text = np.random.default_rng(0), work / "text.jsonl"
    rows = [(rng.zipf(1.2, 140) % 8192).tolist() for _ in range(43)]
    text.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    return measured(work, work / "wide", "hessian", text)


def measured(work: Path, checkpoint: Path, method: Method, data: Path | None) -> dict[str, float]:
    """Calibrate in a process of its own; print and return what it took."""
    command = [sys.executable, "-m", "bench.calibration", "run", "--method", method, "--work", str(work)]
    command += ["--checkpoint", str(checkpoint)] + (["--data", str(data)] if data else [])
    took, busy, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    print(f"{method}: {took:.1f} s, {busy:.1f} s of CPU, peak RSS {peak / 1e9:.3f} GB", flush=True)
    return {"seconds": took, "cpu_seconds": busy, "peak_bytes": peak}


def run(checkpoint: Path, output: Path, method: Method, data: Path | None) -> None:
    """Calibrate and print seconds, seconds of CPU and peak bytes."""
    start = time.monotonic()
    calibrate(checkpoint, output, method=method, data=data)
    evict(output)
    print(time.monotonic() - start, time.process_time(), peak_memory())
    shutil.rmtree(output)


def peak_memory() -> int:
    """Largest resident size of this process since it started its program, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def read_and_write(work: Path, write: int) -> float:
    """Seconds to read the checkpoint's files from disk and to write `write` bytes to it."""
    evict(work / "big")
    start, buffer = time.monotonic(), bytearray(16 << 20)
    for file in Checkpoint(work / "big").files:
        with (work / "big" / file.name).open("rb", buffering=0) as reader:
            while reader.readinto(buffer):
                pass
    (work / "copy").mkdir()
    with (work / "copy" / "bytes").open("wb", buffering=0) as writer:
        for _ in range(write // len(buffer)):
            writer.write(buffer)
    evict(work / "copy")
    took = time.monotonic() - start
    shutil.rmtree(work / "copy")
    return took


def evict(folder: Path) -> None:
    """Write the folder's files to disk and drop them from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
