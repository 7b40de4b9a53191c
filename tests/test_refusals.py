"""What the trainers refuse in one line, each for a reason that would otherwise be met late or never."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from trl import SFTConfig

from eval.config import InputError
from reward.stage import Stage, built, check_batches, settings_of
from tests.sft_runs import sft
from tests.test_resume import Killed, run
from tests.test_reward_train import trained
from train.checks import check_prompts
from train.grpo import WORDS
from train.policy import make_room
from train.sft import SFTArguments


@pytest.mark.parametrize("module", ["train.online", "train.sft", "reward.train"])
def test_a_second_training_in_the_same_folder(
    module: str, tiny: Path, tiny_reward: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """While the first is at work; after its end, by a kill too, the folder is free."""

    def start() -> Any:
        if module == "train.sft":
            return sft(tiny, examples, tmp_path)
        return (
            run("rloo", tiny, tiny_reward, tmp_path)
            if module == "train.online"
            else trained(tiny, tmp_path, "--head", "random")
        )

    def first(*_: Any) -> None:
        monkeypatch.setattr(sys.modules[module], "_trainer", lambda *_: pytest.fail("both at work"))
        with pytest.raises(InputError, match=f"another training is at work in {tmp_path}; wait for its end or choose"):
            start()
        raise Killed

    def free(*_: Any) -> None:
        raise ValueError("at work again")

    monkeypatch.setattr(f"{module}._trainer", first)
    with pytest.raises(Killed):
        start()
    monkeypatch.setattr(f"{module}._trainer", free)
    with pytest.raises(InputError, match="at work again"):
        start()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--adam_beta1", 1.5), "cannot be made with these options: Invalid beta parameter"),
        (("--adam_epsilon", -1), "cannot be made with these options: Invalid epsilon value"),
        (("--dataloader_num_workers", -1), "cannot be made with these options: num_workers option should be"),
        (("--dataloader_persistent_workers", "true"), "cannot be made with these options: persistent_workers option"),
        (
            ("--model_init_kwargs", '{"foo": 1}'),
            "cannot be made with these options: .* unexpected keyword argument 'foo'",
        ),
        (
            ("--use_peft", "true", "--lora_task_type", "foo"),
            "LoRA cannot be made with these options: Invalid task type",
        ),
        (("--max_grad_norm", "nan"), "max_grad_norm must be finite, not nan"),
        (("--lr_scheduler_kwargs", '{"num_decay_steps": NaN}'), "lr_scheduler_kwargs must be finite, not"),
        (("--max_steps", -1, "--num_train_epochs", 0), "num_train_epochs must be a number above 0, not 0.0"),
        (("--max_steps", -1, "--num_train_epochs", "inf"), "num_train_epochs must be a number above 0, not inf"),
    ],
)
def test_what_the_training_would_end_in(
    more: tuple[object, ...], said: str, tiny: Path, examples: Path, tmp_path: Path
) -> None:
    """An error of torch's or json's after the settings were written, so that the corrected command was refused."""
    with pytest.raises(InputError, match=said):
        sft(tiny, examples, tmp_path, *more)
    assert not (tmp_path / "settings.json").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--use_peft", "true"), "lora_task_type must be SEQ_CLS for a reward model, not CAUSAL_LM"),
        (("--chat_template_path", "x"), "chat_template_path must be left out; save the tokenizer as it shall be"),
        (("--eos_token", "<|pad|>"), "eos_token must be left out; save the tokenizer as it shall be"),
        (("--attn_implementation", "foo"), "cannot be loaded with a reward head: .*foo"),
        (("--model_init_kwargs", '{"foo": 1}'), "cannot be loaded with model_init_kwargs: .* argument 'foo'"),
        (
            ("--dataloader_drop_last", "true", "--per_device_train_batch_size", 999),
            "drop_last leaves no batch: 108 rows",
        ),
    ],
)
def test_reward_models(more: tuple[object, ...], said: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        trained(tiny, tmp_path, *more)
    assert not (tmp_path / "settings.json").exists()


def test_fewer_rows_than_a_batch(tiny: Path, examples: Path, tmp_path: Path) -> None:
    more = ("--dataloader_drop_last", "true", "--per_device_train_batch_size")
    with pytest.raises(InputError, match="leaves no batch: 36 rows to train on are fewer than a batch of 37"):
        sft(tiny, examples, tmp_path, *more, 37)
    check_batches(36, SimpleNamespace(dataloader_drop_last=True, per_device_train_batch_size=18, world_size=2))
    with pytest.raises(InputError, match="36 rows to train on are fewer than a batch of 38"):
        check_batches(36, SimpleNamespace(dataloader_drop_last=True, per_device_train_batch_size=19, world_size=2))
    check_batches(36, SimpleNamespace(dataloader_drop_last=False, per_device_train_batch_size=99, world_size=1))


def test_fewer_prompts_than_are_answered_at_once(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    """TRL ends such a training before its first step, which looked like one that an alert had stopped."""
    more = ("--max_steps", 1, "--checkpoint_steps", 1, "--sample_prompts", 0, "--per_device_train_batch_size")
    said = (
        r"prompts are left to train on, and 512 are answered at once \(generation_batch_size 1024 / num_generations 2\)"
    )
    with pytest.raises(InputError, match=said):
        run("rloo", tiny, tiny_reward, tmp_path, *more, 1024)
    for prompts, at_once in ((3, 4), (4, 4)):
        config = SimpleNamespace(generation_batch_size=2 * at_once, num_generations=2)
        with pytest.raises(InputError) if prompts < at_once else nullcontext():
            check_prompts(prompts, config)


@pytest.mark.parametrize("name", WORDS)
def test_words_of_grpo(name: str, tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name} must be .*{WORDS[name][-1]}, not 'foo'"):
        run("grpo", tiny, tiny_reward, tmp_path, f"--{name}", "foo")


@pytest.mark.parametrize("own", ["params", "model", "optimizer_dict"])
def test_an_optimizer_of_the_whole_model_is_not_tried_on_one_parameter(own: str, tmp_path: Path) -> None:
    """GaLore's, LOMO's and the layerwise ones: transformers gives them what they are made of."""
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = SimpleNamespace(args=args, model=None)
    trainer.get_optimizer_cls_and_kwargs = lambda *_: (torch.optim.SGD, {"lr": 0.1, own: []})
    assert built(lambda: trainer) is trainer


@pytest.mark.parametrize(
    ("found", "now", "said"),
    [
        ({"seed": 0}, {"seed": 0, "option": 2}, "was started with option = None, now it is 2"),
        ({"seed": 0, "option": 2}, {"seed": 0}, "was started with option = 2, now it is None"),
    ],
)
def test_a_setting_that_only_one_of_two_versions_has(
    found: dict[str, Any], now: dict[str, Any], said: str, tmp_path: Path
) -> None:
    Stage(tmp_path, "r.json", found).record()
    with pytest.raises(InputError, match=said):
        Stage(tmp_path, "r.json", now).begin()
    assert Stage(tmp_path, "r.json", found).begin() is None


def test_a_package_that_the_first_step_needs(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.is_liger_kernel_available", lambda: False)
    with pytest.raises(InputError, match="use_liger_kernel needs the package liger-kernel, which is not there"):
        sft(tiny, examples, tmp_path, "--use_liger_kernel", "true")


def test_a_range_of_rewards_cannot_be_given(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    """Of '10' the parser makes the pair of texts '1' and '0'."""
    with pytest.raises(InputError, match="reward_clip_range must be left out, not '10'"):
        run("rloo", tiny, tiny_reward, tmp_path, "--reward_clip_range", 10)


@pytest.mark.parametrize(
    ("use_peft", "kept", "merged", "needed"),
    [
        (True, "last", False, 3 * (32 + 100) + 200),
        (True, "all", False, 3 * (32 + 100) + 3 * 200),
        (False, "last", False, 3 * (32 + 1000) + 2000),
        (False, "all", True, 3 * (32 + 1000) + 3 * 2000 + 1000),
    ],
)
def test_the_room_for_three_checkpoints_of_a_model_of_1000_mib(
    use_peft: bool, kept: str, merged: bool, needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter of a tenth, an optimizer's state of twice what is trained; one MiB less is refused."""
    sizes = {("model", "main", "bfloat16"): 1000.0}
    monkeypatch.setattr("train.policy.weights_mib", lambda *asked: sizes[asked])
    options: Any = SimpleNamespace(keep_optimizer_states=kept)
    model = SimpleNamespace(use_peft=use_peft, model_revision="main", dtype="bfloat16")
    for free in (needed, needed - 1):
        room = shutil._ntuple_diskusage(2**50, 2**50, free * 2**20)  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setattr("eval.config.shutil.disk_usage", lambda _, room=room: room)
        with nullcontext() if free == needed else pytest.raises(InputError, match=f"the run needs about {needed};"):
            make_room(tmp_path, [0, 50, 100], options, model, "model", merged)


def test_what_may_differ_between_two_starts_and_what_is_not_written(tmp_path: Path) -> None:
    def settings(rate: float, more: dict[str, Any], **ours: Any) -> dict[str, Any]:
        config = SFTConfig(output_dir=str(tmp_path), learning_rate=rate, use_cpu=True, bf16=False, **more)
        return settings_of(config, SFTArguments(**ours))

    one = settings(0.1, {"report_to": "none", "hub_token": "hf_secret", "disable_tqdm": True})
    other = settings(
        0.1, {"report_to": "wandb", "run_name": "again", "disable_tqdm": False},
        evaluation="eval.yaml", evaluate="watch", keep_optimizer_states="all",
    )  # fmt: skip
    assert one == other != settings(0.2, {"report_to": "none"})
    assert "hf_secret" not in json.dumps(one)
