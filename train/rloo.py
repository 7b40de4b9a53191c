"""RLHF by RLOO: accelerate launch -m train.rloo --config configs/demo/rloo.yaml

TRL's RLOOTrainer (REINFORCE leave-one-out, Ahmadian et al. 2024) with LoRA or in full; the reward is that of one or
several learned reward models and of penalties (reward.functions), with a KL penalty to the starting policy (beta). The
paper used PPO on the same KL-penalised reward. A checkpoint is kept at every step of checkpoint_steps (0 = before RLHF)
and evaluated when saved; the results lie in OUTPUT/eval/step-N. The same command goes on after a kill and does nothing
where all is done.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from eval.checkpoints import POLICY_FILE
from eval.config import EvaluationConfig, parse, prepare_output, run_main
from eval.plan import Plan, plan
from eval.provenance import git_commit
from eval.results import write_json
from reward.stage import Stage, last_checkpoint, settings_of
from train.arguments import PolicyArguments

log = logging.getLogger(__name__)
ALGORITHM = "rloo"


def train(arguments: PolicyArguments, config: Any, model_args: Any) -> dict[str, Any]:
    """Checks everything, trains, and returns the content of OUTPUT/rloo.json."""
    from eval.checkpoints import base_parameters, load_tokenizer, weights_id, weights_mib
    from eval.sources import data_folder, data_name
    from eval.tracking import policy_name
    from reward.functions import build_rewards, check_rewards, end_token_ids
    from reward.model import check_chat_template, check_model_arguments, lora_config
    from reward.preferences import read_preferences
    from train.prompts import rl_prompts
    from train.schedule import check_schedule

    output = Path(config.output_dir)
    model = check_model_arguments(model_args)
    rewards = check_rewards(arguments, config)
    steps = check_schedule(arguments.checkpoint_steps, config)
    per_checkpoint = 32 + (0.1 if model_args.use_peft else 3) * weights_mib(model)
    prepare_output(output, needed_mib=round(len(steps) * per_checkpoint))
    evaluation = _evaluation_config(arguments)
    planned = plan(evaluation) if evaluation else None
    preferences = read_preferences(arguments.preferences, arguments.data_dir)
    tokenizer = load_tokenizer(model, model_args.model_revision)
    check_chat_template(tokenizer, model)
    prompts = rl_prompts(preferences.pairs, tokenizer, arguments.max_prompt_tokens)
    peft_config = lora_config(model_args, model, arguments.lora_top_layers)
    hashes = {
        "base_weights": weights_id(model, model_args.model_revision),
        "preference_data": preferences.identity,
        "rewards": rewards,
    }
    stage = Stage(output, "rloo.json", settings_of(config, model_args, arguments, **hashes))
    if result := stage.begin():
        log.info("RLHF finished already: %s", output)
        return result
    end_ids = end_token_ids(model, model_args.model_revision, tokenizer)
    built = build_rewards(rewards, str(config.device), end_ids, arguments.reward_dtype)
    trainer = _trainer(model, built, config, model_args, tokenizer, prompts, peft_config)
    policy = {
        "policy": config.run_name or policy_name(output, stage.settings),
        "algorithm": ALGORITHM,
        "model": model,
        "revision": model_args.model_revision,
        "model_params": base_parameters(trainer.accelerator.unwrap_model(trainer.model)),
        "data": data_name(data_folder(arguments.data_dir)),
        "seed": config.seed,
        "git_commit": git_commit(),
        "checkpoint_steps": steps,
        **hashes,
    }
    return _run(trainer, stage, policy, evaluation, planned)


def _evaluation_config(arguments: PolicyArguments) -> EvaluationConfig | None:
    """The evaluation's YAML, on this run's data folder unless the YAML names one."""
    if arguments.evaluation is None:
        return None
    (evaluation,) = parse([EvaluationConfig], ["--config", arguments.evaluation], "evaluation")
    evaluation.data_dir = evaluation.data_dir or arguments.data_dir
    return evaluation


def _trainer(
    model: str, rewards: Any, config: Any, model_args: Any, tokenizer: Any, prompts: list, peft_config: Any
) -> Any:
    from datasets import Dataset
    from trl import RLOOTrainer

    config.reward_weights = rewards.weights
    config.model_init_kwargs = {
        "dtype": model_args.dtype or "float32",
        "revision": model_args.model_revision,
        **(config.model_init_kwargs or {}),
    }
    return RLOOTrainer(
        model=model,
        reward_funcs=rewards.functions,
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def _run(
    trainer: Any, stage: Stage, policy: dict[str, Any], evaluation: EvaluationConfig | None, planned: Plan | None
) -> dict[str, Any]:
    from train.callbacks import CheckpointEvaluator, ScheduledCheckpoints

    output = stage.folder
    tracked = "wandb" in trainer.args.report_to and trainer.accelerator.is_main_process
    if trainer.accelerator.is_main_process:
        write_json(output / "run.json", policy)
    run = None
    if tracked:
        from eval import tracking

        name = policy["policy"]
        run = tracking.start_training_run(output, name, f"train-{name}", policy)
    evaluator = None
    if evaluation is not None and planned is not None:
        evaluator = CheckpointEvaluator(evaluation, planned, output, policy, publish=tracked)
    trainer.add_callback(ScheduledCheckpoints(policy["checkpoint_steps"], policy, evaluator))
    resumed = last_checkpoint(output, "trainer_state.json", POLICY_FILE)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    result = {**policy, "steps": trainer.state.global_step, "log": logged}
    if run is not None:
        run.finish()
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        stage.finish(result)
    return result


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from accelerate import PartialState
    from trl import ModelConfig, RLOOConfig

    arguments, config, model_args = parse([PolicyArguments, RLOOConfig, ModelConfig], sys.argv[1:], "train.rloo")
    result = train(arguments, config, model_args)
    if not PartialState().is_main_process:
        return
    print(summary(result))
    print(f"checkpoints and evaluations: {config.output_dir}")


def summary(result: dict[str, Any]) -> str:
    """The reward at the beginning and at the end, of several parts each by itself, and the KL divergence at the end."""
    log, parts = result["log"], result["rewards"]
    n = min(5, len(log))

    def rise(key: str) -> str:
        first, last = (sum(entry[key] for entry in part) / n for part in (log[:n], log[-n:]))
        return f"{first:.3f} (first {n} steps) -> {last:.3f} (last {n})"

    kl = log[-1].get("kl")  # TRL has none for beta 0
    total = f"{result['steps']} RLHF steps: {'learned' if len(parts) == 1 else 'whole'} reward {rise('reward')}"
    told = [total + ("" if kl is None else f", KL to the starting policy {kl:.3f} per token")]
    if len(parts) > 1:
        told += [f"  {p['name']}, weight {p['weight']:g}: {rise('rewards/' + p['name'] + '/mean')}" for p in parts]
    return "\n".join(told)


if __name__ == "__main__":
    run_main(main)
