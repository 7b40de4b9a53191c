"""Every shipped configuration of RL runs for two steps, with tiny models in place of those that it names."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from eval.cli.parser import parse
from tests.support.tiny_models import ROOT

CONFIGS = [p for name in ("rloo", "grpo", "online_dpo") for p in sorted((ROOT / "configs" / name).glob("*.yaml"))]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_two_steps(config: Path, tiny: Path, tiny_reward: Path, tiny_judge: Path, tmp_path: Path) -> None:
    from trl import ModelConfig

    from train.arguments import PolicyArguments

    (tmp_path / "eval.yaml").write_text("limit: 4\ncategories: [Age]\ncot_limit: 4\ncot_max_new_tokens: 2\n")
    module = importlib.import_module(f"train.{config.parent.name}")
    changes = {
        "model_name_or_path": tiny, "reward_model": tiny_reward, "judges": tiny_judge, "output_dir": tmp_path / "out",
        "evaluation": tmp_path / "eval.yaml", "max_steps": 2, "checkpoint_steps": "0 2", "lora_top_layers": 1,
        "max_prompt_tokens": 1000, "prompt_share": "0 1", "report_to": "none", "use_cpu": "true",
        "disable_tqdm": "true",
    }  # fmt: skip
    more = [part for k, v in changes.items() for part in (f"--{k}", *str(v).split())]
    argv = ["--config", str(config), *more]
    result = module.train(*parse([PolicyArguments, module.ALGORITHM.config, ModelConfig], argv, "test"))
    assert result["steps"] == 2
    assert result["samples_per_step"] == 16
    assert [entry["samples"] for entry in result["log"]] == [16, 32]
    assert [entry["prompts"] for entry in result["log"]] == [n * result["prompts_per_step"] for n in (1, 2)]
    assert (tmp_path / "out" / "eval" / "step-000002" / "summary.json").is_file()
    assert result["samples"][-1]["change"]["judges/judge"][0] is not None
