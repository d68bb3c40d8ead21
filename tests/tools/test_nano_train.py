"""Nano's training: a resumed run equals an unbroken one, the MTP head is aligned, Muon orthogonalises."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tools.nano import corpus, muon, tasks, train
from tools.nano.model import Nano, new_model
from tools.nano.reference import acceptance

SMALL = train.Recipe(steps=4, tokens_per_batch=256, warmup=1, decay_from=1000)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> train.Run:
    return train.start(SMALL, tmp_path_factory.mktemp("run"))


def test_a_resumed_run_equals_an_unbroken_one(fresh: train.Run, tmp_path: Path) -> None:
    def run(steps: int, folder: str) -> train.Run:
        model = new_model(fresh.model.config, SMALL.seed)
        return train.Run(replace(SMALL, steps=steps), tmp_path / folder, fresh.words, model)

    whole, half, rest = run(4, "whole"), run(2, "broken"), run(4, "broken")
    whole.train(save_every=2, log_every=2)
    half.train(save_every=2, log_every=2)
    assert half.step == 2
    rest.train(save_every=2, log_every=2)
    for name, expected in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], expected), name
    assert len((tmp_path / "broken" / "log.jsonl").read_text().splitlines()) == 2


def test_only_the_replies_are_trained_on(fresh: train.Run) -> None:
    source = corpus.batches(fresh.words, tasks.Sampler(random.Random(1)), tasks.BROAD, 2000)
    batch = next(source)
    for tokens, trained in zip(batch.tokens, batch.trained, strict=True):
        text = str(fresh.words.decode(tokens[: int(trained.nonzero().max()) + 1]))
        reply = str(fresh.words.decode(tokens[trained]))
        assert text.endswith("\n" + reply) and reply.endswith("<|im_end|>")
        assert text.removesuffix(reply).endswith(("assistant\n<think>\n", "<think>\n\n</think>\n\n"))


@torch.no_grad()
def test_draft_i_sees_tokens_up_to_i_plus_1(fresh: train.Run) -> None:
    model = fresh.model
    tokens = torch.arange(20, 30)[None]
    changed = tokens.clone()
    changed[0, 5] = 99
    drafts, others = (model.draft_hidden(row, model.hidden(row)) for row in (tokens, changed))
    same = torch.isclose(drafts, others, atol=1e-6).all(-1)[0]
    assert same[:4].all() and not same[4:].any()


@torch.no_grad()
def test_the_mtp_loss_is_about_the_token_after_the_next(fresh: train.Run) -> None:
    tokens = torch.arange(40, 52)[None]
    trained = torch.zeros_like(tokens, dtype=torch.bool)
    trained[0, 8] = True
    hidden = fresh.model.hidden(tokens)
    drafted = fresh.model.lm_head(fresh.model.draft_hidden(tokens, hidden))
    expected = F.cross_entropy(drafted[0, 6], tokens[0, 8])
    found = train.mtp_loss(fresh.model, corpus.Batch(tokens, trained), hidden)
    assert torch.isclose(found, expected, atol=1e-5)


class Drafts(torch.nn.Module):
    """Stands in for a model whose draft for token j is right where wanted[j]."""

    def __init__(self, wanted: list[bool]) -> None:
        super().__init__()
        self.wanted = wanted
        self.lm_head = torch.nn.Identity()

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def draft_hidden(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        right = tokens[0, 2:] + ~torch.tensor(self.wanted[2:])
        last = torch.zeros(1, dtype=torch.long)
        return F.one_hot(torch.cat([right, last]), 20)[None].float()


def test_an_accepted_draft_saves_the_next_one() -> None:
    #        prompt  first   accepted, skipped, refused, accepted, skipped
    wanted = [False, False, True, True, False, True, True]
    model: Nano = Drafts(wanted)  # type: ignore[assignment]
    assert acceptance(model, [[1]], [[2, 3, 4, 5, 6, 7]]) == (3, 2)


def test_rates_rise_stay_and_fall() -> None:
    recipe = train.Recipe(steps=100, warmup=10, decay_from=50)
    rates = [train.rate_factor(step, recipe) for step in range(100)]
    assert rates[0] == 0.1 and set(rates[10:51]) == {1.0}
    assert all(a > b > 0 for a, b in pairwise(rates[50:]))


@pytest.mark.parametrize("shape", [(64, 48), (128, 32), (32, 128)])
def test_muon_orthogonalises(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    singular = torch.linalg.svdvals(muon.orthogonalise(torch.randn(shape, generator=generator)))
    assert singular.min() > 0.3 and singular.max() < 1.3
