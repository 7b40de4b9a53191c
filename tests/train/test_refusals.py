"""What the trainers refuse in one line, each for a reason that would otherwise be met late or never."""

from __future__ import annotations

import json
import math
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

from eval.errors import InputError
from eval.files import write_json
from eval.models.checkpoints import weights_id
from reward.stage import Stage, built, check_batches, check_trainer, settings_of
from tests.support.reward_training import trained
from tests.support.rl_runs import Killed, run
from tests.support.sft_runs import sft
from train.arguments import PolicyArguments
from train.callbacks import drop_optimizer_states, resume_from
from train.checks import check_prompts
from train.grpo import WORDS
from train.policy import make_room, starting_model
from train.prompts import Prompts
from train.run import Run
from train.schedule import check_schedule
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
        (("--checkpoint_steps", -1), "checkpoint step -1 is not one of this run's, 0 to 4"),
        (("--held_out", 0), "held_out must be between 0 and 1, not 0.0"),
        (("--report_to", "wandb", "--run_name", "x" * 101), "run_name must have 1 to"),
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
        (("--load_in_8bit", "true"), "load_in_8bit must be left out: a reward model is"),
        (("--held_out", 0), "held_out must be between 0 and 1, not 0.0"),
        (("--held_out", 1), "held_out must be between 0 and 1, not 1.0"),
        (("--max_pairs", 1), "max_pairs must be at least 2, not 1"),
        (("--prompt_share", 0.5, 0.5), "prompt_share must be two numbers, 0 <= low < high <= 1, not '0.5 0.5'"),
        (("--report_to", "wandb", "--run_name", "x" * 101), "run_name must have 1 to"),
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


def test_an_optimizer_that_works_in_one_process_is_refused_in_two() -> None:
    """transformers would end in a NotImplementedError when it makes it."""
    config: Any = SimpleNamespace(
        seed=0, learning_rate=1e-4, weight_decay=0.0, neftune_noise_alpha=None, max_steps=1, num_train_epochs=1,
        eval_strategy="no", optim="galore_adamw_layerwise", world_size=1,
    )  # fmt: skip
    check_trainer(config)
    config.world_size = 2
    with pytest.raises(InputError, match="optim galore_adamw_layerwise works in one process, not in 2"):
        check_trainer(config)


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
        monkeypatch.setattr("eval.files.shutil.disk_usage", lambda _, room=room: room)
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


def test_starting_from_an_adapter_that_is_not_what_it_says(tiny: Path, tmp_path: Path) -> None:
    from tests.support.adapters import adapter_for

    adapter, model = adapter_for(tiny, tmp_path / "adapter"), SimpleNamespace(dtype=None, model_revision="main")
    model.model_name_or_path = str(adapter)
    policy = {"model": str(tiny), "revision": None, "base_weights": weights_id(str(tiny))}
    for change, said in (
        ({"model": "./gone"}, "model ./gone: there is no such folder"),
        ({"base_weights": "sha256:0"}, "was trained on other weights than"),
        ({"model": None}, r"has no policy\.json, which says on what it was trained"),
    ):
        write_json(adapter / "policy.json", {k: v for k, v in {**policy, **change}.items() if v is not None})
        with pytest.raises(InputError, match=said):
            starting_model(model, tmp_path)
    write_json(adapter / "policy.json", policy)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(InputError, match="cannot be merged into its base"):
        starting_model(model, tmp_path)
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    assert starting_model(model, tmp_path)[0] == str(tmp_path / "start")
    assert model.model_revision is None, "of the base, not of OUTPUT/start"
    (adapter / "adapter_model.safetensors").write_bytes(weights + b"\0")  # trained further
    with pytest.raises(InputError, match="was merged with adapter_weights = "):
        starting_model(model, tmp_path)


LIMITS = ("kl_target", "kl_alert", "entropy_alert", "repetition_alert", "length_alert", "sample_prompts")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({name: value}, f"{name} must be a number of at least 0") for name in LIMITS for value in (-1, math.inf)),
        ({"entropy_alert": 1.0}, "entropy_alert must be below 1"),
        ({"length_alert": 1.0}, "length_alert above 1"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens must be at least 1, not 0"),
        ({"checkpoint_steps": ["often"]}, "checkpoint_steps must be numbers, or the one word paper, not 'often'"),
    ],
)
def test_options_of_an_rl_run(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PolicyArguments(reward_model=["somewhere"], **changes)


def test_a_schedule(caplog: pytest.LogCaptureFixture) -> None:
    config = SimpleNamespace(max_steps=8, save_strategy="no", gradient_accumulation_steps=2, num_iterations=2)
    config.steps_per_generation = 4  # 8 micro-steps share their answers, which are 4 steps
    assert check_schedule([8, 0, 4], config) == [0, 4, 8]
    assert not caplog.text
    check_schedule([4], config)
    assert "the last step, 8, is not in checkpoint_steps" in caplog.text
    for given, steps, said in (
        ([2], 8, "checkpoint step 2 lies inside a generation buffer of 8 micro-steps"),
        ([], 8, "checkpoint_steps is empty; list at least one step"),
        ([0], 0, "max_steps must be set to the last step, it is 0"),
        ([9], 8, "checkpoint step 9 is above the last step, max_steps 8"),
    ):
        config.max_steps = steps
        with pytest.raises(InputError, match=said):
            check_schedule(given, config)


@pytest.mark.parametrize("how", ["is_fsdp_enabled", "is_deepspeed_enabled"])
@pytest.mark.parametrize("asked", ["evaluation", "sample_prompts"])
def test_a_sharded_model_is_not_asked_in_a_process(how: str, asked: str, tmp_path: Path) -> None:
    trainer = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True), **{how: True})
    samples: list[Any] = [[]] if asked == "sample_prompts" else []
    rest: Any = [trainer, SimpleNamespace(folder=tmp_path), {}, None, [], None, [], Prompts([], samples, {})]
    planned: Any = object() if asked == "evaluation" else None
    with pytest.raises(InputError, match=f"^{asked} at each checkpoint need the whole model in a process"):
        Run(*rest)._when_saved(planned, planned)


@pytest.mark.parametrize("trainer", ["sft", "reward"])
def test_a_model_without_chat_template(trainer: str, tiny: Path, examples: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, base := tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=f"the tokenizer of {base} has no chat template"):
        sft(base, examples, tmp_path / "out") if trainer == "sft" else trained(base, tmp_path / "out")


def test_what_a_training_killed_in_its_first_save_has_left_is_no_checkpoint(tmp_path: Path) -> None:
    """It begins again, without a word: nothing that was complete is replaced."""
    for step in (0, 2):
        write_json(tmp_path / f"checkpoint-{step}" / ("policy.json" if step == 0 else "trainer_state.json"), {})
    (tmp_path / "checkpoint-2" / "optimizer.pt").touch()
    assert resume_from(tmp_path) is None


def test_of_an_older_checkpoint_all_stays_but_what_training_goes_on_from(tmp_path: Path) -> None:
    kept = {"adapter_model.safetensors", "policy.json", "trainer_state.json"}
    for folder in (tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"):
        folder.mkdir()
        for name in (*kept, "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_1.pth"):
            (folder / name).touch()
    drop_optimizer_states(tmp_path / "checkpoint-4")
    assert {path.name for path in (tmp_path / "checkpoint-2").iterdir()} == kept
    assert len(list((tmp_path / "checkpoint-4").iterdir())) == 8
