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
