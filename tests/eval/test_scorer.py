"""The scorer against plain forward passes, and the seeded sampling."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.models.prompt_format import Format, encode
from eval.scorers.local.fused import FusedDecoder
from eval.scorers.local.portable import SeededDraw
from eval.scorers.local.prefix_tree import pack
from eval.scorers.local.transformers import TransformersScorer
from eval.types import Prompt, Turn

PROMPTS = [
    Prompt((Turn("human", text), Turn("assistant", "I think that")), (" (a)", " (b)", " (c) or so", " (a) too"))
    for text in ("What is it?", "What is it? Tell me.", "Who was it?", "What is it? Tell me all that you know of it.")
]


def by_hand(model: Any, tokenizer: Any, prompts: list[Prompt], style: str) -> np.ndarray:
    """One plain fp32 forward for every prompt and candidate."""
    values = []
    for e in encode(prompts, tokenizer, Format(style)):
        for candidate in e.candidates:
            ids = torch.tensor([[*e.context, *candidate]])
            with torch.no_grad():
                logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
            at = range(len(e.context) - 1, ids.shape[1] - 1)
            values.append(sum(float(logprobs[i, t]) for i, t in zip(at, candidate, strict=True)))
    return np.array(values)


def scored(scorer: TransformersScorer, prompts: list[Prompt]) -> np.ndarray:
    answers = dict(scorer.score(prompts))
    assert sorted(answers) == list(range(len(prompts)))
    return np.concatenate([answers[i].logprobs for i in range(len(prompts))])


def load(folder: Path, **settings: Any) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, **settings).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("style", ["chat", "paper"])
@pytest.mark.parametrize("tier", ["fused", "tree", "plain"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 2048])
def test_exact(tiny: Path, style: str, tier: str, batch_tokens: int) -> None:
    model, tokenizer = load(tiny)
    scorer = TransformersScorer(model, tokenizer, style, batch_tokens=batch_tokens, tier=tier)
    np.testing.assert_allclose(scored(scorer, PROMPTS), by_hand(model, tokenizer, PROMPTS, style), atol=2e-5)


def test_tier_is_chosen_by_a_check_and_recorded(tiny: Path) -> None:
    model, tokenizer = load(tiny)
    scorer = TransformersScorer(model, tokenizer)
    scored(scorer, PROMPTS)
    assert scorer.describe()["tier"] == "fused"
    assert "differs from plain fp32 forward passes by at most" in scorer.describe()["tier_reason"]


def test_tiers_that_are_wrong_are_not_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused tier without its turning of positions, the tree without its mask."""
    from eval.scorers.local.prefix_tree import Pack

    model, tokenizer = load(tiny)
    monkeypatch.setattr(FusedDecoder, "_turn", lambda self, x, at: torch.ones(len(at), 1, 4, dtype=torch.complex64))
    scorer = TransformersScorer(model, tokenizer)
    np.testing.assert_allclose(scored(scorer, PROMPTS), by_hand(model, tokenizer, PROMPTS, "chat"), atol=2e-5)
    assert scorer.describe()["tier"] == "tree"
    monkeypatch.setattr(Pack, "ancestors_NN", lambda self: np.tri(len(self.tokens_N), dtype=bool))
    scorer = TransformersScorer(model, tokenizer)
    np.testing.assert_allclose(scored(scorer, PROMPTS), by_hand(model, tokenizer, PROMPTS, "chat"), atol=2e-5)
    assert scorer.describe()["tier"] == "plain"


def test_half_precision_has_an_exact_head_and_leaves_the_model_as_it_was(tiny: Path) -> None:
    model, tokenizer = load(tiny, dtype=torch.bfloat16)
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    answers = scored(TransformersScorer(model, tokenizer), PROMPTS)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert before.dtype == torch.bfloat16
    reference, _ = load(tiny)
    assert np.abs(answers - by_hand(reference, tokenizer, PROMPTS, "chat")).mean() < 0.1


def test_packs_hold_every_sequence_once() -> None:
    rng = random.Random(0)
    sequences = list({tuple(rng.choices(range(3), k=rng.randint(1, 9))) for _ in range(200)})
    for max_tokens in (1, 7, 50, 10_000):
        packs = pack(sequences, max_tokens)
        seen = []
        for p in packs:
            assert len(p.tokens_N) <= max_tokens or len(p.sequences) == 1
            allowed_NN = p.ancestors_NN()
            for index, last in zip(p.sequences, p.last_S, strict=True):
                path = np.flatnonzero(allowed_NN[last])
                assert tuple(p.tokens_N[path]) == sequences[index]
                assert list(p.depth_N[path]) == list(range(len(path)))
                seen.append(index)
        assert sorted(seen) == list(range(len(sequences)))
    assert sum(len(p.tokens_N) for p in pack(sequences, 10_000)) == len(
        {s[:k] for s in sequences for k in range(1, 10) if k <= len(s)}
    )


def test_seeded_draw_has_the_model_s_distribution() -> None:
    p = torch.tensor([0.5, 0.3, 0.0, 0.2])
    n = 4000
    draw = SeededDraw(range(n), max_new_tokens=1, prompt_width=3)
    scores = torch.log(p).repeat(n, 1)
    tokens = draw(torch.zeros(n, 3, dtype=torch.long), scores).argmax(dim=-1).tolist()
    counts = Counter(tokens)
    assert counts[2] == 0
    for token, share in ((0, 0.5), (1, 0.3), (3, 0.2)):
        assert abs(counts[token] / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_a_sample_depends_on_its_own_seed_only(tiny: Path) -> None:
    model, tokenizer = load(tiny)
    scorer = TransformersScorer(model, tokenizer)
    openings = [Prompt(p.turns) for p in PROMPTS]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    together = dict(scorer.sample(openings, [11, 12, 13, 14], 12))
    assert torch.equal(state, torch.get_rng_state())
    assert together == {i: dict(scorer.sample([openings[i]], [11 + i], 12))[0] for i in range(4)}
    assert together != dict(scorer.sample(openings, [21, 22, 23, 24], 12))
    assert len(set(together.values())) > 1


@pytest.mark.real_model
def test_real_model_is_scored_exactly(real_model: Path) -> None:
    model, tokenizer = load(real_model, dtype=torch.float32)
    scorer = TransformersScorer(model, tokenizer)
    expected = by_hand(model, tokenizer, PROMPTS, "chat")
    np.testing.assert_allclose(scored(scorer, PROMPTS), expected, atol=2e-4)  # without AVX: 1.1e-4 in 31.6
    assert scorer.tier == "fused"
