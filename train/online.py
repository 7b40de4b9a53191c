"""The procedure of all RL trainers: check everything, train with TRL, keep and evaluate checkpoints.

rloo.py, grpo.py and online_dpo.py choose TRL's trainer and configuration. Everything else is here, so that their
checkpoints, logs and results mean the same.

OUTPUT/settings.json, run.json, evaluation.json   what it was started with
OUTPUT/checkpoint-N                               see train.callbacks
OUTPUT/eval/step-N, OUTPUT/samples                each checkpoint's evaluation, and its answers to prompts kept out
OUTPUT/alerts.jsonl                               when the run exceeded a limit (train.budget)
OUTPUT/ALGORITHM.json, training.png               the log of every step and the outcome; written last
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from eval.cli.parser import parse
from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.files import prepare_output
from eval.runner.plan import Plan, plan
from eval.runner.provenance import command, git_commit, versions
from eval.scorers.local.memory import keep_freed_memory
from reward.functions import RewardOptions, Rewards, build_rewards, check_rewards
from reward.stage import Stage, build_trainer, lock_training_folder, settings_of
from train.arguments import PolicyArguments
from train.prompts import Prompts, rl_prompts, seen_prompts
from train.run import Run

log = logging.getLogger(__name__)


class Algorithm(NamedTuple):
    """One of the RL algorithms.

    name: of the result file and on the dashboards. trainer: a class made by `log_step_counts`. config: TRL's, or a
    subclass. adaptive: whether beta is the coefficient of a KL penalty, so that the KL budget can act on it.
    """

    name: str
    trainer: Callable[..., Any]
    config: type
    adaptive: bool = True


def log_step_counts(base: type) -> type:
    """A subclass of TRL's trainer whose log of each step also has samples, prompts and beta."""

    class Logged(base):
        amounts: dict[str, int]

        def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
            if "loss" in logs:
                step = self.state.global_step
                logs |= {name.removesuffix("_per_step"): step * n for name, n in self.amounts.items()}
                logs["beta"] = self.beta
            super().log(logs, start_time)

    Logged.__name__ = Logged.__qualname__ = base.__name__
    return Logged


def train(algorithm: Algorithm, arguments: PolicyArguments, config: Any, model_args: Any) -> dict[str, Any]:
    """Checks everything, trains, and returns the content of OUTPUT/ALGORITHM.json."""
    from reward.training_run import check_training
    from train.checks import check_options, check_sampling
    from train.schedule import check_schedule

    check_options(arguments, config, model_args)
    check_sampling(config)
    output = Path(config.output_dir)
    check_training(config.report_to, config.run_name)
    if config.device.type == "cpu":
        keep_freed_memory()
    config.logging_steps = 1  # the KL budget and the alerts see every step
    _check_budget(algorithm, arguments, config)
    steps = check_schedule(arguments.checkpoint_steps, config)
    rewards = check_rewards(arguments, config)
    judges = _check_judges(arguments, rewards)
    evaluation = arguments.evaluation_config()
    planned = plan(evaluation) if evaluation else None
    prepare_output(output)
    with lock_training_folder(output):
        return _train_locked(algorithm, arguments, config, model_args, steps, rewards, judges, evaluation, planned)


