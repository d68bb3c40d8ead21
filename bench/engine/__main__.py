"""`python -m bench.engine`: builds, verifies and times a model's engine on this machine's GPU. See README.md."""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.engine import measure
from bench.engine.device import Device, Gpu, HostGpu
from bench.engine.weights import randomize
from deltart.artifact import load_manifest
from deltart.errors import DeltaRTError
from deltart.planner.traffic import decode_weight_bytes
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.native.plan import read_plan
from deltart.runtime.backends.tensorrt.load import built_flavour
from deltart.runtime.text.tokenizer import Tokenizer

NANO = Path("tools/nano/checkpoint")
ROOM = measure.WARM_UP + measure.REPLAYS + 1  # tokens that a timed decode adds beside its steps
MAX_VERIFIED = 2_000_000_000  # parameters: the CPU twin keeps them in float32


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=NANO, help="checkpoint or artifact (default: nano)")
    parser.add_argument(
        "--gpu", nargs="+", metavar="SM", help="as deltart build (default: current, and none for native plans)"
    )
    parser.add_argument("--flavour", choices=["rtx", "tensorrt", "native"], help="as deltart build")
    parser.add_argument(
        "--random-weights", action="store_true",
        help="overwrite the weights on the device: zeros, which a sparse checkpoint has, take less power",
    )  # fmt: skip
    parser.add_argument("--as-built", action="store_true", help="time the plans that the artifact has")
    parser.add_argument("--slots", type=int, default=1, metavar="N", help="sequences decoded together (default 1)")
    parser.add_argument(
        "--context",
        type=int,
        nargs="+",
        default=[0, 1024],
        metavar="N",
        help="tokens of context that a step starts from",
    )
    parser.add_argument(
        "--prompt", type=int, nargs="+", default=[128, 1024], metavar="N", help="prompt lengths to prefill, in tokens"
    )
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="steps that each case times (default 50)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="as deltart verify (default for nano: held out)")
    parser.add_argument(
        "--count", type=int, default=20, metavar="N", help="how many of the prompts to use (default 20)"
    )
    parser.add_argument("--trace", action="store_true", help="also what each kernel takes (torch's profiler)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default bench/results)")
    parser.add_argument("--dry-run", action="store_true", help="the same steps over host memory; no GPU needed")
    options = parser.parse_args(arguments)
    if options.gpu is None and options.flavour != "native":
        options.gpu = ["sm_80"] if options.dry_run else ["current"]
    if options.out is None:
        options.out = Path(".bench/engine" if options.dry_run else "bench/results")
    if options.model == NANO and options.prompts is None:
        options.prompts = NANO.parent / "heldout.jsonl"
    return options


def main(arguments: list[str]) -> int:
    """0; 1 if the verification failed; 2 if something is missing."""
    options = parse(arguments)
    try:
        device: Device = HostGpu() if options.dry_run else Gpu()
        with tempfile.TemporaryDirectory() as scratch:
            result = run(device, options, Path(scratch))
    except DeltaRTError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    label = re.sub(r"[^a-z0-9]+", "-", f"engine-{result['device']}-{result['model']}".lower())
    path = options.out / f"{label}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(show(result))
    print(path)
    return int(result["verify"].get("passed") is False)


