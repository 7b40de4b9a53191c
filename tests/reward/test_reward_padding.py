"""Rewards are read at the last token of each dialogue, whatever its model and its tokenizer pad with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eval.errors import InputError
from reward.dialogues import Message, token_ids
from reward.functions import RewardOptions, build_rewards, check_rewards
from reward.padding import set_pad_token, unused_token
from reward.probe import ProbeConfig, probe
from reward.rank import ScoreConfig, score
from reward.scoring import DESCRIPTION, load_reward_model
from tests.support.reward_training import LORA, trained
from tests.support.rl_runs import rloo

CLOSED = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Ends with <|end|>, token 1, the tokenizer's end token; <|pad|> is token 0, <|user|> token 2; there are 600."""
ANSWERS = ["In a box.", "Wrap it in a cloth, " * 9, "No.", "Freeze what you do not eat today, in slices."]
PROMPT = "How do I keep bread fresh?"
DIALOGUES: list[list[Message]] = [
    [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}] for answer in ANSWERS
]
KINDS: dict[str, tuple[int | None, str | None, str]] = {
    "none": (None, "<|pad|>", "right"),
    "none, and the tokenizer pads with what closes": (None, "<|end|>", "right"),
    "none, nor has the tokenizer one": (None, None, "right"),
    "another than the tokenizer's, which closes": (0, "<|end|>", "right"),
    "another than the tokenizer's, within dialogues": (2, "<|pad|>", "right"),
    "what closes": (1, "<|end|>", "left"),
    "what closes, and not the tokenizer's": (1, "<|pad|>", "right"),
    "outside the vocabulary": (700, "<|pad|>", "right"),
    "below the vocabulary": (-1, "<|end|>", "left"),
    "the tokenizer's is outside the vocabulary": (600, "<|new|>", "left"),
}
"""config.pad_token_id, the tokenizer's padding token and side."""


