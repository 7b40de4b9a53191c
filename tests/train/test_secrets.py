"""A secret among a command's options is used, and stands in no file, message or pickle that comes of it."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from trl import ModelConfig, RewardConfig, RLOOConfig, SFTConfig

from eval.cli.parser import parse
from eval.commands.run import run
from eval.commands.run_config import RunConfig
from eval.errors import InputError
from eval.files import read_json, write_json
from eval.runner.store import Store
from eval.secrets import MASK, Secret, conceal, is_secret, masked, masked_arguments, masked_text
from eval.tracking.client import fragment_records
from eval.views.page.report import ReportConfig, report
from reward.stage import Stage
from reward.train import RewardArguments
from tests.support.hub_server import HubServer
from tests.support.reward_training import LORA, options
from tests.support.rl_runs import rloo_arguments
from tests.support.threaded import running
from train.arguments import PolicyArguments
from train.grpo import KLGRPOConfig
from train.online_dpo import PairedConfig
from train.sft import SFTArguments

ROOT = Path(__file__).parents[2]
SECRET = "xyKeptToOneself7"
KEPT = f"hf_1{SECRET}", f"hf_2{SECRET}", f"hf_3{SECRET}"


def holding(folder: Path) -> list[str]:
    """The files below a folder that hold a secret, also compressed, or in their name."""
    found = []
    for path in (p for p in folder.rglob("*") if p.is_file()):
        parts = [path.name.encode(), path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                parts += [packed.read(name) for name in packed.namelist()]
        elif parts[1].startswith(b"\x1f\x8b"):
            parts.append(gzip.decompress(parts[1]))
        elif path.suffix == ".wandb":  # in blocks that may part a word
            parts.append(json.dumps(fragment_records(path.parent)).encode())
        if any(SECRET.encode() in part for part in parts):
            found.append(str(path.relative_to(folder)))
    return found


def test_the_token_of_a_pushed_training_reaches_the_hub_and_no_file(tiny: Path, examples: Path, tmp_path: Path) -> None:
    """As a user calls it, against a hub of ours: neither on the disk nor in what is pushed."""
    output = tmp_path / "out"
    options = {
        "model_name_or_path": tiny, "examples": examples, "output_dir": output, "checkpoint_steps": 2, "max_steps": 2,
        "save_strategy": "no", "per_device_train_batch_size": 4, "gradient_checkpointing": "false", "bf16": "false",
        "use_cpu": "true", "report_to": "wandb", "max_length": 400, "push_to_hub": "true", "hub_model_id": "me/tiny",
        "hub_token": KEPT[0], "model_init_kwargs": json.dumps({"token": KEPT[1], "low_cpu_mem_usage": True}),
    }  # fmt: skip
    command = [sys.executable, "-m", "train.sft", *(str(p) for k, v in options.items() for p in (f"--{k}", v))]
    with running(HubServer()) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_another"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    asked = {path.split("/main")[0]: token for path, token in hub.seen if "/me/tiny/" in path or "create" in path}
    assert asked == dict.fromkeys(
        ("/api/repos/create", "/api/models/me/tiny/preupload", "/api/models/me/tiny/commit"), f"Bearer {KEPT[0]}"
    )
    assert {"training_args.bin", "run.json", "README.md"} <= hub.files.keys()
    assert [name for name, content in hub.files.items() if SECRET.encode() in content] == []
    assert holding(output) == []
    assert SECRET not in done.stdout + done.stderr
    result = read_json(output / "sft.json") or {}
    assert f"--hub_token '{MASK}'" in result["command"]
    assert result["settings"]["model_init_kwargs"] == {"token": MASK, "low_cpu_mem_usage": True}
    args = torch.load(output / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert args.hub_token is None
    assert args.model_init_kwargs["low_cpu_mem_usage"] and args.model_init_kwargs["token"] == MASK


def test_an_rl_training_with_its_evaluations_and_their_page(
    tiny: Path, tiny_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from train.rloo import main

    output, evaluation = tmp_path / "out", tmp_path / "eval.yaml"
    evaluation.write_text("limit: 2\nexperiments: [winogender]\nconditions: [Q]\n")
    more = (
        "--max_steps", 2, "--checkpoint_steps", 0, 2, "--evaluation", evaluation, "--report_to", "wandb",
        f"--hub-token={KEPT[0]}", "--vllm_server_base_url", f"https://me:{KEPT[1]}@host:1/v1?api_key={KEPT[2]}",
        "--model_init_kwargs={\"token\": \"" + KEPT[1] + "\"}",
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["rloo", *rloo_arguments(tiny, tiny_reward, output, *more)])
    main()
    report(ReportConfig(runs=[str(output)], output=str(output / "page")))
    assert holding(output) == []
    assert SECRET not in "".join(capfd.readouterr())
    summary = Store(output / "eval" / "step-000002").summary()
    assert summary is not None and f"--hub-token={MASK}" in summary["command"]
    assert f"--hub-token={MASK}" in (output / "page" / "report.html").read_text()
    settings = (read_json(output / "rloo.json") or {})["settings"]
    assert settings["vllm_server_base_url"] == f"https://{MASK}@host:1/v1?api_key={MASK}"
    args = torch.load(output / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert args.vllm_server_base_url == settings["vllm_server_base_url"]


def test_a_reward_model_whose_tokens_stand_in_the_yaml(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on with another token."""
    from reward.train import main

    output, config = tmp_path / "out", tmp_path / "secret.yaml"
    for token in KEPT[:2]:
        config.write_text(f"hub_token: {token}\nmodel_init_kwargs: {{token: {token}}}\n")
        more = (*LORA, "--max_pairs", 20, "--max_steps", 3, "--config", config, "--report_to", "wandb")
        monkeypatch.setattr(sys, "argv", ["reward", *options(tiny, output, *more)])
        main()
    assert (output / "checkpoint-3" / "training_args.bin").is_file()
    assert holding(output) == []
    assert (read_json(output / "settings.json") or {})["model_init_kwargs"] == {"token": MASK}


