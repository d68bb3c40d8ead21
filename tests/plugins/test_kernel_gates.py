"""What the kernels of the linear layers, attention, norm, LM head and sampler take: registers and spills."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import product
from pathlib import Path

import pytest

from deltart.plugins import toolchain
from deltart.plugins.fp8_linear import gate_up
from deltart.plugins.fp8_linear import inputs as linear_inputs
from deltart.plugins.fp8_linear import launch as linear
from deltart.plugins.fp8_linear import prefill as tiles
from deltart.plugins.fp8_linear.norm import linear_norm
from deltart.plugins.fp8_linear.projections import Projection, decode
from deltart.plugins.gated_attention import inputs as attention_inputs
from deltart.plugins.gated_attention import launch as attention
from deltart.plugins.gated_attention import prefill as attention_prefill
from deltart.plugins.gated_attention import rope as rope_attention
from deltart.plugins.gated_rms_norm import inputs as norm_inputs
from deltart.plugins.gated_rms_norm import launch as norm
from deltart.plugins.int4_linear import inputs as int4_inputs
from deltart.plugins.int4_linear import launch as int4
from deltart.plugins.int4_linear import norm as int4_norm
from deltart.plugins.int4_linear import prefill as int4_tiles
from deltart.plugins.int4_linear import projections as int4_together
from deltart.plugins.launch import Launch
from deltart.plugins.linear import launch as plain
from deltart.plugins.lm_head import inputs as head_inputs
from deltart.plugins.lm_head import launch as head
from deltart.plugins.moe_experts import inputs as experts_inputs
from deltart.plugins.moe_experts import launch as experts
from deltart.plugins.moe_experts import norm as experts_norm
from deltart.plugins.moe_experts import prefill as grouped
from deltart.plugins.qk_norm_rope import inputs as rope_inputs
from deltart.plugins.qk_norm_rope import launch as rope
from deltart.plugins.residual_rms_norm import inputs as residual_inputs
from deltart.plugins.residual_rms_norm import launch as residual
from deltart.plugins.rotary_table import launch as rotary
from deltart.plugins.rows import launch as rows
from deltart.plugins.sampler import inputs as sampler_inputs
from deltart.plugins.sampler import launch as sampler

HOPPER = ("90a",)
# Registers per thread. 128 keeps two blocks of 256 threads on a multiprocessor.
CEILINGS = {
    "fp8_block_linear_decode_bf16_m1": 128,
    "fp8_block_linear_decode_bf16_m2": 128,
    "fp8_block_linear_gate_up_bf16_m1": 128,
    "fp8_block_linear_norm": 128,
    "fp8_block_linear_gate_up_bf16_m2": 128,
    "fp8_block_linear_projections_bf16_m1": 128,
    "fp8_block_linear_projections_bf16_m2": 128,
    "fp8_block_linear": 168,
    "fp8_block_linear_prefill": 255,
    "gated_attention": 255,
    "gated_rms_norm": 64,
    "int4_linear": 168,
    "int4_linear_decode_bf16_m1": 128,
    "int4_linear_decode_bf16_m2": 128,
    "int4_linear_gate_up_bf16_m1": 128,
    "int4_linear_gate_up_bf16_m2": 128,
    "int4_linear_logits_bf16_m1": 128,
    "int4_linear_norm_f32": 200,
    "int4_linear_norm_bf16": 128,
    "int4_linear_prefill": 255,
    "int4_linear_projections_f32": 192,
    "int4_linear_projections_bf16_m1": 128,
    "int4_linear_projections_bf16_m2": 128,
    "linear": 168,
    "linear_bf16_m1": 128,
    "linear_bf16_m2": 128,
    "linear_gate_up_bf16_m1": 128,
    "linear_gate_up_bf16_m2": 128,
    "silu_mul": 64,
    "take_rows": 32,
    "concat_rows": 32,
    "rotary_table": 64,
    "qk_norm_rope": 64,
    "residual_rms_norm": 128,
    "lm_head_bf16_bf16": 128,
    "lm_head": 168,
    "lm_head_bf16_e4m3_m4": 192,
    "lm_head_quantize": 64,
    "moe_experts": 64,
    "moe_experts_gate_up": 255,
    "moe_experts_gate_up_bf16_e4m3_m1": 72,
    "moe_experts_down": 255,
    "moe_experts_down_bf16": 192,
    "moe_experts_down_bf16_e4m3_m1": 96,
    "moe_experts_down_norm_f32": 128,
    "moe_experts_down_norm_bf16": 96,
    "moe_experts_group": 128,
    "moe_experts_group_gate_up_wgmma": 168,
    "moe_experts_group_down_wgmma": 168,
    "sampler": 128,
}
SPILLS = {"moe_experts_down_f32": 48, "moe_experts_down_norm_f32": 8}  # bytes; f32 activations serve tests only
FOLDERS = (
    "fp8_linear",
    "gated_attention",
    "gated_rms_norm",
    "int4_linear",
    "linear",
    "lm_head",
    "moe_experts",
    "qk_norm_rope",
    "residual_rms_norm",
    "rotary_table",
    "rows",
    "sampler",
)


def every_launch() -> list[Launch]:
    """One launch of each kernel that the plans know."""
    at: dict[str, int] = defaultdict(int)
    launches = [*sampler.sample(sampler_inputs.Shape(), at), rows.take(rows.Gather(1, 0, 1, 8), at)]
    launches.append(head.quantize(1, 16, at))
    prompt = linear_inputs.Shape(tokens=65)
    launches += linear.forward(prompt, at)[1]
    launches += [one for kernel in (tiles.W8A8, tiles.W8A8_WGMMA) for one in tiles.prefill_w8a8(prompt, kernel, at)]
    launches += gate_up.prefill(prompt, tiles.W8A16, at)
    launches += int4_tiles.gate_up(int4_inputs.Shape(tokens=65, n=1024), at)
    for dtype in ("f32", "bf16"):
        for tokens in (1, 9, 17):
            packed = int4_inputs.Shape(tokens=tokens, dtype=dtype)
            launches += [int4.decode(packed, at), int4.decode_gate_up(packed, at), int4.logits(packed, at)]
            launches.append(int4_together.decode(packed, [Projection(5120, "weight", "y", "scale")], at))
            shape = linear_inputs.Shape(tokens=tokens, dtype=dtype)
            launches += [linear.decode(shape, at), linear.decode_gate_up(shape, at)]
            launches.append(decode(shape, [Projection(5120, "weight", "y", "scale")], at))
            if tokens == 1:
                launches.append(linear_norm(shape, "bf16", 1e-6, at))
                launches.append(int4_norm.linear_norm(packed, "bf16", 1e-6, at))
            launches += [plain.linear(shape, at), plain.gate_up(shape, at), plain.silu_mul(shape, at)]
        launches += [rotary.table(1, 32, 1.0, at, dtype), rows.concat(1, (8, 8), dtype, at)]
        launches.append(rope.rope(rope_inputs.Shape(dtype=dtype), at))
        launches.append(norm.norm(norm_inputs.Shape(dtype=dtype), at))
        launches.append(residual.norm(residual_inputs.Shape(dtype=dtype), at))
        launches += [
            one
            for weight in ("bf16", "e4m3")
            for rows in (1, 9)
            for one in head.head(head_inputs.Shape(rows, dtype=dtype, weight_dtype=weight), at)
        ]
        launches += [head.logits(head_inputs.Shape(rows, 256, dtype=dtype), at) for rows in (1, 9)]
    for stored in ("e4m3", "bf16"):
        for tokens, dtype in product((1, 9, 64), ("f32", "bf16")):
            shape = experts_inputs.Shape(tokens=tokens, stored=stored, dtype=dtype)
            launches += experts.experts(shape, at)
            if tokens == 1:
                launches += experts_norm.experts_norm(shape, "bf16", 1e-6, at)
        launches += experts.experts(experts_inputs.Shape(tokens=65, stored=stored), at)
    launches += [
        one
        for capability in (0, tiles.HOPPER)
        for one in experts.experts(experts_inputs.Shape(tokens=65, quantized=True), at, capability)
    ]
    for dim, cache, tokens in product(attention.HEAD_DIMS, ("bf16", "e4m3"), (1, 4)):
        by = attention.plan(attention_inputs.Shape(1, tokens, head_dim=dim, cache_dtype=cache))
        launches += attention.attention(by, at)
        launches += rope_attention.attention(by, rope_attention.Turn(), at)
    launches.append(attention_prefill.attention(attention_inputs.Shape(tokens=512), at))
    return launches


def longest(table: dict[str, int], kernel: str) -> int:
    """The entry of the longest prefix of the kernel's name; 0 without one."""
    return max(((len(name), limit) for name, limit in table.items() if kernel.startswith(name)), default=(0, 0))[1]


