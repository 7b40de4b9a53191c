"""Sampling by the fused decoder: reproducible, independent of its neighbours, and of use to the question after it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.scorers.local.fused import FusedDecoder
from eval.scorers.local.generation import PART, Sampler, draw
from eval.scorers.local.transformers import TransformersScorer
from eval.types import Prompt, Turn
from tests.support.tiny_models import packs_bf16

TEXTS = [
    f"What is it that {who} {what}?" for who in ("she", "he", "the nurse") for what in ("said", "saw", "made of it")
]
OPENINGS = [Prompt((Turn("human", text), Turn("assistant", "I think that"))) for text in TEXTS]


def load(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> TransformersScorer:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return TransformersScorer(model, AutoTokenizer.from_pretrained(folder), **settings)


def independent(scorer: TransformersScorer, tokens: int) -> None:
    """The same texts together, alone, in another order and in batches of another size."""
    seeds = range(100, 100 + len(OPENINGS))
    together = dict(scorer.sample(OPENINGS, seeds, tokens))
    assert scorer.tier == "fused"
    assert len(set(together.values())) > len(OPENINGS) // 2
    for i in (0, 4):
        assert dict(scorer.sample([OPENINGS[i]], [seeds[i]], tokens)) == {0: together[i]}
    scorer.sample_batch = 4
    backwards = dict(scorer.sample(OPENINGS[::-1], seeds[::-1], tokens))
    assert {len(OPENINGS) - 1 - i: text for i, text in backwards.items()} == together


def test_samples_do_not_depend_on_their_neighbours(tiny: Path) -> None:
    independent(load(tiny), 20)


@pytest.mark.real_model
@pytest.mark.parametrize("threads", [1, 2])
def test_samples_in_half_precision_do_not_depend_on_their_neighbours(real_model: Path, threads: int) -> None:
    """bf16 tells: a sum in another order moves a logit by eighths, and then the samples part."""
    if not packs_bf16():
        pytest.skip("this processor has no packed products in bf16, and so no fused tier")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        independent(load(real_model, torch.bfloat16), 10)
    finally:
        torch.set_num_threads(before)


def test_a_sample_ends_where_the_model_ends_it(tiny: Path) -> None:
    scorer = load(tiny)
    seeds = range(len(OPENINGS))
    scorer.stop_ids = frozenset()
    whole = Sampler(scorer._decoder(), [(5, 6, 7)] * 40, 30)
    with torch.no_grad():
        endless = dict(whole.sample(range(40), 30, lambda new: False))
        stopped = dict(Sampler(scorer._decoder(), [(5, 6, 7)] * 40, 30).sample(range(40), 30, lambda new: new[-1] == 1))
    assert {len(new) for new in endless.values()} == {30}
    assert stopped == {i: new[: new.index(1) + 1] if 1 in new else new for i, new in endless.items()}
    assert len({len(new) for new in stopped.values()}) > 1
    assert len(list(scorer.sample(OPENINGS, seeds, 5))) == len(OPENINGS)


def test_samples_are_those_of_generate(tiny: Path) -> None:
    """In fp32 both ways of sampling draw the same tokens from the same uniform numbers."""
    seeds = range(len(OPENINGS))
    fused = dict(load(tiny, tier="fused").sample(OPENINGS, seeds, 20))
    generated = dict(load(tiny, tier="tree").sample(OPENINGS, seeds, 20))
    assert fused == generated


def test_the_answer_goes_on_from_the_sample(tiny: Path) -> None:
    """Several endings of each dialogue, one that leaves it early, and one that belongs to none."""
    decoder = load(tiny, tier="fused")._decoder()
    contexts = [(5, 6, 7, 8 + n % 3) for n in range(7)]
    with torch.no_grad():
        sampler = Sampler(decoder, contexts, 40)
        assert len(list(sampler.sample(range(7), 40, lambda new: new[-1] < 20))) == 7
        wanted = {
            (*tokens, *ending): {1, 2, 3} for tokens in sampler.tokens for ending in ((31, 32), (31, 32, 33), (34,))
        }
        wanted[*sampler.tokens[0][:-2], 40, 41] = {5}
        wanted[50, 51, 52, 53] = {6}
        before = decoder.computed_tokens
        short = {s: found for part in sampler.logprobs(wanted, 30) for s, found in part.items()}
        cost = decoder.computed_tokens - before
        exact = {s: found for part in decoder.logprobs(wanted, 2048) for s, found in part.items()}
    assert set(short) == set(wanted) - {(50, 51, 52, 53)}
    assert cost < decoder.computed_tokens - before - cost
    for sequence, found in short.items():
        np.testing.assert_allclose(list(found.values()), [exact[sequence][t] for t in found], atol=2e-5)


def test_a_draw_has_the_model_s_distribution() -> None:
    n = 6000
    p = torch.zeros(2 * PART + 7)
    p[[3, PART - 1, PART, 2 * PART + 6]] = torch.tensor([0.4, 0.3, 0.1, 0.2])
    u = torch.rand(n, generator=torch.Generator().manual_seed(0))
    counts = Counter(draw(torch.log(p).repeat(n, 1), u).tolist())
    assert set(counts) == {3, PART - 1, PART, 2 * PART + 6}
    for token, count in counts.items():
        assert abs(count / n - float(p[token])) < 4 * (float(p[token]) * (1 - float(p[token])) / n) ** 0.5
    edges = draw(torch.log(p).repeat(2, 1), torch.tensor([0.0, 1.0 - 2**-24]))
    assert edges.tolist() == [3, 2 * PART + 6]


def test_slots_are_used_again(tiny: Path) -> None:
    scorer = load(tiny, tier="fused")
    decoder: FusedDecoder = scorer._decoder()
    keys, _ = decoder.slots(8, 100)
    assert decoder.slots(3, 90)[0][0] is keys[0]
    assert decoder.slots(9, 200)[0][0].shape[:3:2] == (9, 256)