def run(device: Device, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Everything that is measured, as JSON."""
    place = options.model.resolve()
    name = "nano" if options.model == NANO else place.parent.name if place.name == "artifact" else place.name
    artifact = options.model
    result: dict[str, Any] = {"device": device.name, "model": name}
    if not (artifact / "manifest.json").exists():
        artifact = scratch / "artifact"
        result["export"] = command(["export", str(options.model), "-o", str(artifact), "--json"])
    if options.as_built:
        result["verify"] = {"not_run": "the engine was taken as it was built"}
        return result | timings(device, artifact, options)
    longest = max([*(c + ROOM + options.steps for c in options.context), *options.prompt])
    build = ["build", str(artifact), "--slots", str(options.slots), "--json"]
    build += ["--gpu", *options.gpu] if options.gpu else []
    build += ["--max-context", str(min(max(longest, 256), load_manifest(artifact).max_context))]
    build += ["--flavour", options.flavour] if options.flavour else []
    result["build"] = command([*build, "--cache", str(scratch / "plans")])
    result["verify"] = verify(artifact, options, scratch)
    return result | timings(device, artifact, options)


def command(arguments: list[str]) -> dict[str, Any]:
    """A deltart command in a process of its own: its JSON, seconds, and the peak memory of all so far."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "deltart", *arguments], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        raise DeltaRTError(f"deltart {' '.join(arguments)} ended with {done.returncode}", hint="see its message above")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    printed = json.loads(done.stdout or "{}")
    return printed | {"wall_s": round(time.perf_counter() - began, 2), "peak_rss_gb": round(peak, 3)}


def verify(artifact: Path, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The report of `deltart verify`; why there is none where the model is too large for the CPU."""
    tensors = load_manifest(artifact).tensors.values()
    bound = sum(t.nbytes for t in tensors if t.fate == "bound")
    if bound > MAX_VERIFIED:
        return {"not_run": f"{bound / 1e9:.1f} GB of weights: too large for a CPU twin in float32"}
    asked = ["--prompts", str(options.prompts), "--count", str(options.count)] if options.prompts else []
    return command(["verify", str(artifact), "--json", "--html", str(scratch / "report.html"), *asked])


def timings(device: Device, artifact: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Loading, decode and speculative steps, prefill, and generation where the artifact has a tokenizer."""
    copy_gbs, flavour = device.copy_gbs(), options.flavour or built_flavour(artifact)
    began = time.perf_counter()
    backend = TensorRtBackend(artifact, flavour, cuda=device.cuda, load=device.load(artifact, flavour))
    seconds, manifest = time.perf_counter() - began, backend.manifest
    names = {b.name for plan in backend.engine.plans.values() for b in plan.by_role["weight"]}
    loaded = sum(manifest.tensors[name].nbytes for name in names)
    if options.random_weights:
        randomize(device.cuda, backend)
    found: dict[str, Any] = {
        "flavour": flavour,
        "launches": launches(artifact, backend),
        "versions": {plan.flavour: plan.library for plan in backend.engine.plans.values()},
        "machine": platform.machine(),
        "copy_gbs": copy_gbs,
        "weights": {"bytes": loaded, "seconds": seconds, "gbs": loaded / seconds / 1e9},
        "weight_bytes_per_step": decode_weight_bytes(manifest),
    }
    room = backend.engine.max_context - ROOM - options.steps
    contexts = [context for context in options.context if context <= room]
    prompts = [n for n in options.prompt if n <= backend.engine.max_context]
    steps = options.steps
    found["decode_steps"] = [said(measure.decode(device, backend, c, steps, copy_gbs, options.trace)) for c in contexts]
    found["speculative_steps"] = [said(measure.speculate(device, backend, c, 4, steps, copy_gbs)) for c in contexts]
    found["prefills"] = [said(measure.prefill(backend, n, options.trace)) for n in prompts]
    if "tokenizer.json" in manifest.text_files:
        found["generate"] = measure.generation(backend, Tokenizer.from_folder(artifact), options.steps)
    return found


def launches(artifact: Path, backend: TensorRtBackend) -> int | None:
    """Kernel launches of a decode step without the sampler's; None where TensorRT decides them."""
    if backend.engine.flavour != "native":
        return None
    path = artifact / "engine" / "native" / backend.engine.plans["model.decode"].file
    return read_plan(path.read_bytes(), path).launches


def said(row: measure.Timing) -> measure.Timing:
    """`row`, printed as it comes: what follows may not end."""
    print(json.dumps({key: value for key, value in row.items() if key != "kernels"}), flush=True)
    return row


def show(result: dict[str, Any]) -> str:
    """The timings as lines."""
    lines = [f"{result['device']}: {result['model']}, copy {result['copy_gbs']:.0f} GB/s"]
    if result["launches"]:
        lines.append(f"{result['flavour']}: {result['launches']} launches a decoded token")
    lines.append("weights: {bytes:,} bytes in {seconds:.2f} s, {gbs:.2f} GB/s".format(**result["weights"]))
    for kind in ("decode_steps", "speculative_steps", "prefills"):
        for row in result[kind]:
            kernels = row.get("kernels", [])
            values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "kernels")
            lines.append(f"{kind}: {', '.join(values)}")
            lines += ["  {total_us:9.1f} us  {count:6g} x {us:7.2f}  {kernel} {grid}".format(**k) for k in kernels]
    if "generate" in result:
        lines.append("generate: {tokens_per_s:.1f} tok/s over {new_tokens} tokens".format(**result["generate"]))
    checked = result["verify"]
    verdict = "passed" if checked.get("passed") else "FAILED"
    lines.append(f"verify: {checked.get('not_run', verdict)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
