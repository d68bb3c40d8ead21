"""The linear, attention, norm, LM head and sampler kernels stay inside their arrays (see test_memory_bounds)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import test_fp8_linear as linear
import test_fp8_linear_prefill as prefill
import test_gated_attention as attention
import test_gated_attention_prefill as attention_prefill
import test_gated_rms_norm as norm
import test_int4_linear_kernels as int4
import test_int4_linear_norm as int4_norm
import test_lm_head as head
import test_moe_experts as moe
import test_moe_norm as moe_norm
import test_projections as projections
import test_qk_norm_rope as rope
import test_residual_rms_norm as residual
import test_rope_attention as rope_attention
import test_sampler as sampler
from test_memory_bounds import Place, exit_code

from deltart.plugins.cpu_shim.runner import compile_cpu
from deltart.plugins.fp8_linear import gate_up
from deltart.plugins.fp8_linear import inputs as linear_inputs
from deltart.plugins.fp8_linear import launch as linear_launch
from deltart.plugins.fp8_linear import prefill as tiles
from deltart.plugins.fp8_linear.projections import decode
from deltart.plugins.gated_attention import inputs as attention_inputs
from deltart.plugins.gated_attention import launch as attention_launch
from deltart.plugins.gated_rms_norm import inputs as norm_inputs
from deltart.plugins.gated_rms_norm import launch as norm_launch
from deltart.plugins.int4_linear import inputs as int4_inputs
from deltart.plugins.int4_linear import launch as int4_launch
from deltart.plugins.int4_linear import prefill as int4_prefill
from deltart.plugins.int4_linear import projections as int4_projections
from deltart.plugins.int4_linear.norm import linear_norm
from deltart.plugins.lm_head import inputs as head_inputs
from deltart.plugins.lm_head import launch as head_launch
from deltart.plugins.moe_experts import inputs as moe_inputs
from deltart.plugins.moe_experts import launch as moe_launch
from deltart.plugins.moe_experts.norm import experts_norm
from deltart.plugins.qk_norm_rope import inputs as rope_inputs
from deltart.plugins.qk_norm_rope import launch as rope_launch
from deltart.plugins.residual_rms_norm import inputs as residual_inputs
from deltart.plugins.residual_rms_norm import launch as residual_launch
from deltart.plugins.sampler import inputs as sampler_inputs
from deltart.plugins.sampler import launch as sampler_launch


def multiply(place: Place) -> None:
    for tokens, n, k, dtype in ((1, 300, 1040, "bf16"), (11, 129, 16, "f32"), (37, 40, 400, "bf16")):
        shape = linear_inputs.Shape(tokens=tokens, n=n, k=k, dtype=dtype)
        given = linear_inputs.make(shape, 0) | linear_inputs.outputs(shape)
        given |= {f"up_{name}": given[name] for name in ("weight", "weight_scale_inv")}
        at = place(given)
        linear.module().run([linear_launch.decode(shape, at), linear_launch.decode_gate_up(shape, at)])


def project(place: Place) -> None:
    for fp8, plain in (((130, 16, 40), ()), ((64, 129), (5, 48))):
        shape = linear_inputs.Shape(tokens=3, k=400)
        given, members = projections.make(shape, fp8, plain)
        at = place(given | {m.y: np.zeros((3, m.n), np.uint16) for m in members})
        projections.module().run([decode(shape, members, at)])


def multiply_many(place: Place) -> None:
    for tokens, n, k in ((130, 129, 144), (3, 40, 1040), (70, 40, 2064)):
        for kernel in prefill.KERNELS:
            shape = linear_inputs.Shape(tokens=tokens, n=n, k=k)
            work = {name: np.zeros(size, np.uint8) for name, size in tiles.workspace(shape, kernel).items()}
            work["gate"] = np.zeros(gate_up.gate_bytes(shape), np.uint8)
            given = linear_inputs.make(shape, 0)
            given |= {f"up_{name}": given[name] for name in ("weight", "weight_scale_inv")}
            at = place(given | linear_inputs.outputs(shape) | work)
            plan = tiles.prefill if kernel is tiles.W8A16 else tiles.prefill_w8a8
            prefill.module(kernel).run([*plan(shape, kernel, at), *gate_up.prefill(shape, kernel, at)])


def multiply_int4(place: Place) -> None:
    """One scale and an odd number of them: the last one's word is not whole."""
    for tokens, n, k, group, scales in (
        (1, 301, 1056, 32, "bf16"),
        (11, 129, 32, 32, "bf16"),
        (70, 41, 2080, 32, "f32"),
        (3, 129, 1056, 32, "f16"),
    ):
        shape = int4_inputs.Shape(1, tokens, n, k, group, scale_dtype=scales)
        given = int4_inputs.make(shape, 0) | int4_inputs.outputs(shape)
        given |= {name.replace("weight", "up"): given[name] for name in ("weight_groups", "weight_scale")}
        given["gate"] = np.zeros(int4_prefill.gate_bytes(shape), np.uint8)
        given["partial"] = np.zeros(int4_prefill.partial_bytes(shape), np.uint8)
        at = place({name: array for name, array in given.items() if array.size})
        int4.module().run([int4_launch.decode(shape, at), int4_launch.decode_gate_up(shape, at)])
        int4.module("prefill").run([*int4_prefill.prefill(shape, at), *int4_prefill.gate_up(shape, at)])
        given, members = int4.several(shape, (130, 17), (5, 48))
        at = place(given | {m.y: np.zeros((tokens, m.n), np.uint16) for m in members})
        int4.module("projections").run([int4_projections.decode(shape, members, at)])
    for joined in int4_norm.SHAPES[1:3]:
        at = place(int4_norm.made(joined))
        int4.module("norm").run([linear_norm(joined, "bf16", 1e-6, at)])


