"""The files for accelerate launch, read by accelerate itself, and the environment that each gives the trainers."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
FSDP1_ONLY = {
    "fsdp_sharding_strategy", "fsdp_backward_prefetch", "fsdp_forward_prefetch", "fsdp_use_orig_params",
    "fsdp_sync_module_states",
}  # fmt: skip

SECTIONS = ("fsdp_config", "deepspeed_config")


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    """Without what this machine says of accelerate, of threads or of a launcher, and put back afterwards."""
    prefixes = ("ACCELERATE_", "FSDP_", "MASTER_", "OMP_NUM_THREADS", "WORLD_SIZE", "RANK", "LOCAL_RANK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    with mock.patch.dict(os.environ, kept, clear=True):
        yield


def arguments(name: str, *more: str) -> argparse.Namespace:
    """What `accelerate launch --config_file NAME.yaml MORE -m train.rloo` comes to."""
    file = str(ROOT / "configs" / "accelerate" / f"{name}.yaml")
    argv = ["--config_file", file, "--main_process_port", "0", *more, "-m", "train.rloo", "--seed", "0"]
    parsed, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(argv))
    return parsed


def with_environment(values: dict[str, str]) -> Any:
    return mock.patch.dict(os.environ, values)


def test_the_files_are_those_of_the_documentation() -> None:
    assert [p.stem for p in FILES] == ["cpu", "ddp", "fsdp2", "gpu", "multi_node", "zero3"]
    text = (ROOT / "docs" / "launch.md").read_text()
    assert set(re.findall(r"configs/accelerate/(\w+)\.yaml", text)) == {p.stem for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_accelerate_reads_the_file_and_knows_every_key(path: Path) -> None:
    """Keys below fsdp_config and deepspeed_config, which accelerate does not check, must be options of its launcher."""
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    raw = yaml.safe_load(path.read_text())
    options = vars(launch.launch_command_parser().parse_args(["-m", "train.rloo"]))
    for section in SECTIONS:
        unknown = set(raw.get(section, {})) - set(options)
        assert not unknown, f"{path.name}: {section} has {unknown}"
    assert not set(raw.get("fsdp_config", {})) & FSDP1_ONLY
    parsed = vars(arguments(path.stem))
    for key in set(raw) - {"compute_environment", "distributed_type", "main_process_port", *SECTIONS}:
        assert parsed[key] == raw[key], f"the launcher does not take {key} from a file"


def fields_read_from_the_environment(plugin: type) -> set[str]:
    """The names of environment variables in a plugin's source, without their prefix."""
    tree = ast.parse(inspect.cleandoc(inspect.getsource(plugin)))
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {word.removeprefix("FSDP_") for word in words}


def test_every_key_of_fsdp_reaches_the_plugin() -> None:
    """A launcher's option that the plugin does not read would be as silent as a typo."""
    spelt = {"transformer_layer_cls_to_wrap": "TRANSFORMER_CLS_TO_WRAP"}
    read = fields_read_from_the_environment(FullyShardedDataParallelPlugin)
    for key in yaml.safe_load((ROOT / "configs" / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]:
        name = key.removeprefix("fsdp_")
        assert spelt.get(name, name.upper()) in read, key


def test_a_typo_below_fsdp_config_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text((FILES[0].parent / "fsdp2.yaml").read_text().replace("fsdp_state_dict_type", "fsdp_state_dict"))
    load_config_from_file(str(path))  # accelerate itself says nothing
    with pytest.raises(AssertionError, match="fsdp_state_dict"):
        test_accelerate_reads_the_file_and_knows_every_key(path)


def test_one_process_on_the_cpu() -> None:
    parsed = arguments("cpu")
    command, environment = prepare_simple_launcher_cmd_env(parsed)
    assert command[1:] == ["-m", "train.rloo", "--seed", "0"]
    assert environment["ACCELERATE_USE_CPU"] == "True"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert not (parsed.multi_gpu or parsed.use_fsdp or parsed.use_deepspeed)


def test_two_cpu_processes_cannot_be_had_from_accelerate_launch() -> None:
    """Why docs/launch.md says torchrun: one command, and no WORLD_SIZE that would make it two."""
    command, environment = prepare_simple_launcher_cmd_env(arguments("cpu", "--num_processes", "2"))
    assert command[1:] == ["-m", "train.rloo", "--seed", "0"]
    assert "WORLD_SIZE" not in environment


def test_one_gpu_is_one_process() -> None:
    parsed = arguments("gpu")
    _, environment = prepare_simple_launcher_cmd_env(parsed)
    assert environment["ACCELERATE_USE_CPU"] == "False"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert (parsed.num_processes, parsed.multi_gpu, parsed.use_fsdp) == (1, False, False)


def test_ddp_starts_a_process_for_each_gpu() -> None:
    parsed = arguments("ddp", "--num_processes", "4")
    environment = prepare_multi_gpu_env(parsed)
    assert (parsed.multi_gpu, parsed.nproc_per_node) == (True, "4")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "ACCELERATE_USE_FSDP" not in environment
    assert "ACCELERATE_USE_DEEPSPEED" not in environment


def test_several_machines_differ_in_their_rank_only() -> None:
    first, second = (arguments("multi_node", "--machine_rank", str(rank)) for rank in (0, 1))
    for parsed in (first, second):
        prepare_multi_gpu_env(parsed)
    assert (first.node_rank, second.node_rank) == (0, 1)
    for parsed in (first, second):
        assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_backend) == ("2", "8", "static")
        assert parsed.rdzv_endpoint.startswith("192.0.2.1:")