def foreign(reward: Path, folder: Path, kind: str) -> Path:
    """The reward model as somebody else saved it, with a template that nothing follows the end token in."""
    from transformers import AutoTokenizer

    pad, token, side = KINDS[kind]
    shutil.copytree(reward, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.padding_side = CLOSED, side
    tokenizer.pad_token = None
    if token is not None:
        tokenizer.add_special_tokens({"pad_token": token})
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
    return folder


def last_token_scores(folder: Path, dialogues: Sequence[list[Message]], **options: Any) -> np.ndarray:
    """The head on the last hidden state of each dialogue alone: nothing here knows of padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, pad_token_id=None, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        hidden = [model.model(torch.tensor([token_ids(tokenizer, d)])).last_hidden_state[0, -1] for d in dialogues]
        return np.array([model.score.float()(h.float()).item() for h in hidden])


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_token_is_read_whatever_pads(tiny_reward: Path, tmp_path: Path, kind: str) -> None:
    folder = foreign(tiny_reward, tmp_path / "model", kind)
    expected = last_token_scores(folder, DIALOGUES)
    reward = load_reward_model(str(folder))
    found = reward.scores(DIALOGUES)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found.argsort().tolist() == expected.argsort().tolist()
    assert np.concatenate([reward.scores([d]) for d in DIALOGUES]) == pytest.approx(expected, abs=1e-5)
    head = reward.model.score.weight.detach().double().numpy()
    assert reward.features(DIALOGUES) @ head[0] == pytest.approx(expected, abs=1e-5)
    early = last_token_scores(folder, [d[:1] for d in DIALOGUES])
    assert np.ptp(expected) > 0.1 and np.abs(early - expected).min() > 0.01, "other tokens have other rewards"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind][0] in (None, 0, 2, -1)])
def test_that_is_what_plain_transformers_gives_one_dialogue(tiny_reward: Path, tmp_path: Path, kind: str) -> None:
    """The model as it was saved, where its own padding token does not end dialogues."""
    from transformers import AutoModelForSequenceClassification

    folder = foreign(tiny_reward, tmp_path / "model", kind)
    reward = load_reward_model(str(folder))
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        expected = [model(torch.tensor([reward.ids(d)])).logits.item() for d in DIALOGUES]
    assert reward.scores(DIALOGUES) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["none, and the tokenizer pads with what closes", "what closes"])
def test_in_half_precision(tiny_reward: Path, tmp_path: Path, kind: str) -> None:
    folder = foreign(tiny_reward, tmp_path / "model", kind)
    expected = last_token_scores(folder, DIALOGUES, dtype=torch.bfloat16)
    found = load_reward_model(str(folder), dtype="bfloat16").scores(DIALOGUES)
    assert found == pytest.approx(expected, abs=0.05)
    assert found == pytest.approx(last_token_scores(folder, DIALOGUES), abs=0.1)


def test_every_command_reads_alike(tiny: Path, tiny_reward: Path, tiny_judge: Path, tmp_path: Path) -> None:
    """reward score, reward probe, a reward in RL and a judge of it."""
    kind = "none, and the tokenizer pads with what closes"
    folder, judge = foreign(tiny_reward, tmp_path / "rm", kind), foreign(tiny_judge, tmp_path / "judge", kind)
    expected = last_token_scores(folder, DIALOGUES)
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"prompt": PROMPT, "answers": ANSWERS}) + "\n")
    score(ScoreConfig(str(folder), str(answers), str(tmp_path / "ranks.jsonl")))
    ranked = json.loads((tmp_path / "ranks.jsonl").read_text())["answers"]
    assert [a["index"] for a in ranked] == np.argsort(-expected).tolist()
    assert [a["reward"] for a in ranked] == pytest.approx(-np.sort(-expected), abs=1e-5)

    probe(ProbeConfig(str(folder), dimensions=["Age"], output=str(tmp_path / "probe")))
    rows = [json.loads(line) for line in (tmp_path / "probe" / "scores.jsonl").read_text().splitlines()]
    dialogues = [r["dialogue"] for r in rows]
    assert [r["score"] for r in rows] == pytest.approx(last_token_scores(folder, dialogues), abs=1e-5)

    config = SimpleNamespace(reward_weights=None, max_completion_length=20, mask_truncated_completions=False)
    learned = build_rewards(check_rewards(RewardOptions([str(folder)]), config), "cpu", [1]).functions[0].function  # pyright: ignore[reportFunctionMemberAccess]
    assert learned([d[:1] for d in DIALOGUES], [d[1:] for d in DIALOGUES]) == pytest.approx(expected, abs=1e-5)

    more = ("--judges", judge, "--sample_prompts", 3, "--max_steps", 1, "--checkpoint_steps", 0, 1)
    rloo(tiny, folder, tmp_path / "run", *more)
    (path, *_) = sorted((tmp_path / "run" / "samples").glob("*.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    dialogues = [[*r["prompt"], {"role": "assistant", "content": r["answer"]}] for r in rows]
    for part, model in (("rewards", folder), ("judges", judge)):
        given = [value for r in rows for value in r[part].values()]
        assert given == pytest.approx(last_token_scores(model, dialogues), abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mistral", "opt", "bert"])
def test_families_give_what_they_give_one_dialogue(tiny_reward: Path, tmp_path: Path, family: str) -> None:
    """Absolute positions, a window shorter than the padding, and an encoder that reads its first token."""
    import transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    small = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1,
             "max_position_embeddings": 1024, "initializer_range": 0.2, "pad_token_id": None}  # fmt: skip
    own = {"mistral": {"sliding_window": 8, "num_key_value_heads": 2}, "bert": {"pad_token_id": 0},
           "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}}  # fmt: skip
    names = {"gpt2": "GPT2", "gpt_neox": "GPTNeoX", "mistral": "Mistral", "opt": "OPT", "bert": "Bert"}
    torch.manual_seed(0)
    made = getattr(transformers, f"{names[family]}Config")(**{**small, **own.get(family, {})})
    AutoModelForSequenceClassification.from_config(made).save_pretrained(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward)
    tokenizer.chat_template, tokenizer.pad_token = CLOSED, "<|end|>"
    tokenizer.save_pretrained(tmp_path / "rm")
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    with torch.inference_mode():
        expected = [model(torch.tensor([token_ids(tokenizer, d)])).logits.item() for d in DIALOGUES]
    assert load_reward_model(str(tmp_path / "rm")).scores(DIALOGUES) == pytest.approx(expected, abs=1e-4)


LAST_COLUMN = """
from transformers import LlamaForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput


class LastColumnForSequenceClassification(LlamaForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, **more):
        hidden = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.score(hidden[:, -1]))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_class_that_reads_padding_is_refused(
    tiny_reward: Path, tmp_path: Path, ended: Callable[..., str], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right for one dialogue, wrong in a batch."""
    from reward.__main__ import main

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    shutil.copytree(tiny_reward, folder)
    (folder / "lastcolumn.py").write_text(LAST_COLUMN)
    name = "LastColumnForSequenceClassification"
    own = {"architectures": [name], "auto_map": {"AutoModelForSequenceClassification": f"lastcolumn.{name}"}}
    config = json.loads((folder / "config.json").read_text()) | own
    (folder / "config.json").write_text(json.dumps(config))
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"prompt": PROMPT, "answers": ANSWERS}) + "\n")
    more = ("--answers", answers, "--output", tmp_path / "o.jsonl", "--trust_remote_code", "true", "--dtype", dtype)
    line = ended(main, "score", "--model", folder, *more)
    assert "(LastColumnForSequenceClassification) gives a dialogue" in line and "does not read the last token" in line
    assert not (tmp_path / "o.jsonl").exists()


def test_a_padding_token_that_closes_is_warned_of_and_refused_where_it_was_trained_with(
    tiny_reward: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = foreign(tiny_reward, tmp_path / "model", "what closes")
    load_reward_model(str(folder))
    assert "pads with '<|end|>', which also ends its dialogues" in caplog.text
    (folder / DESCRIPTION).write_text(json.dumps({"max_length": 512}))
    with pytest.raises(InputError, match="trained by an earlier version on the token before"):
        load_reward_model(str(folder))


def test_an_unused_token() -> None:
    assert unused_token([[0, 1], [3]], 5) == 2
    assert unused_token([[0, 1], [3]], 5, (None, 1, 7, -1, 4)) == 4
    assert unused_token([[0, 1], [2]], 3) is None


def test_dialogues_with_every_token_of_the_vocabulary(tiny_reward: Path) -> None:
    """No token is left to pad with: each is read alone."""
    reward = load_reward_model(str(tiny_reward))
    ids = [list(range(300)), list(range(200, 600)), list(range(599, -1, -1))]
    alone = np.concatenate([reward.batched_scores([one]) for one in ids])
    assert reward.batched_scores(ids) == pytest.approx(alone, abs=1e-6)


def closed_base(tiny: Path, folder: Path, pad: str | None) -> Path:
    """A language model whose template nothing follows the end token in."""
    from transformers import AutoTokenizer

    shutil.copytree(tiny, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.pad_token = CLOSED, pad
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pad", [None, "<|end|>", "<|pad|>"])
@pytest.mark.parametrize("more", [("--head", "random"), LORA])
def test_trained_where_it_is_read_by_us_and_by_transformers(
    tiny: Path, tmp_path: Path, pad: str | None, more: tuple[object, ...]
) -> None:
    """The saved model by plain transformers, one dialogue at a time and padded by its own tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base, output = closed_base(tiny, tmp_path / "base", pad), tmp_path / "run"
    trained(base, output, *more, "--max_pairs", 24)
    expected = last_token_scores(output / "model", DIALOGUES)
    assert load_reward_model(str(output / "model")).scores(DIALOGUES) == pytest.approx(expected, abs=1e-5)
    model: Any = AutoModelForSequenceClassification.from_pretrained(output / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(output / "model")
    ids = [token_ids(tokenizer, d) for d in DIALOGUES]
    padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.inference_mode():
        assert [model(torch.tensor([one])).logits.item() for one in ids] == pytest.approx(expected, abs=1e-5)
        assert model(**padded).logits[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.padding_side == "right", "no position of a token is moved"


def test_the_loss_in_training_is_of_the_last_token(tiny: Path, tmp_path: Path) -> None:
    """What TRL's trainer is given in a batch, by the model as it configures it."""
    from datasets import Dataset
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    base = closed_base(tiny, tmp_path / "base", None)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    options: Any = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, "disable_dropout": True}
    config = RewardConfig(output_dir=str(tmp_path / "run"), **options)
    set_pad_token(tokenizer, AutoConfig.from_pretrained(base), "base")
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=1)
    row = {"prompt": DIALOGUES[0][:1], "chosen": DIALOGUES[0][1:], "rejected": DIALOGUES[1][1:]}
    trainer: Any = RewardTrainer(
        model=model, args=config, train_dataset=Dataset.from_list([row]), processing_class=tokenizer
    )
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with torch.no_grad():
        trained_on = model(**{k: v.to(model.device) for k, v in batch.items()}).logits[:, 0].tolist()
        hidden = [model.model(torch.tensor([token_ids(tokenizer, d)])).last_hidden_state[0, -1] for d in DIALOGUES[:2]]
        assert trained_on == pytest.approx([model.score(h).item() for h in hidden], abs=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--pad_token", "<|end|>"), "pad_token '<|end|>' ends every dialogue"),
        (("--pad_token", "<|nothing|>"), "pad_token '<|nothing|>' is not in the vocabulary"),
    ],
)
def test_a_padding_token_to_train_with_that_cannot_be(
    tiny: Path, tmp_path: Path, more: tuple[object, ...], said: str
) -> None:
    base = closed_base(tiny, tmp_path / "base", None)
    with pytest.raises(InputError) as refused:
        trained(base, tmp_path / "run", *more)
    assert said in str(refused.value)
    assert not (tmp_path / "run" / "settings.json").exists()