def test_an_evaluation_in_a_process_with_secrets_on_its_command_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a user's own program, whose options are not read by us."""
    given = ["--api-key", KEPT[0], f"--proxy=https://{KEPT[1]}@host", "--vllm_options", f"{{hf_token: {KEPT[2]}}}"]
    monkeypatch.setattr(sys, "argv", ["mine.py", *given, "--seed", "3"])
    output = tmp_path / "out"
    run(RunConfig(model=[str(tiny)], output=str(output), experiments=["winogender"], conditions=["Q"], limit=2))
    report(ReportConfig(runs=[str(output)], output=str(output / "page")))
    assert holding(output) == []
    command = (Store(output).summary() or {})["command"]
    assert command.endswith(
        f"--api-key '{MASK}' '--proxy=https://{MASK}@host' --vllm_options '{{\"hf_token\": \"{MASK}\"}}' --seed 3"
    )


def test_a_page_of_results_that_an_earlier_version_wrote(tiny: Path, tmp_path: Path) -> None:
    run(RunConfig(model=[str(tiny)], output=str(tmp_path), experiments=["winogender"], conditions=["Q"], limit=2))
    summary = Store(tmp_path).summary() or {}
    write_json(tmp_path / "summary.json", summary | {"command": f"python -m train.rloo --hub_token {KEPT[0]} --seed 3"})
    report(ReportConfig(runs=[str(tmp_path)], output=str(tmp_path / "page")))
    page = (tmp_path / "page" / "report.html").read_text()
    assert SECRET not in page and f"--hub_token {MASK} --seed 3" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "m", "--scorer", "vllm", "--vllm_options", f'{{"hf_token": "{KEPT[0]}", "x'], "must be a mapping"),
        (["--model", "m", "--scorer", "vllm", "--vllm_options", f"hf_token: {KEPT[0]}: 1"], "must be a mapping"),
        (["--model", f"https://me:{KEPT[0]}@host/m"], "m: there is no such folder"),
        (["--model", "m", "--seed=3", f"hub_token={KEPT[0]}"], "cannot read"),
        (["--model", "m", f"--hub_tokn={KEPT[0]}"], "unknown option --hub_tokn"),
        (["--model", "m", "--scorer", "endpoint", "--base-url", f"http://me:{KEPT[0]}@h/v1"], "must not hold user:"),
        (["--config", "YAML"], "is not valid YAML in line 2: "),
    ],
)
def test_a_refusal_does_not_repeat_a_secret(
    arguments: list[str], said: str, ended: Callable[..., str], tmp_path: Path
) -> None:
    from eval.__main__ import main

    yaml = tmp_path / "c.yaml"
    yaml.write_text(f"model: m\nvllm_options: {{a: '{'b' * 60}', hf_token: '{KEPT[0]}', c: 'd' e}}\n")
    line = ended(main, "run", *(str(yaml) if a == "YAML" else a for a in arguments), "--output", tmp_path / "out")
    assert said in line and SECRET not in line


