"""Supervised fine-tuning: accelerate launch -m train.sft --config configs/sft/answer-format.yaml

Uses TRL's SFTTrainer on prompts and completions, with the loss of the completion alone; in full, with LoRA, or with
LoRA on a quantised model (QLoRA, Dettmers et al. 2023). A checkpoint is kept at every step of checkpoint_steps (empty:
at the end only) and, with an evaluation, evaluated when saved. Steps are training steps, not RLHF steps.

OUTPUT/model     the merged, self-contained model, from which RL can start
OUTPUT/sft.json  training data and settings, and the loss and exact match on held-out examples before and after; written
                 last
The same command resumes after a kill, and does nothing if all is done.
"""

from __future__ import annotations

import gc
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.cli.parser import parse
from eval.config import EvaluationConfig
from eval.errors import InputError, run_main
from eval.files import prepare_output, read_json
from eval.models.target import TRAINING_STEP
from eval.runner.plan import Plan, plan
from eval.runner.provenance import command, git_commit, machine, versions
from eval.scorers.local.memory import keep_freed_memory
from reward.stage import Stage, build_trainer, check_batches, check_tokenizer_options, lock_training_folder, settings_of
from train.arguments import CheckpointOptions
from train.chat_template import EndTokens
from train.examples import Example
from train.schedule import parse_steps

log = logging.getLogger(__name__)
ALGORITHM = "sft"


