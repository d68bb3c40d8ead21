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
from deltart.artifact import load_manifest
from deltart.errors import DeltaRTError
from deltart.planner.traffic import decode_weight_bytes
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.tensorrt.load import built_flavour
from deltart.runtime.text.tokenizer import Tokenizer

NANO = Path("tools/nano/checkpoint")
ROOM = measure.WARM_UP + measure.REPLAYS + 1  # tokens that a timed decode adds beside its steps
MAX_VERIFIED = 2_000_000_000  # parameters: the CPU twin keeps them in float32


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=NANO, help="checkpoint or artifact (default: nano)")
    parser.add_argument(
        "--gpu", nargs="+", metavar="SM", default=["current"], help="as deltart build (default current)"
    )
    parser.add_argument("--flavour", choices=["rtx", "tensorrt"], help="as deltart build")
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
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default bench/results)")
    parser.add_argument("--dry-run", action="store_true", help="the same steps over host memory; no GPU needed")
    options = parser.parse_args(arguments)
    if options.dry_run:
        options.gpu = ["sm_80"]
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
    name = "nano" if options.model == NANO else options.model.resolve().name
    artifact = options.model
    result: dict[str, Any] = {"device": device.name, "model": name}
    if not (artifact / "manifest.json").exists():
        artifact = scratch / "artifact"
        result["export"] = command(["export", str(options.model), "-o", str(artifact), "--json"])
    longest = max([*(c + ROOM + options.steps for c in options.context), *options.prompt])
    build = ["build", str(artifact), "--gpu", *options.gpu, "--slots", str(options.slots), "--json"]
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
    copy_gbs, flavour = device.copy_gbs(), built_flavour(artifact)
    began = time.perf_counter()
    backend = TensorRtBackend(artifact, flavour, cuda=device.cuda, load=device.load(artifact))
    seconds, manifest = time.perf_counter() - began, backend.manifest
    names = {b.name for plan in backend.engine.plans.values() for b in plan.by_role["weight"]}
    loaded = sum(manifest.tensors[name].nbytes for name in names)
    found: dict[str, Any] = {
        "versions": {plan.flavour: plan.library for plan in backend.engine.plans.values()},
        "machine": platform.machine(),
        "copy_gbs": copy_gbs,
        "weights": {"bytes": loaded, "seconds": seconds, "gbs": loaded / seconds / 1e9},
        "weight_bytes_per_step": decode_weight_bytes(manifest),
    }
    room = backend.engine.max_context - ROOM - options.steps
    contexts = [context for context in options.context if context <= room]
    found["decode_steps"] = [measure.decode(device, backend, c, options.steps, copy_gbs) for c in contexts]
    found["speculative_steps"] = [measure.speculate(device, backend, c, 4, options.steps, copy_gbs) for c in contexts]
    found["prefills"] = [measure.prefill(backend, n) for n in options.prompt if n <= backend.engine.max_context]
    if "tokenizer.json" in manifest.text_files:
        found["generate"] = measure.generation(backend, Tokenizer.from_folder(artifact), options.steps)
    return found


def show(result: dict[str, Any]) -> str:
    """The timings as lines."""
    lines = [f"{result['device']}: {result['model']}, copy {result['copy_gbs']:.0f} GB/s"]
    lines.append("weights: {bytes:,} bytes in {seconds:.2f} s, {gbs:.2f} GB/s".format(**result["weights"]))
    for kind in ("decode_steps", "speculative_steps", "prefills"):
        for row in result[kind]:
            values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            lines.append(f"{kind}: {', '.join(values)}")
    if "generate" in result:
        lines.append("generate: {tokens_per_s:.1f} tok/s over {new_tokens} tokens".format(**result["generate"]))
    checked = result["verify"]
    verdict = "passed" if checked.get("passed") else "FAILED"
    lines.append(f"verify: {checked.get('not_run', verdict)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
