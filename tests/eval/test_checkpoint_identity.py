"""What identifies a checkpoint is its content: the same in every process, wherever it lies, whoever saved it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.models.checkpoints import adapter_id

ROOT = Path(__file__).parents[2]

SAVE = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from eval.models.checkpoints import adapter_id, check_model, config_sha256

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
torch.manual_seed(0)
names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
get_peft_model(model, LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM")).save_pretrained(sys.argv[2])
model.config.extra = {"names": set(names)}
print(adapter_id(sys.argv[2]), config_sha256(model.config))
"""


def saved(model: Path, folder: Path, hash_seed: int) -> tuple[str, str]:
    """The identities of an adapter, and of a configuration with a set in it, that a process of its own saves."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", SAVE, str(model), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    adapter, config = done.stdout.split()[-2:]
    return adapter, config


@pytest.fixture(scope="module")
def processes(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[str, str]]:
    """{folder: identities} of the same adapter, saved by two processes with different hash seeds."""
    folder = tmp_path_factory.mktemp("saved")
    return {folder / str(seed): saved(tiny, folder / str(seed), seed) for seed in (1, 2)}


def test_an_adapter_saved_by_another_process_is_the_same(processes: dict[Path, tuple[str, str]]) -> None:
    one, other = processes
    texts = [(folder / "adapter_config.json").read_text() for folder in processes]
    assert texts[0] != texts[1]  # peft writes the set in the order of the process
    assert processes[one] == processes[other]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"base_model_name_or_path": "/elsewhere/model", "revision": "main"}, True),
        ({"peft_version": "0.99.0", "a_new_option": None, "another": False}, True),
        ({"lora_alpha": 99}, False),
        ({"target_modules": ["q_proj"]}, False),
        ({"use_rslora": True}, False),
    ],
)
def test_the_identity_is_of_what_is_computed(
    processes: dict[Path, tuple[str, str]], tmp_path: Path, changed: dict[str, Any], same: bool
) -> None:
    """Where the base lies and who saved the adapter are no part of it; what changes its outputs is."""
    folder, (identity, _) = next(iter(processes.items()))
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert (adapter_id(str(copy)) == identity) is same
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert adapter_id(str(copy)) != identity
