"""Strict configuration: precedence, types, and that no unknown key passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.cli.parser import parse
from eval.commands.run_config import RunConfig
from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.files import prepare_output


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_command_line_over_yaml_over_default(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "seed: 3\nlimit: 5\nconditions: [Q, Q+IF]\n")
    (config,) = parse([EvaluationConfig], ["--config", file, "--seed", "4"], "x")
    assert (config.seed, config.limit, config.conditions, config.orders) == (4, 5, ["Q", "Q+IF"], 3)
    (again,) = parse([EvaluationConfig], [f"--config={file}"], "x")
    assert (again.seed, again.limit) == (3, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sead: 3\n", "unknown key 'sead'; did you mean 'seed'?"),
        ("limit: many\n", "limit"),
        ("limit:\n", "'limit' has no value"),
        ("- seed\n", "mapping"),
        ("seed: [1\n", "not valid YAML"),
        ("experiments: [bbq, winogander]\n", "did you mean 'winogender'?"),
        ("conditions: [Q+FI]\n", "unknown 'Q+FI'"),
        ("orders: 2\n", "orders must be 1 (as given) or 3"),
        ("limit: 0\n", "limit must be at least 1"),
    ],
)
def test_bad_yaml_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        parse([EvaluationConfig], ["--config", write(tmp_path / "c.yaml", text)], "x")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modle", "m"], "unknown option --modle; did you mean 'model'?"),
        (["--mod", "m"], "unknown option --mod"),
        ([], "--model is missing"),
        (["--model", "m", "--seed", "1", "stray"], "stray"),
        (["--model", "m", "--seed", "x"], "seed"),
        (["--model", "m", "--config"], "--config needs"),
        (["--config", "no/such.yaml"], "no/such.yaml"),
    ],
)
def test_bad_command_line_is_one_clear_error(arguments: list[str], said: str) -> None:
    with pytest.raises(InputError) as error:
        parse([RunConfig], arguments, "x")
    assert said in str(error.value)


def test_trl_keys_are_strict_too(tmp_path: Path) -> None:
    from trl import ModelConfig, RLOOConfig

    from train.arguments import PolicyArguments

    base = f"reward_model: r\noutput_dir: {tmp_path}\nuse_cpu: true\n"
    for line, said in (
        ("learning_rat: 1.0e-5\n", "did you mean 'learning_rate'?"),
        ("lora_target_module: [q_proj]\n", "did you mean 'lora_target_modules'?"),
        ("checkpoint_steps: [0, ten]\n", "checkpoint_steps"),
        ("num_generations: 3\nper_device_train_batch_size: 4\n", "num_generations"),
    ):
        with pytest.raises(InputError) as error:
            file = write(tmp_path / "c.yaml", base + line)
            parse([PolicyArguments, RLOOConfig, ModelConfig], ["--config", file], "x")
        assert said in str(error.value)
        assert "\n" not in str(error.value).strip()


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        prepare_output(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="cannot be written"):
        prepare_output(Path("/proc/selfcorrect"))


def test_output_without_room(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MiB free and the run needs about"):
        prepare_output(tmp_path, needed_mib=2**40)