def gates(targets: tuple[str, ...], source: Path) -> set[str]:
    rows = toolchain.compile_gpu(source, targets).resources
    for row in rows:
        assert row.registers <= longest(CEILINGS, row.kernel), row
        assert row.spill_stores + row.spill_loads <= longest(SPILLS, row.kernel), row
    return {row.kernel for row in rows}


def sources() -> list[Path]:
    return [source for source in toolchain.sources() if source.parent.name in FOLDERS]


def test_gates_on_hopper() -> None:
    compiled = set().union(*(gates(HOPPER, source) for source in sources()))
    assert compiled == {one.kernel for one in every_launch()}


@pytest.mark.slow
@pytest.mark.parametrize("source", sources(), ids=lambda source: f"{source.parent.name}/{source.stem}")
def test_gates_on_every_target(source: Path) -> None:
    gates(toolchain.TARGETS, source)


@pytest.mark.slow
@pytest.mark.parametrize("source", sources(), ids=lambda source: f"{source.parent.name}/{source.stem}")
def test_other_targets_compile(source: Path) -> None:
    """Those that the compiler names; what they take of a multiprocessor is for their own benchmark to say."""
    others = tuple(t for t in toolchain.known_targets(toolchain.find_nvcc()) if t in toolchain.OTHERS)
    rows = toolchain.compile_gpu(source, others).resources
    assert {row.target for row in rows} == set(others)


