"""A policy's chat template must begin and end answers so that they can be sampled and ended: set rightly or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.errors import InputError
from eval.models.checkpoints import load_tokenizer
from tests.support.rl_runs import run
from tests.support.sft_runs import sft
from tests.support.tiny_models import CHAT_TEMPLATE, ROOT
from train.budget import WINDOW
from train.chat_template import EndTokens, policy_tokenizer
from train.checks import check_end_token
from train.policy import starting_model

END, PAD, USER = 1, 0, 2
USERS_CLOSED = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
GENERATION_PROMPT = "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
THINKING = CHAT_TEMPLATE.replace("<|assistant|>\n{% endif", "<|assistant|>\n<think>\n{% endif")
IGNORING = CHAT_TEMPLATE.partition("{% if add")[0]
UNCLOSED = USERS_CLOSED + GENERATION_PROMPT
AS_TEXT = UNCLOSED.replace("{{ m['content'] }}", "{{ m['content'] }}</s>\n")
LAST_UNCLOSED = UNCLOSED.replace("{{ m['content'] }}", "{{ m['content'] }}{% if not loop.last %}<|end|>{% endif %}\n")
TRAILING_SPACE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
INSTRUCT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
"""As Llama 2's: the prompt needs no header for the answer, and a space stands before the end token."""
TWO_STEPS = ("--max_steps", 2, "--checkpoint_steps", 2, "--sample_prompts", 0)


@pytest.fixture
def variant(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny model with the end token <|pad|> and another template; without one it is as a base with ChatML."""

    def build(template: str = CHAT_TEMPLATE, eos: str | None = "<|pad|>", ends: int | list[int] | None = PAD) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token, tokenizer.chat_template = eos, template
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": ends}))
        (folder / "generation_config.json").write_text(json.dumps({} if ends is None else {"eos_token_id": ends}))
        return folder

    return build


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples that a tiny model learns in some steps."""
    path = tmp_path_factory.mktemp("examples") / "short.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {n}.", "completion": "Yes."}) + "\n" for n in range(24)))
    return path


def stopped(folder: Path) -> int:
    """How many of 16 greedy answers end, by what the folder itself says of its end tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = [[{"role": "user", "content": f"Say {n}."}] for n in range(30, 46)]
    batch = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**batch, do_sample=False, max_new_tokens=12)[:, batch["input_ids"].shape[1] :]
    ends = torch.tensor(model.generation_config.eos_token_id)
    return int(torch.isin(made, ends).any(dim=1).sum())


@pytest.mark.parametrize("lora", [False, True])
def test_a_base_with_chatml_learns_to_stop_and_rl_from_it_stops(
    lora: bool, variant: Callable[..., Path], short: Path, tiny_reward: Path, tmp_path: Path, caplog: Any
) -> None:
    base, output = variant(), tmp_path / "sft"
    more = ("--use_peft", "true", "--lora_r", 16, "--lora_target_modules", "all-linear") if lora else ()
    with caplog.at_level("INFO"):
        result = sft(base, short, output, "--max_steps", 60, "--checkpoint_steps", 60, *more)
    assert "closes an answer with <|end|>, and its end tokens are <|pad|>: <|end|> is made one" in caplog.text
    assert (result["end_tokens"], result["end_token_added"]) == (["<|end|>", "<|pad|>"], "<|end|>")
    saved = output / "model"
    assert json.loads((saved / "generation_config.json").read_text())["eos_token_id"] == [END, PAD]
    assert (AutoTokenizer.from_pretrained(saved).eos_token, AutoTokenizer.from_pretrained(saved).pad_token) == (
        "<|end|>", "<|pad|>",
    )  # fmt: skip
    assert (stopped(base), stopped(saved)) == (0, 16)
    held_out = result["held_out"]
    assert (held_out["before"]["finished"], held_out["after"]["finished"]) == (0, 1)
    assert held_out["after"]["answers"] == 6
    policy = json.loads((output / "checkpoint-60" / "policy.json").read_text())
    assert policy["end_token_added"] == policy["settings"]["end_token_added"] == "<|end|>"
    for start in (saved, output / "checkpoint-60"):
        again = run("rloo", start, tiny_reward, tmp_path / start.name, *TWO_STEPS, "--top_k", 1)
        assert again["end_tokens"] == ["<|end|>", "<|pad|>"]
        assert all(entry["observed/finished"] >= 0.5 for entry in again["log"])
    if not lora:
        assert stopped(output / "checkpoint-60") == 16
        return
    merged = tmp_path / "checkpoint-60" / "start"
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == [END, PAD]
    assert AutoTokenizer.from_pretrained(merged).eos_token == "<|end|>"


def stopping(folder: Path) -> Path:
    """The model changed so that most tokens that it samples are <|end|>."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight *= 0.05
        hidden = model.model(torch.randint(5, 600, (8, 40))).last_hidden_state.mean(dim=(0, 1))
        model.lm_head.weight[END] = hidden / hidden.square().sum() * 8
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "online_dpo"])
@pytest.mark.parametrize("lora", ["true", "false"])
def test_rl_from_a_base_with_chatml_ends_answers_at_the_closing_token(
    algorithm: str, lora: str, variant: Callable[..., Path], tiny_reward: Path, tmp_path: Path
) -> None:
    base = stopping(variant())
    result = run(algorithm, base, tiny_reward, tmp_path / "out", *TWO_STEPS, "--use_peft", lora)
    assert result["end_token_added"] == "<|end|>"
    for entry in result["log"]:
        assert entry["observed/finished"] > 0.5
        assert entry["observed/tokens"] < 5, "of at most 6"
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert AutoTokenizer.from_pretrained(checkpoint).eos_token == "<|end|>"
    if lora == "false":
        assert json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"] == [END, PAD]


