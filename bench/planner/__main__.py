"""The planner beside what others published: python -m bench.planner DIR_27B_FP8 DIR_35B_FP8 DIR_35B_BF16 [--fit]

Sparse checkpoints serve: `deltart synthesize qwen3.6-27b-fp8 --sparse -o CKPT` and `deltart export CKPT -o DIR`, and so
for qwen3.6-35b-a3b-fp8 and qwen3.6-35b-a3b.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.planner.anchors import ANCHORS, DENSE, MEASURED, SPARSE, SPARSE_BF16
from bench.planner.fit import fit, left_out, median_errors
from deltart.artifact import load_manifest
from deltart.planner.predict import FITTED
from deltart.planner.traffic import read_model

UNITS = {"gap": "ms/token", "rate": "tok/s", "ttft": "ms to first", "prompt": "prompt tok/s"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs=3, metavar="DIR")
    parser.add_argument("--fit", action="store_true", help="fit the factors anew, and once without each figure")
    arguments = parser.parse_args()
    names = (DENSE, SPARSE, SPARSE_BF16)
    models = {name: read_model(load_manifest(path)) for name, path in zip(names, arguments.artifacts, strict=True)}
    factors = fit(models) if arguments.fit else FITTED
    errors = [anchor.error(models, factors) for anchor in ANCHORS]
    apart = left_out(models) if arguments.fit else []
    print(f"{factors}\n")
    print(
        "| model | GPU | engine | prompt, rows, drafts | what | published | predicted | error |"
        + " left out |" * bool(apart)
    )
    print("|---|---|---|---|---|---|---|---|" + "---|" * bool(apart))
    for i, a in enumerate((*ANCHORS, *MEASURED)):
        found, error = a.predicted(models, factors), a.error(models, factors)
        cells = [a.model, a.device, a.engine, f"{a.prompt}, {a.rows}, {a.drafts}", UNITS[a.kind]]
        cells += [f"{a.published:.4g}", f"{found:.4g}", f"{error:+.0%}"]
        cells += [f"{apart[i]:+.0%}" if i < len(apart) else "-"] if apart else []
        print(f"| {' | '.join(cells)} |")
    for label, values in (("fitted", errors), *([("left out", apart)] if apart else [])):
        decode, prompts = median_errors(values)
        print(f"\nmedian absolute error, {label}: decode {decode:.1%}, prompts {prompts:.1%}")


if __name__ == "__main__":
    main()
