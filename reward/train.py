"""Trains a reward model from preference pairs: accelerate launch -m reward.train --config configs/demo/reward.yaml

TRL's RewardTrainer (Bradley-Terry) with LoRA or in full; pairs are split by prompt, the accuracy on the held-out pairs
is reported with its Wilson interval. OUTPUT/model is the merged, self-contained reward model; OUTPUT/reward.json is
written last. The same command goes on after a kill and does nothing where all is done.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.config import InputError, parse, prepare_output, run_main
from reward.stage import Stage, last_checkpoint, settings_of

log = logging.getLogger(__name__)


@dataclass
class RewardArguments:
    """Our few fields beside TRL's RewardConfig and ModelConfig."""

    data_dir: str | None = field(
        default=None, metadata={"help": "folder with preferences/; default $SELFCORRECT_DATA or the small set"}
    )
    held_out: float = field(default=0.2, metadata={"help": "share of the prompts held out to measure accuracy"})
    max_pairs: int | None = field(default=None, metadata={"help": "use only the first N pairs"})
    lora_top_layers: int | None = field(default=None, metadata={"help": "put LoRA on the last N layers only"})

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must be between 0 and 1, not {self.held_out}")
        if self.max_pairs is not None and self.max_pairs < 2:
            raise InputError(f"max_pairs must be at least 2, not {self.max_pairs}")


def train(arguments: RewardArguments, config: Any, model_args: Any) -> dict[str, Any]:
    """Trains, measures, merges and saves; returns the content of reward.json."""
    from eval.checkpoints import base_parameters, weights_id, weights_mib
    from eval.provenance import git_commit
    from eval.sources import data_folder, data_name
    from reward.model import check_model_arguments, lora_config
    from reward.preferences import read_preferences, split_by_prompt

    output = Path(config.output_dir)
    model = check_model_arguments(model_args)
    prepare_output(output, needed_mib=round(64 + 2 * weights_mib(model)))
    preferences = read_preferences(None, arguments.data_dir)
    training, held_out = split_by_prompt(preferences.pairs[: arguments.max_pairs], arguments.held_out, config.seed)
    weights = weights_id(model, model_args.model_revision)
    stage = Stage(
        output, "reward.json",
        settings_of(config, model_args, arguments, base_weights=weights, preference_data=preferences.identity),
    )  # fmt: skip
    if result := stage.begin():
        log.info("reward model finished already: %s", output / "model")
        return result
    peft_config = lora_config(model_args, model, arguments.lora_top_layers)
    described = {
        "base_model": model,
        "base_weights": weights,
        "data": data_name(data_folder(arguments.data_dir)),
        "pairs": len(training),
        "held_out_pairs": len(held_out),
        "unreadable_pairs": preferences.unreadable,
        "seed": config.seed,
        "git_commit": git_commit(),
    }
    trainer = _trainer(model, config, model_args, training, held_out, peft_config)
    described["model_params"] = base_parameters(trainer.accelerator.unwrap_model(trainer.model))
    tracking = _start_wandb(config, stage, described)
    resumed = last_checkpoint(output, "trainer_state.json")
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    result = {**described, **measure(trainer, len(held_out))}
    if tracking is not None:
        tracking.summary.update({k: v for k, v in result.items() if isinstance(v, float)})
        tracking.finish()
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        _save_merged(trainer, output / "model")
        stage.finish(result)
    return result


def _start_wandb(config: Any, stage: Stage, described: dict[str, Any]) -> Any:
    """The training's own run on the main process, where report_to has wandb."""
    from accelerate import PartialState

    if "wandb" not in config.report_to or not PartialState().is_main_process:
        return None
    from eval import tracking

    name = config.run_name or tracking.policy_name(stage.folder, stage.settings)
    return tracking.start_training_run(stage.folder, name, f"train-{name}", {**described, "algorithm": "reward"})


def _trainer(model: str, config: Any, model_args: Any, training: list, held_out: list, peft_config: Any) -> Any:
    from datasets import Dataset
    from trl import RewardTrainer

    from eval.checkpoints import load_tokenizer
    from reward.model import check_chat_template

    config.model_init_kwargs = {
        "dtype": model_args.dtype or "float32",
        "revision": model_args.model_revision,
        **(config.model_init_kwargs or {}),
    }
    tokenizer = load_tokenizer(model, model_args.model_revision)
    check_chat_template(tokenizer, model)
    trainer: Any = RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([p.row() for p in training]),
        eval_dataset=Dataset.from_list([p.row() for p in held_out]),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    for name, n, dataset in (
        ("training", len(training), trainer.train_dataset),
        ("held-out", len(held_out), trainer.eval_dataset),
    ):
        if len(dataset) < n:
            log.warning(
                "%d of %d %s pairs are longer than max_length %s and left out",
                n - len(dataset),
                n,
                name,
                config.max_length,
            )
    return trainer


def measure(trainer: Any, n_pairs: int) -> dict[str, Any]:
    """Accuracy on the held-out pairs with Wilson's 95% interval, and the mean margin in reward units."""
    from scipy.stats import binomtest

    metrics = trainer.evaluate()
    n = len(trainer.eval_dataset)
    right = round(metrics["eval_accuracy"] * n)
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": right / n,
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "scored_pairs": n,
        "left_out_pairs": n_pairs - n,
        "margin": float(metrics["eval_margin"]),
    }


def _save_merged(trainer: Any, folder: Path) -> None:
    """The adapter merged into its base, in a folder that needs nothing else."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.config.pad_token_id = trainer.processing_class.pad_token_id
    merged.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from trl import ModelConfig, RewardConfig

    arguments, config, model_args = parse([RewardArguments, RewardConfig, ModelConfig], sys.argv[1:], "reward.train")
    result = train(arguments, config, model_args)
    print(
        f"held-out pairwise accuracy {result['accuracy']:.3f} "
        f"[{result['accuracy_low']:.3f}, {result['accuracy_high']:.3f}] on {result['scored_pairs']} pairs\n"
        f"reward model: {Path(config.output_dir) / 'model'}"
    )


if __name__ == "__main__":
    run_main(main)