def test_fsdp2_over_several_machines_by_options() -> None:
    more = ["--num_machines", "2", "--num_processes", "16", "--machine_rank", "1", "--main_process_ip", "192.0.2.1"]
    parsed = arguments("fsdp2", *more)
    environment = prepare_multi_gpu_env(parsed)
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.node_rank) == ("2", "8", 1)
    assert parsed.rdzv_endpoint.startswith("192.0.2.1:")
    assert environment["FSDP_VERSION"] == "2"


def test_fsdp2_is_the_plugin_that_it_should_be(tiny: Path) -> None:
    """From the launcher's environment to the plugin, which finds the layers of a model with LoRA."""
    from peft import LoraConfig, get_peft_model
    from torch.distributed.fsdp import OffloadPolicy
    from transformers import AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    with with_environment(prepare_multi_gpu_env(arguments("fsdp2"))):
        assert os.environ["ACCELERATE_USE_FSDP"] == "true"
        assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
        plugin: Any = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert type(plugin.cpu_offload) is OffloadPolicy
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert (plugin.cpu_ram_efficient_loading, plugin.activation_checkpointing) == (False, False)
    assert (plugin.backward_prefetch, plugin.use_orig_params, plugin.sync_module_states) == (None, None, None)
    lora: Any = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    plugin.set_auto_wrap_policy(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), lora))
    assert plugin.auto_wrap_policy.keywords == {"transformer_layer_cls": {LlamaDecoderLayer}}


def test_zero3_is_the_plugin_that_it_should_be() -> None:
    parsed = arguments("zero3")
    parsed.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(parsed)
    assert (parsed.use_deepspeed, parsed.nproc_per_node) == (True, "8")
    with with_environment(environment):
        assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
        plugin: Any = DeepSpeedPlugin()
        plugin.set_mixed_precision(os.environ["ACCELERATE_MIXED_PRECISION"])
    assert (plugin.zero_stage, plugin.zero3_init_flag, plugin.zero3_save_16bit_model) == (3, True, True)
    config = plugin.deepspeed_config
    assert config["bf16"] == {"enabled": True}
    assert config["gradient_accumulation_steps"] == config["gradient_clipping"] == "auto"
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "none"
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


def test_every_key_of_deepspeed_reaches_the_plugin() -> None:
    keys = yaml.safe_load((ROOT / "configs" / "accelerate" / "zero3.yaml").read_text())["deepspeed_config"]
    assert set(keys) <= set(inspect.signature(DeepSpeedPlugin).parameters)


@pytest.mark.parametrize(("name", "said", "meant"), [("gpu", "false", "no"), ("gpu", "true", "bf16")])
def test_the_trainers_bf16_decides_where_the_file_leaves_it(tmp_path: Path, name: str, said: str, meant: str) -> None:
    from trl import RLOOConfig

    from eval.cli.parser import parse

    _, environment = prepare_simple_launcher_cmd_env(arguments(name))
    with with_environment({"ACCELERATE_MIXED_PRECISION": environment["ACCELERATE_MIXED_PRECISION"]}):
        argv = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", said]
        (config,) = parse([RLOOConfig], argv, "train.rloo")
    assert config.mixed_precision == meant


def test_every_command_of_the_documentation_is_accepted_with_steps_of_the_same_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the launcher and by train.rloo, on the CPU; those of a ladder with 128 answers to a step on all machines."""
    from trl import ModelConfig, RLOOConfig

    from eval.cli.parser import parse
    from train.arguments import PolicyArguments

    monkeypatch.chdir(ROOT)
    lines = re.findall(r"^accelerate launch (.+)$", (ROOT / "docs" / "launch.md").read_text(), re.M)
    lines += re.findall(r"^accelerate launch (.+--size .+)$", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) >= 7
    for line in lines:
        parsed, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(line.split()))
        assert (parsed.module, parsed.training_script) == (True, "train.rloo")
        argv = [*parsed.training_script_args, "--use_cpu", "true"]
        _, config, _ = parse([PolicyArguments, RLOOConfig, ModelConfig], argv, "train.rloo")
        answers = config.per_device_train_batch_size * config.gradient_accumulation_steps * parsed.num_processes
        assert answers == (128 if "configs/ladders" in line else 8), line
