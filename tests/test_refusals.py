"""What the trainers refuse in one line, each for a reason that would otherwise be met late or never."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from eval.config import InputError
from tests.sft_runs import sft
from tests.test_resume import Killed, run
from tests.test_reward_train import trained


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


def test_a_range_of_rewards_has_two_ends(tiny: Path, tiny_reward: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reward_clip_range must be two numbers, low < high, not '1'"):
        run("rloo", tiny, tiny_reward, tmp_path, "--reward_clip_range", 1)
