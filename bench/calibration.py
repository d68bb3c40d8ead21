"""What calibration gains and costs: `python -m bench.calibration quality|cost [--work FOLDER]`.

quality: every method on the nano checkpoint and on a mid-size random one with heavy-tailed weights: error of every
linear's output on held-out inputs, and agreement of the whole model's next-token distributions on held-out text.
cost: time and peak memory of absmax on a 1.7 GB checkpoint, against reading and writing the same bytes.
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

import ml_dtypes
import numpy as np

from deltart.calib import layout
from deltart.calib.dataset import Dataset, read_dataset
from deltart.calib.evaluate import Variant, dequantized, evaluate
from deltart.calib.figures import output_energy
from deltart.calib.forward import batches_of, sweep
from deltart.calib.observe import observe
from deltart.calib.pipeline import Method, calibrate
from deltart.export import synthetic
from deltart.export.checkpoint import Checkpoint
from deltart.export.presets import Config, causal_lm, text_config
from deltart.export.spec import read_spec
from deltart.export.weights import load_parameters

METHODS: tuple[Method, ...] = ("absmax", "mse", "hessian")
NANO = Path(__file__).parent.parent / "tools" / "nano"
MID: Config = dict(hidden=1024, ffn=2816, layers=8, heads=8, kv_heads=2, k_heads=4, v_heads=8, max_position=32768)
BIG: Config = dict(hidden=2048, ffn=6144, layers=12, heads=8, kv_heads=2, k_heads=8, v_heads=16, max_position=32768)
DEGREES = 3  # of Student's t: finite variance, infinite kurtosis


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "cost", "absmax"])
    parser.add_argument("--work", type=Path, default=Path("artifacts/bench-calibration"))
    arguments = parser.parse_args()
    work: Path = arguments.work
    if arguments.what == "absmax":  # what `cost` measures, in a process of its own
        start = time.monotonic()
        calibrate(work / "big", work / "big-absmax", method="absmax")
        evict(work / "big-absmax")
        print(time.monotonic() - start, time.process_time(), peak_memory())
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if arguments.what == "cost":
        cost(work)
    else:
        quality("nano", NANO / "checkpoint", conversations(work), work)
        quality("heavy-tailed", heavy_tailed(work), random_text(work), work)


def quality(name: str, checkpoint: Path, text: Path, work: Path) -> None:
    """Calibrate by every method and print a table."""
    outputs = {method: work / f"{name}-{method}" for method in METHODS}
    seconds = {}
    for method, output in outputs.items():
        start = time.monotonic()
        calibrate(checkpoint, output, method=method, data=text, statistics=work / f"{name}-statistics")
        seconds[method] = time.monotonic() - start
    spec, tensors = read_spec(checkpoint), Checkpoint(checkpoint)
    dataset = read_dataset(text, checkpoint, spec.vocab_size)
    quantized = {method: Checkpoint(output) for method, output in outputs.items()}
    variants = [Variant(m, read_spec(o), quantized[m]) for m, o in outputs.items()]
    perplexity, agreement = evaluate(Variant("original", spec, tensors), variants, dataset.held_out)
    errors = list(output_errors(checkpoint, quantized, dataset))
    print(f"\n{name}: {dataset.tokens[0]} tokens for calibration, {dataset.tokens[1]} held out, {len(errors)} linears")
    print(f"perplexity of the original {perplexity:.5g}")
    print("| method | output error / absmax: mean | worst | KL, nats | same top token | perplexity | s |")
    print("|---|---|---|---|---|---|---|")
    for method in METHODS:
        ratios = [own[method] / own["absmax"] for own in errors]
        mean, a = math.exp(sum(map(math.log, ratios)) / len(ratios)), agreement[method]
        cells = [method, f"{mean:.3f}", f"{max(ratios):.3f}", f"{a.kl:.3e}", f"{a.top1:.2%}", f"{a.perplexity:.5g}"]
        print("|", " | ".join([*cells, f"{seconds[method]:.0f}"]), "|", flush=True)


def output_errors(
    checkpoint: Path, quantized: dict[Method, Checkpoint], dataset: Dataset
) -> Iterator[dict[str, float]]:
    """For every linear, the squared error of its output on the original's held-out inputs, by method."""
    spec, tensors = read_spec(checkpoint), Checkpoint(checkpoint)
    sites = list(layout.candidates(spec, tensors))
    for step in sweep(spec, tensors, batches_of(dataset.held_out)):
        own = [site for site in sites if site.block == step.key]
        statistics = observe(step, own)
        load_parameters(step.module, step.block, tensors)
        for site in own:
            for module in site.modules:
                linear = step.module.get_submodule(module.removeprefix(f"{step.key}."))
                found = {}
                for method, checkpoint_of in quantized.items():
                    error = dequantized(checkpoint_of, module) - linear.weight.float()  # type: ignore[operator]
                    found[method] = output_energy(error, statistics.inputs[site.modules[0]])
                yield found


def conversations(work: Path) -> Path:
    """Nano's held-out questions, as prompts: what it was never trained on."""
    path = work / "nano.jsonl"
    shutil.copyfile(NANO / "heldout.jsonl", path)
    return path


def random_text(work: Path) -> Path:
    """Token rows with Zipf's frequencies."""
    rng, path = np.random.default_rng(0), work / "random.jsonl"
    rows = [(rng.zipf(1.2, 400) % 8192).tolist() for _ in range(30)]
    path.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    return path


def heavy_tailed(work: Path) -> Path:
    """A random checkpoint whose matrices are drawn from Student's t instead of a normal distribution."""
    folder = work / "heavy-tailed"
    synthetic.write_checkpoint(causal_lm(text_config(**MID, vocab=8192)), folder)
    for number, info in enumerate(Checkpoint(folder).values()):
        if len(info.shape) == 2:
            rng = np.random.default_rng(number)
            values = rng.standard_t(DEGREES, info.shape) * (info.shape[1] * DEGREES / (DEGREES - 2)) ** -0.5
            with (folder / info.file).open("r+b") as file:
                file.seek(info.offset)
                file.write(values.astype(ml_dtypes.bfloat16).tobytes())
    return folder


def cost(work: Path) -> None:
    """Print time and peak memory of absmax, and the time of reading and writing as many bytes, disk included."""
    synthetic.write_checkpoint(causal_lm(text_config(**BIG, vocab=32768)), work / "big")
    source = sum(file.size for file in Checkpoint(work / "big").files)
    copying = [read_and_write(work, int(source * 0.58)) for _ in range(3)]
    evict(work / "big")
    command = [sys.executable, "-m", "bench.calibration", "absmax", "--work", str(work)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took, busy, peak = map(float, printed.split())
    written = sum(file.size for file in Checkpoint(work / "big-absmax").files)
    print(f"{source / 1e9:.2f} GB in, {written / 1e9:.2f} GB out: absmax {took:.1f} s, peak RSS {peak / 1e9:.2f} GB")
    print(f"CPU time of the process, imports included: {busy:.1f} s")
    print(
        f"reading and writing as much: {', '.join(f'{c:.1f}' for c in copying)} s, "
        f"so {took / sorted(copying)[1]:.1f}x the median"
    )
    print(f"{took / source * 1e9:.1f} s per GB; 27B (55.6 GB): {took / source * 55.6e9 / 60:.1f} min")


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
