"""The tiers of the scorer: which model gets which, and that each is right where it is used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from eval.errors import InputError
from eval.models.prompt_format import Format, encode
from eval.scorers.local.fused import FusedDecoder
from eval.scorers.local.prefix_tree import slices
from eval.scorers.local.transformers import TransformersScorer
from eval.scorers.local.widen import in_fp32
from eval.types import Prompt, Turn
from tests.support.tier_scores import CANDIDATES, PROMPTS, TEXTS, scored
from tests.support.tiny_models import packs_bf16

COMMON = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
MIXED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("fused", GROUPED),
    "mistral": ("fused", GROUPED | {"sliding_window": 8}),  # the prompts are longer than the window
    "qwen2": ("fused", {"num_key_value_heads": 2}),
    "qwen3": ("fused", GROUPED),
    "gpt_neox": ("tree", {}),
    "gpt2": ("tree", {}),
    "opt": ("tree", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gemma2": ("tree", GROUPED | MIXED | {"query_pre_attn_scalar": 8}),  # has a soft cap after its output layer
    "gemma3_text": ("tree", GROUPED | MIXED | {"query_pre_attn_scalar": 8}),
    "gpt_oss": ("tree", GROUPED | MIXED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "falcon": ("tree", {"multi_query": True, "alibi": False, "parallel_attn": True}),
    "phi3": ("tree", {"num_key_value_heads": 2}),
    "olmo2": ("tree", {"num_key_value_heads": 2}),
    "bloom": ("plain", {}),
    "mamba": ("plain", {"state_size": 4}),
}


def build(family: str, tokenizer: Any, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model; its norms' scales and its biases are random too, so that none is forgotten unseen."""
    settings: dict[str, Any] = COMMON | FAMILIES[family][1] | changes | {"vocab_size": len(tokenizer)}
    config = CONFIG_MAPPING[family](**settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and not name.startswith("backbone"):
                weight.add_(torch.randn_like(weight) * 0.2)
    return model


def by_hand(model: Any, tokenizer: Any, prompts: list[Prompt]) -> np.ndarray:
    """One plain forward pass for every prompt and candidate."""
    values = []
    for e in encode(prompts, tokenizer, Format("paper")):
        for candidate in e.candidates:
            ids = torch.tensor([[*e.context, *candidate]])
            with torch.no_grad():
                logprobs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
            at = range(len(e.context) - 1, ids.shape[1] - 1)
            values.append(sum(float(logprobs[i, t]) for i, t in zip(at, candidate, strict=True)))
    return np.array(values)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_scored_exactly_and_by_its_tier(family: str, tokenizer: Any) -> None:
    model = build(family, tokenizer)
    scorer = TransformersScorer(model, tokenizer, "paper")
    np.testing.assert_allclose(scored(scorer, PROMPTS), by_hand(model, tokenizer, PROMPTS), atol=1e-4)
    assert scorer.tier == FAMILIES[family][0], scorer.tier_reason


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_neox"])
def test_half_precision_is_no_noisier_than_plain(family: str, tokenizer: Any) -> None:
    model = build(family, tokenizer)
    exact = by_hand(model, tokenizer, PROMPTS)
    model.bfloat16()
    reference = by_hand(model.float(), tokenizer, PROMPTS)  # of the rounded weights
    model.bfloat16()
    assert np.abs(reference - exact).max() > 1e-3
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    scorer = TransformersScorer(model, tokenizer, "paper")
    noise = np.abs(scored(scorer, PROMPTS) - reference).mean()
    assert noise <= 1.2 * np.abs(by_hand(model, tokenizer, PROMPTS) - reference).mean() + 0.01
    best = FAMILIES[family][0]
    assert scorer.tier == ("tree" if best == "fused" and not packs_bf16() else best), scorer.tier_reason
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_fp32_during_the_check_is_what_a_copy_in_fp32_computes(tokenizer: Any) -> None:
    model = build("llama", tokenizer).bfloat16()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        half = model(input_ids=ids).logits
        with in_fp32(model):
            widened = model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, half)
        assert torch.equal(widened, model.float()(input_ids=ids).logits)
    assert half.dtype == torch.bfloat16
    assert widened.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_part_of_the_fused_weights(dtype: torch.dtype, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = build("llama", tokenizer)
    without = by_hand(model, tokenizer, PROMPTS)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config).eval()
    exact = by_hand(adapted, tokenizer, PROMPTS)
    assert np.abs(exact - without).max() > 0.1
    scorer = TransformersScorer(adapted.to(dtype), tokenizer, "paper")
    off = np.abs(scored(scorer, PROMPTS) - exact)
    if dtype == torch.float32 or packs_bf16():
        assert scorer.tier == "fused", scorer.tier_reason
    assert off.max() < 1e-4 if dtype == torch.float32 else off.mean() < 0.2


