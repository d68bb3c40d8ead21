"""`python -m bench.structure`: what structured output costs at a vocabulary, and how it fares with public schemas."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.structure.cases import cases
from bench.structure.measure import Costs, masking, percentiles, walk
from bench.structure.schemas import Tally, examples, run
from deltart.errors import DeltaRTError
from deltart.runtime.structure.compiler import StructureCompiler
from deltart.runtime.structure.structure import Structure
from deltart.runtime.text.tokenizer import Tokenizer

NANO = Path("tools/nano/checkpoint")


def main(arguments: list[str]) -> int:
    """0; 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.structure", description=__doc__)
    parser.add_argument("schemas", type=Path, nargs="*", help="folders of MaskBench or JSON-Schema-Test-Suite files")
    parser.add_argument("--tokenizer", type=Path, default=NANO, metavar="DIR", help="checkpoint folder (default: nano)")
    parser.add_argument("--count", type=int, default=500, metavar="N", help="schemas of each folder (default 500)")
    parser.add_argument("--lenient", action="store_true", help="without strict")
    options = parser.parse_args(arguments)
    try:
        tokenizer = Tokenizer.from_folder(options.tokenizer)
        compiler = StructureCompiler(tokenizer, tokenizer.vocab_limit)
        _by_hand(compiler, tokenizer)
        for folder in options.schemas:
            _show(folder.name, run(compiler, tokenizer, examples(folder, options.count), not options.lenient))
        compiler.close()
    except DeltaRTError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _by_hand(compiler: StructureCompiler, tokenizer: Tokenizer) -> None:
    began = time.perf_counter()
    compiler.compile(Structure.regex("x"))
    print(f"{tokenizer.vocab_limit} tokens; set up in {time.perf_counter() - began:.1f} s;", end=" ")
    print(f"the sampler's masking {masking(tokenizer.vocab_limit):.3f} ms a row\n")
    print("| structure | compile ms | tokens | free | mask us: p50 | p99 | max | accept us | 3 drafts us | sum ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in cases():
        began = time.perf_counter()
        compiled = compiler.compile(case.structure)
        compiling, costs, drafted = (time.perf_counter() - began) * 1e3, Costs(), Costs()
        assert walk(compiled, tokenizer, case.reply, costs), case.name
        walk(compiled, tokenizer, case.reply, drafted, drafts=3)
        middle, high, most = percentiles(costs.masks, 50, 99, 100)
        (accept,), (permit,) = percentiles(costs.accepts, 50), percentiles(drafted.permits, 50)
        total = (sum(costs.masks) + sum(costs.accepts)) / 1e3
        print(
            f"| {case.name} | {compiling:.1f} | {len(costs.accepts)} | {costs.free} | {middle:.0f} | {high:.0f} "
            f"| {most:.0f} | {accept:.1f} | {permit:.0f} | {total:.1f} |"
        )


def _show(name: str, tally: Tally) -> None:
    middle, high, most = percentiles(tally.compile_ms, 50, 99, 100)
    print(f"\n{name}: {tally.schemas} schemas, {sum(tally.refused.values())} refused by name")
    print(f"  compile ms: p50 {middle:.1f}, p99 {high:.0f}, max {most:.0f}")
    middle, high, highest, most = percentiles(tally.costs.masks, 50, 99, 99.9, 100)
    print(
        f"  {len(tally.costs.masks)} masks, us: p50 {middle:.0f}, p99 {high:.0f}, p99.9 {highest:.0f}, max {most:.0f}"
    )
    print(f"  valid values: {tally.valid[True]} accepted, {tally.valid[False]} refused")
    print(
        f"  invalid values: {tally.invalid[False]} refused, {tally.invalid[True]} accepted; {tally.failed} met a limit"
    )
    print(f"  refusals: {', '.join(f'{reason} {count}' for reason, count in tally.refused.most_common(8))}")
    for line in tally.wrong[:20]:
        print(f"    {line}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
