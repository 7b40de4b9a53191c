"""Ladders: --size, and that every size of every family is a run of train.rloo with the same step."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from eval.cli.parser import parse
from eval.config import EvaluationConfig
from eval.errors import InputError

ROOT = Path(__file__).parent.parent
LADDERS = ROOT / "configs" / "ladders"
FAMILIES = {p.stem: yaml.safe_load(p.read_text()) for p in sorted(LADDERS.glob("*.yaml"))}
SIZES = [(family, size) for family, content in FAMILIES.items() for size in content["sizes"]]
PAPER = [0, 50, *range(100, 1001, 100)]
TABLE = re.findall(r"^\| ([\w.]+) \| ([\w.]+) \| (\d+) \| (\w+) \|$", (ROOT / "docs" / "launch.md").read_text(), re.M)
GPUS = {(family, size): (int(gpus), file) for family, size, gpus, file in TABLE}


def parsed(family: str, size: str, *more: str) -> SimpleNamespace:
    """As train.rloo does, on the CPU: without a GPU transformers refuses bf16 unless use_cpu is set."""
    from trl import ModelConfig, RLOOConfig

    from train.arguments import PolicyArguments

    argv = ["--config", str(LADDERS / f"{family}.yaml"), "--size", size, "--use_cpu", "true", *more]
    policy, config, model = parse([PolicyArguments, RLOOConfig, ModelConfig], argv, "train.rloo")
    return SimpleNamespace(policy=policy, config=config, model=model)


@pytest.mark.parametrize(("family", "size"), SIZES)
def test_every_size_is_a_run_of_rloo(family: str, size: str) -> None:
    from train.schedule import check_schedule

    run = parsed(family, size)
    gpus, file = GPUS[family, size]
    assert (ROOT / "configs" / "accelerate" / f"{file}.yaml").is_file()
    assert (gpus == 1) == (file == "gpu")
    answers = run.config.per_device_train_batch_size * run.config.gradient_accumulation_steps * gpus
    assert (answers, run.config.num_generations) == (128, 4)
    sharded = file in ("fsdp2", "zero3")
    steps = check_schedule(run.policy.checkpoint_steps, run.config)
    assert steps == PAPER
    assert run.policy.evaluation is None or not sharded
    half = run.model.dtype == "bfloat16"
    assert half == run.model.use_peft
    assert run.config.bf16 == (sharded or not half)
    assert not run.model.use_peft or run.model.lora_dropout == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_of_a_family_differ_only_in_what_a_size_needs(family: str) -> None:
    content = FAMILIES[family]
    needed = {
        "model_name_or_path", "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps",
        "learning_rate", "gradient_checkpointing",
    }  # fmt: skip
    for size, own in content["sizes"].items():
        assert needed <= set(own) <= needed | {"bf16", "sample_prompts"}, size
    for key in ("model_name_or_path", "output_dir"):
        assert len({own[key] for own in content["sizes"].values()}) == len(content["sizes"])
    rates = [own["learning_rate"] for own in content["sizes"].values()]
    assert rates == sorted(rates, reverse=True)


def test_the_documentation_names_every_size_and_no_other() -> None:
    assert sorted(GPUS) == sorted(SIZES)
    assert len(TABLE) == len(GPUS)


def test_a_comment_names_the_gpus_and_the_file_of_each_size() -> None:
    for (family, size), (gpus, file) in GPUS.items():
        text = (LADDERS / f"{family}.yaml").read_text()
        assert f"\n  {size}: # {gpus} GPU{'s' if gpus > 1 else ''}, {file}.yaml." in text, (family, size)


def test_the_size_wins_over_the_common_settings_and_the_command_line_over_both() -> None:
    assert parsed("qwen2.5", "14B").config.bf16 is False
    assert parsed("qwen2.5", "32B").config.bf16 is True
    assert parsed("qwen2.5", "7B").config.learning_rate == 5e-5
    assert parsed("qwen2.5", "7B", "--learning_rate", "1e-3").config.learning_rate == 1e-3
    assert parsed("qwen2.5", "7B").model.model_name_or_path == "Qwen/Qwen2.5-7B-Instruct"


SOME = "seed: 3\nsizes:\n  small: {limit: 2}\n  large: {limit: 9, seed: 5}\n"


def test_size_chooses(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(SOME)
    for argv, expected in (
        (["--size", "small"], (3, 2)),
        (["--size=large"], (5, 9)),
        (["--size=large", "--seed=7"], (7, 9)),
    ):
        (config,) = parse([EvaluationConfig], ["--config", str(path), *argv], "x")
        assert (config.seed, config.limit) == expected


@pytest.mark.parametrize(
    ("text", "argv", "said"),
    [
        (SOME, [], "c.yaml holds several sizes; add --size with one of: small, large"),
        (SOME, ["--size", "medium"], "c.yaml has no size medium; its sizes: small, large"),
        (SOME, ["--size", "small", "--size", "large"], "--size is given twice"),
        (SOME, ["--size"], "--size needs the name of a size"),
        ("seed: 3\n", ["--size", "small"], "c.yaml has no sizes; leave --size out"),
        (SOME.replace("limit: 9", "limt: 9"), ["--size", "small"], "'limt' in size large; did you mean 'limit'?"),
        (SOME.replace("seed: 3", "sead: 3"), ["--size", "small"], "unknown key 'sead'; did you mean 'seed'?"),
        (SOME.replace("limit: 9", "limit: "), ["--size", "small"], "'limit' in size large has no value"),
        (SOME.replace("limit: 2", "limit: many"), ["--size", "small"], "limit"),
        ("sizes: [small, large]\n", ["--size", "small"], "'sizes' must hold a mapping"),
        ("sizes:\n  small: 3\n", ["--size", "small"], "'sizes' must hold a mapping"),
        ("sizes:\n", ["--size", "small"], "'sizes' must hold a mapping"),
    ],
)
def test_bad_sizes_are_one_clear_error(tmp_path: Path, text: str, argv: list[str], said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        parse([EvaluationConfig], ["--config", str(path), *argv], "x")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_size_without_a_file() -> None:
    with pytest.raises(InputError, match="--size small chooses among the sizes of a YAML file; add --config FILE"):
        parse([EvaluationConfig], ["--size", "small"], "x")


def test_the_base_model_of_the_documentation_gets_its_template(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines in docs/launch.md, with a tiny model; what TRL trains on must go on from what it is prompted with."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "launch.md").read_text(), re.S)
    monkeypatch.chdir(ROOT)
    code = code.replace("EleutherAI/pythia-70m", str(tiny)).replace("runs/base/pythia-70m", str(tmp_path / "base"))
    exec(code, {})
    AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "base")
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who?"},
    ]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert prompt == "\n\nHuman: Hi\n\nAssistant: Hello.<|end|>\n\nHuman: Who?\n\nAssistant:"
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "Me."}], tokenize=False)
    assert whole == prompt + " Me.<|end|>"