def test_a_refusal_of_other_settings_does_not_repeat_them(tmp_path: Path) -> None:
    """Also of a folder in which an earlier version left one."""
    write_json(
        tmp_path / "settings.json", {"model_init_kwargs": {"token": KEPT[0], "revision": "main"}, "processes": 1}
    )
    now = {"model_init_kwargs": {"token": MASK, "revision": "main"}, "processes": 1}
    assert Stage(tmp_path, "sft.json", now).begin() is None
    with pytest.raises(InputError, match=r"was started with model_init_kwargs = .*main.*other") as refused:
        Stage(tmp_path, "sft.json", {**now, "model_init_kwargs": {"token": MASK, "revision": "other"}}).begin()
    assert SECRET not in str(refused.value)


def test_which_options_of_all_trainers_and_of_eval_run_are_secret() -> None:
    types = (SFTConfig, RewardConfig, RLOOConfig, KLGRPOConfig, PairedConfig, ModelConfig, SFTArguments,
             RewardArguments, PolicyArguments, RunConfig)  # fmt: skip
    names = {f.name for kind in types for f in dataclasses.fields(kind)}
    assert {"hub_token", "pad_token", "max_new_tokens", "api_key_env", "tokenizer"} <= names
    assert {name for name in names if is_secret(name)} == {"hub_token"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:a@b@host/v1?api_key=c&n=1", f"https://{MASK}@host/v1?api_key={MASK}&n=1"),
        ("http://host/v1?key=c#access_token=d", f"http://host/v1?key={MASK}#access_token={MASK}"),
        ('{"token": "a", "revision": "main"}', f'{{"token": "{MASK}", "revision": "main"}}'),
        ("{headers: {X-Api-Key: 5}, apiKey: a}", f'{{"headers": {{"X-Api-Key": "{MASK}"}}, "apiKey": "{MASK}"}}'),
        ("{'token': 'a b', 'b': nan} was given", f"{{'token': '{MASK}', 'b': nan}} was given"),
        ("Authorization: Bearer a and so on", f"Authorization: {MASK} and so on"),
        ("run --hub_token 'a b' --seed 3", f"run --hub_token '{MASK}' --seed 3"),
        ("a=1,password=b,c=2", f"a=1,password={MASK},c=2"),
        ("error: token: a", f"error: token: {MASK}"),
    ],
)
def test_secrets_in_a_text(text: str, shown: str) -> None:
    assert masked_text(text) == shown
    assert masked_text(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "the token is wrong, key = 3", "--eos_token </s> --max_new_tokens 5 --answer_key text", "runs/a@b",
        "{a: [1, 2]}", '{"use_cache": true,  "token": null}', "python -m train.sft --token_budget 3",
        "unknown key 'a'; did you mean 'b'?",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays_to_the_letter(text: str) -> None:
    assert masked_text(text) == text


def test_the_arguments_of_this_process_once_they_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trackers record sys.argv: W&B, Comet, SwanLab."""
    given = ["--hub_token", KEPT[0], "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    monkeypatch.setattr(sys, "argv", ["x", *given])
    (config,) = parse([SFTConfig], sys.argv[1:], "x")
    assert config.hub_token == KEPT[0]
    assert sys.argv == ["x", "--hub_token", MASK, *given[2:]] == ["x", *masked_arguments(given)]


def test_a_trainers_options_without_secrets(tmp_path: Path) -> None:
    """DeepSpeed's configuration is in use: its secrets are left out of pickles alone."""
    config: Any = SFTConfig(output_dir=str(tmp_path / "api_key=5"), use_cpu=True, bf16=False, hub_token=KEPT[0])
    config.model_init_kwargs = {"token": KEPT[1], "dtype": torch.float32}
    used = HfDeepSpeedConfig({"comet": {"api_key": KEPT[2]}, "zero_optimization": {"stage": 2}})
    config.hf_deepspeed_config, config.deepspeed_plugin = used, SimpleNamespace(deepspeed_config=used.config)
    conceal(config)
    assert config.hub_token == KEPT[0] and used.config["comet"]["api_key"] == KEPT[2]
    assert config.output_dir == str(tmp_path / "api_key=5")
    pickled = pickle.dumps(config)
    assert SECRET.encode() not in pickled
    again = pickle.loads(pickled)
    assert again.hub_token is None and again.hf_deepspeed_config.config["zero_optimization"] == {"stage": 2}
    assert again.model_init_kwargs == {"token": MASK, "dtype": torch.float32}
    assert SECRET not in json.dumps(config.to_dict(), default=str)
    assert pickle.loads(pickle.dumps(Secret("a"))) is None and f"{Secret('a')}" == "a"


def test_a_secret_that_is_no_text() -> None:
    given = {"password": 12, "token": True, "auth": {"user": "a"}, "api_keys": ["b"], "tokens": 3, "pad_token": "</s>"}
    hidden = {"password": MASK, "token": True, "auth": MASK, "api_keys": MASK, "tokens": 3, "pad_token": "</s>"}
    assert masked(given) == hidden