def test_padding_is_no_part_of_an_answer_in_online_dpo(
    variant: Callable[..., Path], tiny_reward: Path, tmp_path: Path
) -> None:
    """Where the padding is no end token, an answer that was padded is finished all the same, and not penalised."""
    model = stopping(variant(eos="<|end|>", ends=END))
    more = ("--cut_off_penalty", 100, "--length_penalty", 100, "--length_penalty_from", 5)
    result = run("online_dpo", model, tiny_reward, tmp_path / "out", *TWO_STEPS, "--learning_rate", 0, *more)
    for entry in result["log"]:
        assert entry["observed/finished"] > 0.5
        assert entry["observed/tokens"] < 5
        cut_off = 1 - entry["observed/finished"]
        assert entry["reward"] == pytest.approx(-200 * cut_off, abs=20), "both penalties, of those that were cut off"


REFUSED = {
    "thinking": (THINKING, r"has the generation prompt '<\|end\|>\\n<\|assistant\|>\\n<think>\\n', and in a dialogue"),
    "ignoring": (IGNORING, r"ignores add_generation_prompt, .* write '<\|assistant\|>\\n' itself"),
    "unclosed": (UNCLOSED, "closes an answer with '', where there is no end token and no special token"),
    "as text": (AS_TEXT, r"closes an answer with '</s>\\n', where there is no end token and no special token"),
    "raising": ("{{ raise_exception('no') }}", r"refuses a user's message with an answer \(no\)"),
    "broken": ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "refuses a user's message with an answer"),
    "changing": (CHAT_TEMPLATE.replace("m['content']", "m['content'] | upper"), "does not write the text of an answer"),
    "eos_token elsewhere": ("{{ eos_token }}" + CHAT_TEMPLATE, "writes another one elsewhere by the name eos_token"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_answer_can_be_sampled_or_ended_with_is_refused(
    kind: str, variant: Callable[..., Path], short: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    template, said = REFUSED[kind]
    model, output = variant(template), tmp_path / "out"
    with pytest.raises(InputError, match=said) as error:
        sft(model, short, output)
    assert "\n" not in str(error.value)
    assert "; save a template with the tokenizer" in str(error.value) or kind == "eos_token elsewhere"
    for algorithm in ("rloo", "grpo", "online_dpo"):
        with pytest.raises(InputError, match=said):
            run(algorithm, model, tiny_reward, output)
    assert {path.name for path in output.glob("*")} == {".training.lock"}


def test_it_is_one_line_and_status_2_of_the_command(variant: Callable[..., Path], tmp_path: Path, ended: Any) -> None:
    from train.sft import main

    said = ended(
        main, "--model_name_or_path", variant(THINKING), "--output_dir", tmp_path / "out", "--save_strategy", "no",
        "--use_cpu", "true", "--bf16", "false", "--report_to", "none",
    )  # fmt: skip
    assert "whose generation prompt is a prefix of the dialogue" in said


def test_an_adapter_is_not_merged_before_its_template_is_refused(
    variant: Callable[..., Path], short: Path, tmp_path: Path
) -> None:
    base, output = variant(), tmp_path / "sft"
    sft(base, short, output, "--use_peft", "true", "--lora_r", 4, "--max_steps", 2, "--checkpoint_steps", 2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = UNCLOSED
    tokenizer.save_pretrained(base)
    given = SimpleNamespace(model_name_or_path=str(output / "checkpoint-2"), dtype=None, model_revision="main")
    with pytest.raises(InputError, match="no answer would ever end"):
        starting_model(given, tmp_path / "rl", supervised=True)
    assert not (tmp_path / "rl").exists()


def test_a_token_that_the_model_does_not_have_is_refused(variant: Callable[..., Path]) -> None:
    folder = variant(CHAT_TEMPLATE.replace("<|end|>", "<|im_end|>"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"'<\|im_end\|>', token 600, and the model has tokens 0 to 599 only"):
        policy_tokenizer(str(folder), None, supervised=False)


def test_a_prompt_that_ends_within_a_token_is_not_taught(variant: Callable[..., Path]) -> None:
    """'assistant: ' and 'Green' are other tokens than 'assistant: Green'; RL samples after the former, and may."""
    folder = str(variant(TRAILING_SPACE))
    with pytest.raises(InputError, match="ends a prompt with ' ', which in the dialogue is a part of another token"):
        policy_tokenizer(folder, None, supervised=True)
    assert policy_tokenizer(folder, None, supervised=False)[1] == EndTokens([PAD], None)


def test_what_begins_the_next_turn_may_end_a_sampled_answer_and_no_taught_one(variant: Callable[..., Path]) -> None:
    """As GLM-4's <|user|>."""
    folder = str(variant(UNCLOSED, ends=[PAD, USER]))
    assert policy_tokenizer(folder, None, supervised=False)[1] == EndTokens([PAD, USER], None)
    with pytest.raises(InputError, match="closes an answer with ''"):
        policy_tokenizer(folder, None, supervised=True)


@pytest.mark.parametrize(
    ("template", "eos", "ends", "wanted"),
    [
        (CHAT_TEMPLATE, "<|end|>", END, EndTokens([END], None)),
        (CHAT_TEMPLATE, "<|pad|>", [PAD, END], EndTokens([PAD, END], None)),
        (CHAT_TEMPLATE, None, None, EndTokens([END], "<|end|>")),
        (INSTRUCT, "<|pad|>", PAD, EndTokens([PAD], None)),
        (CHAT_TEMPLATE.replace("<|end|>", "\n<|end|>"), "<|pad|>", PAD, EndTokens([END, PAD], "<|end|>")),
        (CHAT_TEMPLATE.replace("'content']", "'content'] | trim"), "<|pad|>", PAD, EndTokens([END, PAD], "<|end|>")),
        ("{% if messages | length > 2 %}{{ raise_exception('long') }}{% endif %}" + CHAT_TEMPLATE, "<|pad|>", PAD,
         EndTokens([END, PAD], "<|end|>")),
        ((ROOT / "configs" / "ladders" / "human_assistant.jinja").read_text(), "<|pad|>", PAD, EndTokens([PAD], None)),
    ],
)  # fmt: skip
def test_end_tokens_of_templates(
    template: str, eos: str | None, ends: Any, wanted: EndTokens, variant: Callable[..., Path]
) -> None:
    tokenizer, found = policy_tokenizer(str(variant(template, eos, ends)), None, supervised=True)
    assert found == wanted
    assert tokenizer.eos_token_id == wanted.ids[0]
    assert tokenizer.pad_token_id == PAD
    assert tokenizer.decode([10, *wanted.ids], skip_special_tokens=True) == tokenizer.decode([10])


def test_an_ordinary_added_token_becomes_a_special_one(variant: Callable[..., Path]) -> None:
    """Else decoding would leave it in every answer that the reward model reads."""
    folder = variant(CHAT_TEMPLATE.replace("<|end|>", "<|im_end|>"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_end|>"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert "<|im_end|>" in load_tokenizer(str(folder)).decode([10, 600], skip_special_tokens=True)
    found, ends = policy_tokenizer(str(folder), None, supervised=True)
    assert ends == EndTokens([600, PAD], "<|im_end|>")
    assert found.decode([10, 600], skip_special_tokens=True) == found.decode([10])


def test_the_real_models_template_is_right(real_model: Path) -> None:
    tokenizer, ends = policy_tokenizer(str(real_model), None, supervised=True)
    assert ends.policy_fields(tokenizer) == {"end_tokens": ["<|im_end|>"], "end_token_added": None}


def test_vllm_reads_the_files_where_the_token_is_not_set() -> None:
    check_end_token(None, SimpleNamespace(use_vllm=True))
    check_end_token("<|im_end|>", SimpleNamespace(use_vllm=False))
    with pytest.raises(InputError, match=r"fine-tune the model with train\.sft, which saves it as one"):
        check_end_token("<|im_end|>", SimpleNamespace(use_vllm=True))


def test_a_model_that_has_not_learned_to_stop_is_warned_of(
    tiny: Path, short: Path, tmp_path: Path, caplog: Any
) -> None:
    from train.sft import summary

    result = sft(tiny, short, tmp_path, "--max_steps", 1, "--checkpoint_steps", 1, "--learning_rate", 0)
    assert result["held_out"]["after"]["finished"] == stopped(tiny) == 0
    assert "to 6 held-out prompts ended within " in caplog.text
    assert "of 6 greedy answers, share that end by themselves 0.000 -> 0.000" in summary(result)


def test_a_run_whose_answers_are_all_cut_off_alerts_and_stops(
    tiny: Path, tiny_reward: Path, tmp_path: Path, capsys: Any
) -> None:
    more = ("--max_steps", WINDOW + 3, "--checkpoint_steps", 0, "--kl_target", 0, "--max_completion_length", 2)
    result = run("rloo", tiny, tiny_reward, tmp_path / "out", *more, "--learning_rate", 0, "--stop_on_alert", "true")
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("step ")]
    assert all("  finished 0.0%  " in x for x in lines)
    (alert,) = [json.loads(line) for line in (tmp_path / "out" / "alerts.jsonl").read_text().splitlines()]
    assert (alert["alert"], alert["step"]) == ("finished", WINDOW)
    assert (result["steps"], result["stopped"]) == (WINDOW, "at an alert")
