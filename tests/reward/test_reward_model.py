"""A reward model: loaded, checked, its scores and features; the head fitted on the frozen model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.errors import InputError
from reward.dialogues import Message, Pair, cut_by_turns, token_ids
from reward.head import PENALTIES, _fit, fit_head
from reward.preferences import fit_pairs
from reward.scoring import DESCRIPTION, RewardModel, batches, load_reward_model


def dialogue(*turns: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


DIALOGUES = [
    dialogue("Where is the ladder?", "In the shed."),
    dialogue("Hello", "Hello! " * 30, "And now?", "Now we rest."),
    dialogue("Which bus goes to the harbour?", "The number nine, every ten minutes."),
    dialogue("?", "!"),
]


def test_scores_are_transformers_own_and_independent_of_the_batch(tiny_reward: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward = load_reward_model(str(tiny_reward))
    model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_reward, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward)
    expected = []
    for d in DIALOGUES:
        with torch.no_grad():
            expected.append(model(torch.tensor([token_ids(tokenizer, d)])).logits.item())
    assert reward.scores(DIALOGUES) == pytest.approx(expected, abs=1e-5)
    reward.batch_tokens = 1
    assert reward.scores(DIALOGUES) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.01


def test_features_times_head_are_the_scores(tiny_reward: Path) -> None:
    reward = load_reward_model(str(tiny_reward))
    head = reward.model.score.weight.detach().double().numpy()
    features = reward.features(DIALOGUES)
    assert features.shape == (4, 32)
    assert features @ head[0] == pytest.approx(reward.scores(DIALOGUES), abs=1e-5)


def test_half_precision_scores_are_not_rounded_to_half_precision(tiny_reward: Path) -> None:
    reward = load_reward_model(str(tiny_reward), dtype="bfloat16")
    scores = reward.scores(DIALOGUES)
    assert not np.array_equal(scores, torch.tensor(scores).bfloat16().double().numpy())
    assert scores == pytest.approx(load_reward_model(str(tiny_reward), dtype="float32").scores(DIALOGUES), abs=0.1)


def test_batches_hold_every_index_once() -> None:
    lengths = [5, 100, 3, 40, 40, 7]
    found = batches(lengths, 80)
    assert sorted(i for b in found for i in b) == list(range(6))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 80 for b in found)


def test_cut_by_turns(tiny_reward: Path) -> None:
    reward = load_reward_model(str(tiny_reward))
    long = [{"role": "system", "content": "Be kind."}, *DIALOGUES[1]]
    n = len(token_ids(reward.tokenizer, long))
    assert cut_by_turns(long, reward.tokenizer, n) == long
    assert cut_by_turns(long, reward.tokenizer, n - 1) == [long[0], *long[3:]]
    assert cut_by_turns(long, reward.tokenizer, 3) is None
    reward.max_length = n - 1
    assert reward.ids(long) == token_ids(reward.tokenizer, [long[0], *long[3:]])


def test_max_length_is_the_trained_one(tiny_reward: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_reward, folder)
    assert load_reward_model(str(folder)).max_length is None
    (folder / DESCRIPTION).write_text(json.dumps({"max_length": 40}))
    assert load_reward_model(str(folder)).max_length == 40


def broken(tiny_reward: Path, folder: Path, change: str) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    shutil.copytree(tiny_reward, folder)
    if change == "two outputs":
        AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, ignore_mismatched_sizes=True
        ).save_pretrained(folder)
    elif change == "no head":
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        del weights["score.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    elif change == "NaN":
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        torch.nn.init.constant_(model.score.weight, float("nan"))
        model.save_pretrained(folder)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if change == "no template":
            tokenizer.chat_template = None
            (folder / "chat_template.jinja").unlink(missing_ok=True)
        else:
            tokenizer.add_tokens([f"<new{i}>" for i in range(9)])
            tokenizer.chat_template += "<new8>"
        tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("two outputs", "has 2 outputs, it must have one"),
        ("no head", "no weights for 1 tensors"),
        ("no template", "has no chat template"),
        ("new token", "they do not belong together"),
    ],
)
def test_models_that_do_not_fit(tiny_reward: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_reward_model(str(broken(tiny_reward, tmp_path / "model", change)))


def test_not_a_number(tiny_reward: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gives nan to 4 of 4 dialogues"):
        load_reward_model(str(broken(tiny_reward, tmp_path / "model", "NaN")))
    reward = load_reward_model(str(tiny_reward))
    torch.nn.init.constant_(reward.model.score.weight, float("nan"))
    with pytest.raises(InputError, match="gives nan to 1 of 1 dialogues"):
        reward.scores(DIALOGUES[:1])


def test_a_language_model_and_nothing(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a sequence classification model"):
        load_reward_model(str(tiny))
    with pytest.raises(InputError, match="there is no such folder"):
        load_reward_model(str(tmp_path / "nothing"))


def test_longer_than_the_context(tiny_reward: Path) -> None:
    reward = load_reward_model(str(tiny_reward))
    with pytest.raises(InputError, match="reads at most 2048"):
        reward.scores([dialogue("a b c " * 2000, "d")])


def test_the_head_is_the_logistic_regression() -> None:
    """Against scikit-learn on the pairs and their mirror images, which has the same optimum."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    x[rng.random(200) > 1 / (1 + np.exp(-x @ rng.normal(size=8)))] *= -1
    penalty = 0.05
    both, labels = np.concatenate([x, -x]), np.repeat([1, 0], 200)
    model = linear_model.LogisticRegression(C=1 / (2 * penalty * len(both)), fit_intercept=False, tol=1e-10)
    assert _fit(x, penalty) == pytest.approx(model.fit(both, labels).coef_[0], abs=1e-4)


def test_fitted_head_ranks_what_it_was_fitted_on(tiny_reward: Path) -> None:
    """Chosen answers name a fruit, rejected ones a tool: pairs with other people are ranked right."""
    reward: RewardModel = load_reward_model(str(tiny_reward))

    def pairs(names: list[str]) -> list[tuple[list[Message], list[Message]]]:
        asked = [f"What does {name} hold?" for name in names]
        return [(dialogue(q, "An apple."), dialogue(q, "The hammer.")) for q in asked]

    found = fit_head(reward, pairs([f"person {i}" for i in range(40)]), seed=0)
    assert found["penalty"] in PENALTIES
    assert found["cross_validated_accuracy"] > 0.9
    others = pairs(["the baker", "my aunt", "a sailor"])
    assert (reward.scores([a for a, _ in others]) > reward.scores([b for _, b in others])).all()


def test_a_template_that_refuses_a_dialogue(tiny_reward: Path) -> None:
    reward = load_reward_model(str(tiny_reward))
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    reward.tokenizer.chat_template = refusing + reward.tokenizer.chat_template
    assert len(reward.scores(DIALOGUES)) == 4
    system = [{"role": "system", "content": "Be kind."}, *DIALOGUES[0]]
    with pytest.raises(InputError, match="refuses a dialogue \\(no system turns\\)"):
        reward.scores([DIALOGUES[0], system])
    pair = Pair(system[:-1], system[-1:], dialogue("x", "Go away.")[-1:], "own", "file:1")
    with pytest.raises(InputError, match="refuses a dialogue \\(no system turns\\)"):
        fit_pairs([pair], reward.tokenizer, 1000)