@pytest.mark.parametrize(
    ("file", "kernel", "threads"),
    [
        ("fp8_linear/prefill_wgmma.cu", tiles.W8A8_WGMMA.name, tiles.W8A8_WGMMA.threads),
        ("gated_attention/prefill.cu", "gated_attention_prefill_wgmma", attention_prefill.BLOCK),
        ("moe_experts/prefill_wgmma.cu", "moe_experts_group_gate_up_wgmma", grouped.WGMMA.threads),
        ("moe_experts/prefill_wgmma.cu", "moe_experts_group_down_wgmma", grouped.WGMMA.threads),
    ],
)
def test_warpgroups_deal_out_what_the_launch_gave(file: str, kernel: str, threads: int) -> None:
    """setmaxnreg waits for ever for more registers than the launch took: the text's own sum against the assembler's."""
    folder = toolchain.sources()[0].parents[1]
    text = (folder / "common/warpgroups.cuh").read_text()
    producer, multiplier = (
        int(re.search(rf"k{name}Registers = (\d+)", text)[1]) for name in ("Producer", "Multiplier")
    )
    rows = toolchain.compile_gpu(folder / file, HOPPER).resources
    (launched,) = (row.registers for row in rows if row.kernel == kernel)
    assert 128 * (producer + 2 * multiplier) <= launched * threads