@dataclass
class SFTArguments(CheckpointOptions):
    """Options of this project beside TRL's SFTConfig and ModelConfig."""

    checkpoint_steps: list[str] = field(
        default_factory=list, metadata={"help": "training steps at which a checkpoint is kept; none = at the end"}
    )

    examples: list[str] | None = field(
        default=None,
        metadata={"help": "files or folders of prompts and completions; default: data_dir/sft, else the shipped set"},
    )
    held_out: float = field(default=0.1, metadata={"help": "share of the examples held out, by prompt"})
    lora_top_layers: int | None = field(default=None, metadata={"help": "put LoRA on the last N layers only"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must be between 0 and 1, not {self.held_out}")


def train(arguments: SFTArguments, config: Any, model_args: Any) -> dict[str, Any]:
    """Checks everything, trains, measures the saved model, and returns the content of OUTPUT/sft.json."""
    from reward.training_run import check_training
    from train.checks import check_options

    check_options(arguments, config, model_args)
    output = Path(config.output_dir)
    check_training(config.report_to, config.run_name)
    if config.device.type == "cpu":
        keep_freed_memory()
    evaluation = arguments.evaluation_config()
    planned = plan(evaluation) if evaluation else None
    prepare_output(output)
    with lock_training_folder(output):
        return _train_locked(arguments, config, model_args, evaluation, planned)


def _train_locked(
    arguments: SFTArguments, config: Any, model_args: Any, evaluation: EvaluationConfig | None, planned: Plan | None
) -> dict[str, Any]:
    """The remaining checks and the training, with the folder locked."""
    from accelerate import PartialState

    from eval.data.readers import data_folder, data_name
    from eval.models.checkpoints import base_parameters, weights_id
    from eval.tracking.ledger import training_policy
    from reward.model import lora_config
    from reward.training_run import publish_finished, track_on_wandb
    from train.callbacks import resume_from
    from train.chat_template import policy_tokenizer
    from train.checks import quantisation
    from train.examples import fit_examples, read_examples, split_examples
    from train.policy import make_room, starting_model

    output = Path(config.output_dir)
    model, merged = starting_model(model_args, output, supervised=True)
    tokenizer, ends = policy_tokenizer(model, model_args.model_revision, supervised=True)
    examples = read_examples(arguments.examples, arguments.data_dir)
    fitting, left_out = fit_examples(examples.examples, tokenizer, config.max_length)
    training, held_out = split_examples(fitting, arguments.held_out, config.seed)
    steps = check_steps(arguments.checkpoint_steps, config, len(training))
    make_room(output, steps, arguments, model_args, model, merged=True)
    peft_config = lora_config(model_args, model, arguments.lora_top_layers)
    hashes = {"base_weights": weights_id(model, model_args.model_revision), "example_data": examples.identity}
    settings = settings_of(
        config, model_args, arguments, processes=config.world_size, **hashes, **ends.settings_fields()
    )
    stage = Stage(output, "sft.json", settings)
    if result := stage.begin():
        log.info("fine-tuning finished already: %s", output / "model")
        publish_finished(output, config.report_to)
        return result
    trainer = build_trainer(lambda: _trainer(model, config, model_args, tokenizer, training, peft_config))
    ends.save_to(trainer.accelerator.unwrap_model(trainer.model))
    stage.record()
    policy = {
        "policy": training_policy(output, stage.settings, config.run_name),
        "algorithm": ALGORITHM,
        "step_name": TRAINING_STEP,
        "model": model,
        "revision": model_args.model_revision,
        "merged_from": merged,
        "dtype": model_args.dtype or "float32",
        "quantisation": quantisation(model_args),
        "model_params": base_parameters(trainer.accelerator.unwrap_model(trainer.model)),
        "data": "named files" if arguments.examples else data_name(data_folder(arguments.data_dir)),
        "examples": len(training),
        "held_out_examples": len(held_out),
        "unreadable_examples": examples.unreadable,
        "left_out": left_out,
        "seed": config.seed,
        "git_commit": git_commit(),
        "checkpoint_steps": steps,
        **ends.policy_fields(tokenizer),
        **hashes,
        "settings": stage.settings,
        "result": stage.result_path.name,
    }
    resumed = resume_from(output)
    with track_on_wandb(trainer, output, policy["policy"], policy, resumed):
        result = _run(trainer, stage, policy, evaluation, planned, arguments, resumed)
        if PartialState().is_main_process:
            _save_merged(trainer, output, quantisation(model_args) is not None, ends)
            del trainer
            gc.collect()
            measured = _measure_held_out(output / "model", model, model_args, str(config.device), held_out, ends.ids)
            stage.finish(result | measured)
    PartialState().wait_for_everyone()
    return read_json(stage.result_path) or {}


def check_steps(requested: Sequence[str | int], config: Any, n_examples: int) -> list[int]:
    """The checkpoint steps in order; only the last step if none is requested. Raises InputError for impossible ones."""
    if getattr(config.save_strategy, "value", config.save_strategy) != "no":
        raise InputError(
            f"save_strategy must be 'no', not '{config.save_strategy}': checkpoint_steps says when to save"
        )
    check_tokenizer_options(config)
    if config.packing and config.max_steps < 1:
        raise InputError("packing needs max_steps, since how many sequences it makes is not known before")
    if not config.packing:  # packing makes other rows of them
        check_batches(n_examples, config)
    last = config.max_steps
    if last < 1:
        batch, rounded = config.per_device_train_batch_size * config.world_size, math.ceil
        if config.dataloader_drop_last:
            rounded = math.floor
        updates = math.ceil(rounded(n_examples / batch) / config.gradient_accumulation_steps)
        last = math.ceil(config.num_train_epochs * updates)
    steps = parse_steps(requested, last)
    for step in steps:
        if not 0 <= step <= last:
            raise InputError(f"checkpoint step {step} is not one of this run's, 0 to {last}; change checkpoint_steps")
    return steps or [last]


def _trainer(
    model: str, config: Any, model_args: Any, tokenizer: Any, training: list[Example], peft_config: Any
) -> Any:
    from datasets import Dataset
    from trl import SFTTrainer

    from train.policy import init_kwargs

    config.model_init_kwargs = init_kwargs(model_args, config.model_init_kwargs)
    trainer: Any = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([e.row() for e in training]),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    if not config.packing and len(trainer.train_dataset) != len(training):
        raise RuntimeError(f"TRL dropped {len(training) - len(trainer.train_dataset)} examples that fit")
    return trainer


def _run(
    trainer: Any, stage: Stage, policy: dict[str, Any], evaluation: EvaluationConfig | None, planned: Plan | None,
    arguments: SFTArguments, resumed: Path | None,
) -> dict[str, Any]:  # fmt: skip
    from train.callbacks import CheckpointEvaluator, ScheduledCheckpoints, train_or_finish_checkpoint
    from train.run import evaluate_afterwards, write_run_files

    output = stage.folder
    write_run_files(trainer, output, policy, evaluation)
    saved = []
    if evaluation is not None and planned is not None and arguments.evaluate == "in_process":
        saved = [CheckpointEvaluator(evaluation, planned, output, policy)]
    keep = arguments.keep_optimizer_states
    checkpoints = ScheduledCheckpoints(trainer, policy, saved, keep)
    trainer.add_callback(checkpoints)
    train_or_finish_checkpoint(trainer, resumed, checkpoints)
    if evaluation is not None and arguments.evaluate == "afterwards" and trainer.accelerator.is_main_process:
        evaluate_afterwards(trainer, output, evaluation)
    trainer.accelerator.wait_for_everyone()
    return {
        **policy,
        "steps": trainer.state.global_step,
        "resumed_from": resumed.name if resumed else None,
        "command": command(),
        "versions": versions(),
        "machine": machine(),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


def _save_merged(trainer: Any, output: Path, quantised: bool, ends: EndTokens) -> None:
    """Merges the adapter into its base and saves the model. A quantised base is merged into its original weights."""
    from eval.models.checkpoints import load_checkpoint

    model = trainer.accelerator.unwrap_model(trainer.model)
    if quantised:
        model.save_pretrained(output / "adapter")
        name, options = model.peft_config["default"].base_model_name_or_path, trainer.args.model_init_kwargs
        model = load_checkpoint(
            name, str(output / "adapter"), options["revision"], options["dtype"], "cpu", adapter_base_differs=True
        ).model
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    ends.save_to(merged)  # a quantised model's base was loaded anew, without them
    merged.save_pretrained(output / "model")
    trainer.processing_class.save_pretrained(output / "model")


def _measure_held_out(
    folder: Path, start: str, model_args: Any, device: str, held_out: list[Example], end_ids: Sequence[int]
) -> dict[str, Any]:
    """Measures the held-out examples with the model that training started from, and with the saved one."""
    from eval.models.checkpoints import load_checkpoint, load_tokenizer
    from train.held_out import measure

    revision, dtype = model_args.model_revision, model_args.dtype or "float32"
    before = load_checkpoint(start, revision=revision, dtype=dtype, device=device)
    tokenizer = load_tokenizer(str(folder))
    metrics = {"before": measure(before.model, tokenizer, held_out, end_ids)}
    del before
    after = load_checkpoint(str(folder), device=device)
    metrics["after"] = measure(after.model, tokenizer, held_out, end_ids)
    if not metrics["after"]["finished"]:
        log.warning(
            "no answer of %s to %d held-out prompts ended within %d tokens: it has not learned to stop, and RL from it "
            "would be cut off at every step; train longer or on more examples", folder, metrics["after"]["answers"],
            metrics["after"]["answer_tokens"],
        )  # fmt: skip
    return {"model_weights": after.provenance["weights"], "held_out": metrics}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from accelerate import PartialState
    from trl import ModelConfig, SFTConfig

    arguments, config, model_args = parse([SFTArguments, SFTConfig, ModelConfig], sys.argv[1:], "train.sft")
    result = train(arguments, config, model_args)
    if not PartialState().is_main_process:
        return
    print(summary(result))
    print(f"model: {Path(config.output_dir) / 'model'}")


def summary(result: dict[str, Any]) -> str:
    """A line about the held-out examples before and after training."""
    before, after = result["held_out"]["before"], result["held_out"]["after"]
    losses = ["not finite" if part["loss"] is None else f"{part['loss']:.4f}" for part in (before, after)]
    return (
        f"{result['steps']} training steps on {result['examples']} examples; on {after['n']} held-out ones: loss per "
        f"token {losses[0]} -> {losses[1]}, completed to the letter {before['exact_match']:.3f} -> "
        f"{after['exact_match']:.3f}; of {after['answers']} greedy answers, share that end by themselves "
        f"{before['finished']:.3f} -> {after['finished']:.3f}"
    )


if __name__ == "__main__":
    run_main(main)