def test_no_other_special_token_to_train_with(tiny: Path, tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a b c"], vocab_size=300, special_tokens=["<|end|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<|end|>", eos_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    shutil.copytree(tiny, tmp_path / "base", ignore=shutil.ignore_patterns("tok*", "chat*", "special*"))
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"ends its dialogues, and has no other special token.*add a pad_token"):
        trained(tmp_path / "base", tmp_path / "run")


def test_an_answer_that_ends_with_the_padding_token_is_refused(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = closed_base(tiny, tmp_path / "base", "<|pad|>")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(base)
    rows = [{"prompt": f"Where is {i}?", "chosen": "Here.", "rejected": f"No {i}.<|pad|>"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(InputError, match="ends with the padding token"):
        trained(base, tmp_path / "run", "--preferences", tmp_path / "pairs.jsonl")


def test_ranks_that_an_earlier_version_began_are_not_gone_on_with(tiny_reward: Path, tmp_path: Path) -> None:
    """Where it read another token."""
    folder = foreign(tiny_reward, tmp_path / "rm", "none, and the tokenizer pads with what closes")
    answers, output = tmp_path / "answers.jsonl", tmp_path / "ranks.jsonl"
    answers.write_text(json.dumps({"prompt": PROMPT, "answers": ANSWERS}) + "\n")
    score(ScoreConfig(str(folder), str(answers), str(output)))
    sidecar = tmp_path / "ranks.provenance.json"
    recorded = json.loads(sidecar.read_text())
    assert recorded.pop("read_at") == "last token"
    sidecar.write_text(json.dumps(recorded))
    with pytest.raises(InputError, match="made with another read_at"):
        score(ScoreConfig(str(folder), str(answers), str(output)))