def attend(place: Place) -> None:
    for tokens, cache, page in ((1, "bf16", 0), (8, "e4m3", 0), (40, "bf16", 0), (3, "bf16", 16), (3, "e4m3", 16)):
        shape = attention_inputs.Shape(2, tokens, 6, 1, 64, 32 + tokens, cache, page)
        given = attention_inputs.make(shape, 0, np.array([32, 7]), np.array([tokens, 0]))
        for splits in (1, 3):
            by = attention_launch.plan(shape, splits)
            work = {"workspace": np.zeros(max(1, by.workspace_bytes()), np.uint8)}
            at = place(given | attention_inputs.outputs(shape) | work)
            attention.module().run(attention_launch.attention(by, at))
            if tokens <= attention_launch.DECODE_TOKENS:
                given_raw = rope_attention.made(shape, rope_attention.TURN, [32, 7], [tokens, 0])
                at = place(given_raw | attention_inputs.outputs(shape) | work)
                joined = rope_attention.joined.attention(by, rope_attention.TURN, at)
                rope_attention.module().run(joined)
    for page in (0, 16):
        shape = attention_inputs.Shape(2, 30, 6, 1, 256, 90, page_size=page)
        given = attention_inputs.make(shape, 0, np.array([60, 7]), np.array([30, 0]))
        at = place(given | attention_inputs.outputs(shape))
        attention_prefill.module().run([attention_prefill.prefill.attention(shape, at)])


def turn(place: Place) -> None:
    for dim, rotary in ((64, 16), (200, 48)):
        shape = rope_inputs.Shape(2, 3, 3, 1, dim, rotary)
        at = place(rope_inputs.make(shape, 0) | rope_inputs.outputs(shape))
        rope.module().run([rope_launch.rope(shape, at)])


def normalise(place: Place) -> None:
    for dim in (128, 20):
        shape = norm_inputs.Shape(2, 3, 5, dim)
        norm.module().run([norm_launch.norm(shape, place(norm_inputs.make(shape, 0) | norm_inputs.outputs(shape)))])


def add_and_normalise(place: Place) -> None:
    for width in (5120, 1000):
        shape = residual_inputs.Shape(2, width)
        at = place(residual_inputs.make(shape, 0) | residual_inputs.outputs(shape))
        residual.module().run([residual_launch.norm(shape, at)])


def score(place: Place) -> None:
    for weight, subset in (("bf16", 0), ("e4m3", 77)):
        shape = head_inputs.Shape(3, 300, 144, 290, 4, subset, weight_dtype=weight)
        work = {name: np.zeros(size, np.uint8) for name, size in head_launch.workspace(shape).items()}
        at = place(head_inputs.make(shape, 0) | head_inputs.outputs(shape) | work)
        head.module().run(head_launch.head(shape, at, 64))
    weight = head_inputs.make(head_inputs.Shape(vocabulary=5, k=208), 0)["weight"]
    made = {"weight": weight, "codes": np.zeros(weight.shape, np.uint8), "scale": np.zeros((5, 2), np.uint16)}
    compile_cpu(head.FOLDER / "quantize.cu").run([head_launch.quantize(5, 208, place(made))])


def mix(place: Place) -> None:
    for tokens, stored, shared in ((1, "e4m3", 48), (11, "bf16", 0), (70, "e4m3", 144), (70, "bf16", 48)):
        shape = moe_inputs.Shape(2, tokens, 144, 5, 2, 80, shared, stored=stored)
        for capability in (moe.ANY, moe.HOPPER) if tokens == 70 and stored == "e4m3" else ():
            mix_of(replace(shape, quantized=True), place, capability)
        mix_of(shape, place)
    for shape, counts in moe_norm.SIZES:
        at = place(moe_norm.made(shape, counts))
        moe.module(shape).run(experts_norm(shape, "bf16", 1e-6, at))


def mix_of(shape: moe_inputs.Shape, place: Place, capability: int = moe.ANY) -> None:
    work = {name: np.zeros(size, np.uint8) for name, size in moe_launch.workspace(shape).items()}
    at = place(moe_inputs.make(shape, 0, [shape.tokens, 1]) | moe_inputs.outputs(shape) | work)
    moe.module(shape, capability=capability).run(moe_launch.experts(shape, at, capability, 3))


def draw(place: Place) -> None:
    for vocabulary, limit in ((100, 90), (65, 65)):
        shape = sampler_inputs.Shape(2, vocabulary, limit)
        arrays = sampler_inputs.pack([sampler.CASES["all cuts"], sampler.CASES["penalties"]])
        arrays |= sampler.scratch(shape) | {"logits": np.ones((2, vocabulary), np.float32)}
        arrays |= {"counts": np.ones((2, vocabulary), np.int32)}
        arrays |= {"allowed": np.full((2, -(-vocabulary // 32)), 0xFFFFFFFF, np.uint32)}
        sampler.module().run(sampler_launch.sample(shape, place(arrays), threads=64, blocks=2))


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize(
    "run",
    [multiply, project, multiply_many, multiply_int4, attend, turn, normalise, add_and_normalise, score, mix, draw],
)
def test_stays_inside(run: object, behind: bool) -> None:
    assert exit_code(run, behind) == 0
