"""The planner: its bytes against the published bounds, its predictions against published figures, and what fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.planner.anchors import ACCEPTANCE, ACCEPTED, ANCHORS, DENSE, MEASURED, SPARSE, SPARSE_BF16
from bench.planner.fit import fit, left_out, median_errors
from deltart.artifact import load_manifest
from deltart.cli import main
from deltart.errors import PlanError
from deltart.manifest import Manifest, WeightEntry
from deltart.planner.devices import DEVICES, device
from deltart.planner.host import copy_bandwidth, host_device
from deltart.planner.plan import MAX_CONTEXT, make_plan, most_context, needed
from deltart.planner.predict import FITTED, IDEAL, predict, prefill, tokens_per_step
from deltart.planner.traffic import (
    CACHE,
    DRAFTS,
    EXPERTS,
    HEAD,
    MLP,
    RECURRENT,
    Call,
    Model,
    read_model,
)  # fmt: skip
from support.manifests import manifest_of

# tok/s that peak bandwidth allows at 0, 32k, 128k and 256k tokens, and GB of a token at batch 1: worked out by others.
PUBLISHED_BOUNDS = {
    (DENSE, "h100"): (123, 114, 94, 75), (DENSE, "h200"): (176, 163, 134, 108),
    (SPARSE, "h100"): (928, 782, 532, 373), (SPARSE, "h200"): (1330, 1121, 763, 535),
    (SPARSE, "rtx-5090"): (496, 418, 284, 199), (SPARSE_BF16, "h100"): (556, 501, 385, 294),
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> Mapping[str, Model]:
    return {name: read_model(manifest_of(name)) for name in (DENSE, SPARSE, SPARSE_BF16)}


@pytest.mark.parametrize(("model", "gpu"), PUBLISHED_BOUNDS)
def test_bytes_give_the_published_bounds(models: Mapping[str, Model], model: str, gpu: str) -> None:
    for past, expected in zip((0, 32768, 131072, 262144), PUBLISHED_BOUNDS[model, gpu], strict=True):
        found = 1 / predict(models[model], DEVICES[gpu], Call(past=past), IDEAL).seconds
        assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("gpu", "expected"), [("h100", 1080), ("h200", 1548), ("rtx-5090", 577)])
def test_bytes_of_an_fp8_head_give_the_bound(models: Mapping[str, Model], gpu: str, expected: int) -> None:
    """The bound was worked out by others, without the scales: 1.6 % of the head."""
    model = read_model(manifest_of(SPARSE), fp8_head=True)
    assert 1 / predict(model, DEVICES[gpu], Call(), IDEAL).seconds == pytest.approx(expected, rel=0.01)
    rows = 248320 * 2048
    assert models[SPARSE].stored_bytes - model.stored_bytes == pytest.approx(rows * (1 - 2 / 128))


def test_an_fp8_head_leaves_a_tied_embedding_where_it_is(models: Mapping[str, Model]) -> None:
    manifest = manifest_of(SPARSE)
    names = [name for name in manifest.graphs["model"].weights if not name.startswith("lm_head")]
    graphs = {**manifest.graphs, "model": replace(manifest.graphs["model"], weights=names)}
    tied = replace(manifest, spec={**manifest.spec, "tie_word_embeddings": True}, graphs=graphs)
    before, after = read_model(tied), read_model(tied, fp8_head=True)
    assert after.weights[HEAD] == read_model(manifest, fp8_head=True).weights[HEAD]
    assert after.stored_bytes - before.stored_bytes == pytest.approx(248320 * 2048 * (1 + 2 / 128))


def test_an_fp8_head_needs_a_plain_one_and_a_gpu() -> None:
    manifest = manifest_of(DENSE)
    (name,) = [name for name in manifest.tensors if name.endswith("lm_head.weight")]
    other = replace(manifest, tensors={**manifest.tensors, name: replace(manifest.tensors[name], dtype="F32")})
    for plan, gpu in ((other, DEVICES["h100"]), (manifest, replace(DEVICES["h100"], float_weights=True))):
        with pytest.raises(PlanError, match="an FP8 head on"):
            make_plan(plan, gpu, (1024,), (1,), fp8_head=True)
    one, two = (make_plan(manifest, DEVICES["h100"], (1024,), (1,), fp8_head=fp8).points[0] for fp8 in (False, True))
    assert one.step.nbytes - two.step.nbytes == pytest.approx(248320 * 5120 * (1 - 2 / 128))


def packed(manifest: Manifest) -> Manifest:
    """The same with its FP8 weights in int4, in groups of 128, under an export's names."""
    tensors = {name: one for name, one in manifest.tensors.items() if not name.endswith("_scale_inv")}
    renamed = dict[str, list[str]]()
    for name, one in [*tensors.items()]:
        if one.dtype == "F8_E4M3":
            (n, k), module = one.shape, tensors.pop(name) and name.removesuffix("weight")
            renamed[name] = [f"{module}weight_groups", f"{module}weight_scale"]
            groups, scale = renamed[name]
            tensors[groups] = WeightEntry("bound", "U8", [n, k // 128, 64], "", 0, n * k // 2)
            tensors[scale] = WeightEntry("bound", "BF16", [n, k // 128], "", 0, n * k // 64)
    graphs = {
        name: replace(graph, weights=[n for w in graph.weights for n in renamed.get(w, [w]) if n in tensors])
        for name, graph in manifest.graphs.items()
    }
    return replace(manifest, tensors=tensors, graphs=graphs)


@pytest.mark.parametrize("float_weights", [False, True])
def test_a_packed_byte_is_two_values(models: Mapping[str, Model], float_weights: bool) -> None:
    """The CPU's kernels hold packed weights as they are; everything that isn't packed they widen."""
    model = read_model(packed(manifest_of(DENSE)), float_weights=float_weights)
    nbytes, values = model.weights[MLP]
    assert values == models[DENSE].weights[MLP][1]
    assert nbytes / values == pytest.approx(0.5 + 2 / 128, rel=0.001)
    assert not model.narrow


def test_drafts_give_the_published_bound(models: Mapping[str, Model]) -> None:
    """Three drafts of the 27B, 2.9 tokens a step: 265 and 380 tok/s."""
    for gpu, expected in (("h100", 265), ("h200", 380)):
        step = predict(models[DENSE], DEVICES[gpu], Call(tokens=4, drafts=3, logits=4), IDEAL)
        assert ACCEPTED / step.seconds == pytest.approx(expected, rel=0.02)
    assert tokens_per_step(3, ACCEPTANCE) == pytest.approx(ACCEPTED, abs=0.01)


def test_experts_that_a_batch_reads(models: Mapping[str, Model]) -> None:
    """GB of a step by tokens in it, as published for uniform routing."""
    for tokens, gigabytes in ((1, 3.61), (4, 6.44), (16, 15.4), (64, 30.6)):
        work = models[SPARSE].work(Call(tokens=tokens))
        assert sum(w.nbytes for kind, w in work.items() if kind != CACHE) / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert models[SPARSE].work(Call())[EXPERTS].nbytes == pytest.approx(1.007e9, rel=0.01)


def test_predictions_are_near_what_others_published(models: Mapping[str, Model]) -> None:
    """In the fit: the constants are what the fit gives, and the medians of the errors are stated in the README."""
    decode, prompts = median_errors([anchor.error(models, FITTED) for anchor in ANCHORS])
    assert decode <= 0.12
    assert prompts <= 0.10
    assert asdict(fit(models)) == pytest.approx(asdict(FITTED))


@pytest.mark.slow
def test_predictions_of_figures_left_out_of_the_fit(models: Mapping[str, Model]) -> None:
    decode, prompts = median_errors(left_out(models))
    assert decode <= 0.15
    assert prompts <= 0.30


def test_a_prediction_adds_up(models: Mapping[str, Model]) -> None:
    found = predict(models[SPARSE], DEVICES["h100"], Call(16, 4, 8192, 3, 4))
    assert found.seconds == pytest.approx(sum(found.by_kind.values()) + found.overhead)
    assert {CACHE, RECURRENT, DRAFTS, EXPERTS} <= found.by_kind.keys()
    whole, split = (prefill(models[DENSE], DEVICES["h100"], 8192, chunk=chunk) for chunk in (8192, 1024))
    assert split.seconds > whole.seconds  # weights are read eight times


@pytest.mark.parametrize("preset", [DENSE, SPARSE])
def test_more_work_takes_longer(models: Mapping[str, Model], preset: str) -> None:
    model = models[preset]
    for each in DEVICES.values():
        steps = [
            predict(model, each, Call(rows, past=past)).seconds for rows in (1, 8, 256) for past in (0, MAX_CONTEXT)
        ]
        assert steps[0] < steps[2] < steps[4] and steps[1] < steps[3] < steps[5]
        assert prefill(model, each, 1024).seconds < prefill(model, each, 65536).seconds


def test_what_fits() -> None:
    """27 GB of weights and 2.5 of embedding: no 24 or 32 GB board by itself, with room for K/V on 48 GB and more."""
    manifest = manifest_of(DENSE)
    plans = {name: make_plan(manifest, each, (32768,), (1,)) for name, each in DEVICES.items()}
    assert {name for name, p in plans.items() if not p.points[0].fits} == {"rtx-5090", "rtx-4090"}
    assert plans["rtx-4090"].points[0].binds == "memory"
    assert (plans["rtx-4090"].smallest_parallel, plans["rtx-4090"].most_context) == (2, 0)
    model = read_model(manifest)
    longest = most_context(model, DEVICES["h100"])
    assert needed(model, DEVICES["h100"], longest, 1) <= 80e9 < needed(model, DEVICES["h100"], longest + 1, 1)
    narrow = make_plan(manifest, DEVICES["h100"], (32768,), (1,), cache_bytes=1)
    assert narrow.most_context > 1.9 * plans["h100"].most_context


def test_more_devices() -> None:
    one, four = (make_plan(manifest_of(DENSE), DEVICES["h100"], (8192,), (1, 64), parallel=n) for n in (1, 4))
    assert one.points[0].step.seconds / 4 < four.points[0].step.seconds < one.points[0].step.seconds
    assert four.points[0].memory < one.points[0].memory
    assert make_plan(manifest_of(DENSE), DEVICES["h100"], (8192,), (1,), parallel=2, replicas=3).devices == 6


def test_devices_by_name() -> None:
    assert device("RTX PRO 6000 Blackwell") is device("rtxpro6000") is DEVICES["rtx-pro-6000"]
    with pytest.raises(PlanError, match="h1000"):
        device("h1000")
    for each in DEVICES.values():
        assert each.fp8 is None or each.fp8 == pytest.approx(2 * each.bf16, rel=0.02)  # as data sheets round


def test_what_can_not_be_planned() -> None:
    manifest = manifest_of(DENSE)
    with pytest.raises(PlanError, match="contexts"):
        make_plan(manifest, DEVICES["h100"], (MAX_CONTEXT + 1,), (1,))


def test_this_machine_is_measured() -> None:
    found = host_device(threads=1)
    assert 1e8 < found.bandwidth < 1e13 and found.float_weights
    assert 1e8 < copy_bandwidth(2) < 1e13


def test_the_command(nano_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An export's own manifest, regions and all, gives what its JSON says."""
    assert main(["plan", str(nano_artifact), "--device", "b200", "--context", "4096", "--batch", "2", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    expected = make_plan(load_manifest(nano_artifact), DEVICES["b200"], (4096,), (2,))
    assert plan["points"][0]["step_seconds"] == pytest.approx(expected.points[0].step.seconds)
    assert main(["plan", str(nano_artifact)]) == 0
    assert "Jetson AGX Thor" in capsys.readouterr().out
    assert main(["plan", str(nano_artifact), "--device", "abacus"]) == 2


def test_this_engines_own_figures_stand_beside_the_predictions(models: Mapping[str, Model]) -> None:
    """Decode was as fast as the planner says of engines of today, or faster; prompts were slower, of experts by far."""
    errors = {(a.model, a.kind, a.prompt): a.error(models, FITTED) for a in MEASURED}
    bounds = {
        (DENSE, "gap"): (0, 0.1),
        (SPARSE, "gap"): (0.1, 0.35),
        (DENSE, "prompt"): (-0.4, 0),
        (SPARSE, "prompt"): (-0.9, 0),
    }
    for (model, kind, _), error in errors.items():
        least, most = bounds[model, kind]
        assert least < error < most, (model, kind, error)