def _train_locked(
    algorithm: Algorithm, arguments: PolicyArguments, config: Any, model_args: Any, steps: list[int],
    rewards: list[dict[str, Any]], judges: list[dict[str, Any]], evaluation: EvaluationConfig | None,
    planned: Plan | None,
) -> dict[str, Any]:  # fmt: skip
    """The remaining checks and the training, with the folder locked."""
    from eval.data.readers import data_folder, data_name
    from eval.models.checkpoints import base_parameters, weights_id
    from eval.tracking.ledger import training_policy
    from reward.model import lora_config
    from reward.preferences import in_share, read_preferences
    from reward.training_run import publish_finished
    from train.chat_template import policy_tokenizer
    from train.checks import check_end_token, check_prompts, quantisation
    from train.policy import make_room, starting_model
    from train.schedule import per_step

    output = Path(config.output_dir)
    template_options = getattr(config, "chat_template_kwargs", None)
    model, merged = starting_model(model_args, output, template_options=template_options)
    tokenizer, ends = policy_tokenizer(model, model_args.model_revision, False, template_options)
    check_end_token(ends.added, config)
    make_room(output, steps, arguments, model_args, model)
    preferences = read_preferences(arguments.preferences, arguments.data_dir)
    seen = seen_prompts([*rewards, *judges]) if arguments.seen_prompts == "leave_out" else set()
    pairs = in_share(preferences.pairs, arguments.prompt_share)
    prompts = rl_prompts(pairs, tokenizer, arguments.max_prompt_tokens, seen, arguments.sample_prompts, config.seed)
    check_prompts(len(prompts.training), config)
    peft_config = lora_config(model_args, model, arguments.lora_top_layers)
    hashes = {
        "base_weights": weights_id(model, model_args.model_revision),
        "preference_data": preferences.identity,
        "rewards": rewards,
    }
    settings = settings_of(
        config, model_args, arguments, processes=config.world_size, **hashes, **ends.settings_fields()
    )
    stage = Stage(output, f"{algorithm.name}.json", settings)
    if result := stage.begin():
        log.info("RLHF finished already: %s", output)
        publish_finished(output, config.report_to)
        return result
    reward_functions = build_rewards(rewards, str(config.device), ends.ids, arguments.reward_dtype)
    trainer = build_trainer(
        lambda: _trainer(algorithm, model, reward_functions, config, model_args, tokenizer, prompts, peft_config)
    )
    ends.save_to(trainer.accelerator.unwrap_model(trainer.model))
    stage.record()
    trainer.amounts = per_step(config, trainer.accelerator.num_processes)
    policy = {
        "policy": training_policy(output, stage.settings, config.run_name),
        "algorithm": algorithm.name,
        "model": model,
        "revision": model_args.model_revision,
        "merged_from": merged,
        "model_params": base_parameters(trainer.accelerator.unwrap_model(trainer.model)),
        "dtype": model_args.dtype or "float32",
        "quantisation": quantisation(model_args),
        "data": "named sources" if arguments.preferences else data_name(data_folder(arguments.data_dir)),
        "seed": config.seed,
        "git_commit": git_commit(),
        "command": command(),
        "versions": versions(),
        "checkpoint_steps": steps,
        **trainer.amounts,
        "prompts": {"training": len(prompts.training), "samples": len(prompts.samples), "left_out": prompts.left_out},
        "judges": judges,
        **ends.policy_fields(tokenizer),
        **hashes,
        "settings": stage.settings,
        "result": stage.result_path.name,
    }
    run = Run(trainer, stage, policy, arguments, ends.ids, reward_functions, judges, prompts)
    return run.run(evaluation, planned if arguments.evaluate == "in_process" else None, algorithm.adaptive)


def _check_budget(algorithm: Algorithm, arguments: PolicyArguments, config: Any) -> None:
    if algorithm.adaptive and arguments.kl_target and not config.beta:
        raise InputError(
            f"beta is 0, so that there is no KL to keep near kl_target {arguments.kl_target:g}; give a beta above 0, "
            "or --kl_target 0 for a run without a KL penalty"
        )


def _check_judges(arguments: PolicyArguments, rewards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The judges as recorded. Raises InputError for one that is also optimised."""
    if not arguments.judges:
        return []
    unlimited = SimpleNamespace(reward_weights=None, max_completion_length=None, mask_truncated_completions=False)
    judges = check_rewards(RewardOptions(list(arguments.judges), reward_dtype=arguments.reward_dtype), unlimited)
    optimised = {m["weights"]: m["reward_model"] for part in rewards for m in part.get("members", [])}
    for member in (m for part in judges for m in part["members"]):
        if optimised_name := optimised.get(member["weights"]):
            raise InputError(
                f"judge {member['reward_model']} has the weights of {optimised_name}, which is optimised; a judge must "
                "be another reward model, best trained on other pairs"
            )
    return judges


def _trainer(
    algorithm: Algorithm, model: str, rewards: Rewards, config: Any, model_args: Any, tokenizer: Any, prompts: Prompts,
    peft_config: Any,
) -> Any:  # fmt: skip
    from datasets import Dataset

    from train.policy import init_kwargs

    config.reward_weights = rewards.weights
    config.model_init_kwargs = init_kwargs(model_args, config.model_init_kwargs)
    return algorithm.trainer(
        model=model,
        reward_funcs=rewards.functions,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts.training]),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def main(algorithm: Algorithm, prog: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from accelerate import PartialState
    from trl import ModelConfig

    arguments, config, model_args = parse([PolicyArguments, algorithm.config, ModelConfig], sys.argv[1:], prog)
    result = train(algorithm, arguments, config, model_args)
    if PartialState().is_main_process:
        from train.summary import summary

        print(summary(result))
        print(f"checkpoints and evaluations: {config.output_dir}")