def test_weights_that_change_are_seen(tokenizer: Any) -> None:
    model = build("llama", tokenizer)
    scorer = TransformersScorer(model, tokenizer, "paper")
    before = scored(scorer, PROMPTS)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    after = scored(scorer, PROMPTS)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, by_hand(model, tokenizer, PROMPTS), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_longer_prompts_are_checked_anew(family: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier that goes wrong from some length on, as scaled positions may make it, is left where it does."""
    from eval.scorers.local.portable import Portable

    def wrong(found: Iterator[dict]) -> Iterator[dict]:
        for part in found:
            yield {s: {t: v + (len(s) > 60) for t, v in values.items()} for s, values in part.items()}

    for owner, name in ((FusedDecoder, "logprobs"), (Portable, "tree")):
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, w, b, right=right: wrong(right(self, w, b)))
    model = build(family, tokenizer, max_position_embeddings=512)
    scorer = TransformersScorer(model, tokenizer, "paper")
    scored(scorer, PROMPTS)
    assert scorer.tier == FAMILIES[family][0]
    long = [Prompt((Turn("human", 6 * TEXTS[3]), Turn("assistant", "I think that")), CANDIDATES), *PROMPTS]
    np.testing.assert_allclose(scored(scorer, long), by_hand(model, tokenizer, long), atol=1e-4)
    assert scorer.tier == "plain"


def test_batches_are_halved_until_they_fit_in_memory(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", tokenizer)
    right = FusedDecoder.run
    limit = 40

    def run(self: FusedDecoder, piece: Any, *rest: Any) -> Any:
        if len(piece.tokens_N) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return right(self, piece, *rest)

    expected = scored(TransformersScorer(model, tokenizer, "paper", tier="fused"), PROMPTS)
    monkeypatch.setattr(FusedDecoder, "run", run)
    scorer = TransformersScorer(model, tokenizer, "paper", batch_tokens=128, tier="fused")
    np.testing.assert_allclose(scored(scorer, PROMPTS), expected, atol=1e-5)
    assert scorer.batch_tokens == 32
    limit = 3
    with pytest.raises(InputError, match="out of memory with batches of 16 tokens"):
        scored(scorer, PROMPTS)


def test_a_shared_beginning_is_computed_once_for_all_calls(tokenizer: Any) -> None:
    scorer = TransformersScorer(build("llama", tokenizer), tokenizer, "paper", tier="fused")
    opening = "What is it? Tell me all that you know of it, and why"
    calls = [[Prompt((Turn("human", f"{opening} {word} {n}"),), ("a", "b")) for n in (1, 2, 3)] for word in "xyz"]
    ids = [{e.context for e in encode(call, tokenizer, Format("paper"))} for call in calls]
    nodes = [{c[:k] for c in contexts for k in range(1, len(c) + 1)} for contexts in ids]
    trunk = len(set.intersection(*nodes)) + 1  # the word is shared within each call
    computed = []
    for call in calls[:1] * 2:
        before = scorer.computed_tokens
        scored(scorer, call)
        computed.append(scorer.computed_tokens - before)
    assert computed[0] == len(nodes[0])
    assert computed[1] < computed[0] - trunk + 4


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 7, 50, 10_000])
def test_slices_hold_every_beginning_once(max_tokens: int, aligned: bool) -> None:
    """Each node sees exactly its ancestors, in the pool of its slice, and every sequence is read off its way."""
    rng = random.Random(0)
    sequences = list({(9, 9, *rng.choices(range(3), k=rng.randint(1, 9))) for _ in range(200)})
    block, path, seen, nodes = 4, [9], [], 0
    for piece in slices(sequences, max_tokens, block, root=1, aligned=aligned):
        pool = [*path, *piece.tokens_N.tolist()]
        assert piece.path == len(path)
        assert len(piece.tokens_N) <= max_tokens + aligned * block
        for index, way in zip(piece.sequences, piece.node_paths, strict=True):
            assert tuple(pool[k] for k in way) == sequences[index]
            seen.append(index)
            for depth, node in [(d, k - piece.path) for d, k in enumerate(way) if k >= piece.path]:
                assert piece.depth_N[node] == depth
                within = np.arange(node // block * block, len(piece.tokens_N)) + piece.path
                keys = [*piece.ancestors[node // block], *within]
                visible = [k for k in keys if k <= node + piece.path <= piece.last_P[k]]
                assert visible == list(way[: depth + 1])
        nodes += len({int(k) for way in piece.node_paths for k in way if k >= piece.path})
        path = [pool[k] for k in piece.keep]
    assert sorted(seen) == list(range(len(sequences)))
    if max_tokens == 10_000:
        assert nodes == len({s[:k] for s in sequences for k in range(2, len(s) + 1)})
