"""Trains a reward model from preference pairs: accelerate launch -m reward.train --config configs/demo/reward.yaml

Uses TRL's RewardTrainer (Bradley-Terry), with LoRA or in full, after the head was fitted on the frozen model
(reward.head). Pairs are split by prompt. Accuracy with intervals, calibration and length bias are measured on the
held-out pairs with the saved model.

OUTPUT/model           the merged, self-contained reward model; reward_model.json in it describes how it reads a
                       dialogue, and training_prompts.json (hashes) lets RL leave these prompts out
OUTPUT/held_out.jsonl  every held-out pair with its scores and lengths
OUTPUT/reward.json     training data, settings and quality; written last
The same command resumes after a kill, and does nothing if all is done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.cli.parser import parse
from eval.errors import InputError, run_main
from eval.files import prepare_output, read_json, write_json, write_text
from reward.dialogues import Pair
from reward.preferences import check_share
from reward.stage import (
    Stage,
    build_trainer,
    check_batches,
    check_tokenizer_options,
    check_trainer,
    last_checkpoint,
    lock_training_folder,
    settings_of,
    train_or_restore,
)

log = logging.getLogger(__name__)
HEADS = ("fitted", "random")


@dataclass
class RewardArguments:
    """Options of this project beside TRL's RewardConfig and ModelConfig."""

    preferences: list[str] | None = field(
        default=None,
        metadata={"help": "files, folders or hub ids (Anthropic/hh-rlhf:harmless-base); default: data_dir/preferences"},
    )
    preference_label: str = field(
        default="better", metadata={"help": "which of PKU-SafeRLHF's two labels decides: better or safer"}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder with preferences/; default $SELFCORRECT_DATA or the small set"}
    )
    prompt_share: list[float] = field(
        default_factory=lambda: [0.0, 1.0],
        metadata={"help": "the part of the prompts that is used, from 0 to 1; shares apart have no prompt in common"},
    )
    held_out: float = field(
        default=0.2, metadata={"help": "share of each subset held out, by prompt, to measure accuracy"}
    )
    max_pairs: int | None = field(
        default=None, metadata={"help": "train on N pairs only; the held-out pairs stay the same"}
    )
    over_long: str = field(
        default="cut", metadata={"help": "pairs longer than max_length: cut from the left by turns, or refuse"}
    )
    head: str = field(default="fitted", metadata={"help": "fitted on the frozen model before training, or random"})
    lora_top_layers: int | None = field(default=None, metadata={"help": "put LoRA on the last N layers only"})

    def __post_init__(self) -> None:
        check_share(self.prompt_share)
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must be between 0 and 1, not {self.held_out}")
        if self.max_pairs is not None and self.max_pairs < 2:
            raise InputError(f"max_pairs must be at least 2, not {self.max_pairs}")
        if self.head not in HEADS:
            raise InputError(f"head must be {' or '.join(HEADS)}, not {self.head}")


@dataclass
class Clock:
    """Seconds of each stage in this process, without those of a killed one (resumed_from shows that there was one)."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        log.info("%s took %.0f s", name, self.seconds[name])


def train(arguments: RewardArguments, config: Any, model_args: Any) -> dict[str, Any]:
    """Trains and saves the reward model, and measures the saved one.

    Returns:
        The content of reward.json.
    """
    from transformers import AutoModelForSequenceClassification

    from eval.models.checkpoints import weights_mib
    from reward.model import check_model_arguments
    from reward.training_run import check_training

    check_trainer(config)
    check_tokenizer_options(config)
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_args, name):
            raise InputError(f"{name} must be left out: a reward model is trained, saved and used as it is stored")
    if model_args.use_peft and model_args.lora_task_type != "SEQ_CLS":
        raise InputError(f"lora_task_type must be SEQ_CLS for a reward model, not {model_args.lora_task_type}")
    output = Path(config.output_dir)
    check_training(config.report_to, config.run_name)
    model = check_model_arguments(model_args)
    dtype = model_args.dtype or "float32"
    size = weights_mib(model, model_args.model_revision, dtype, AutoModelForSequenceClassification)
    prepare_output(output, needed_mib=round(64 + 2 * size))
    with lock_training_folder(output):
        return _train_locked(arguments, config, model_args, model)


def _train_locked(arguments: RewardArguments, config: Any, model_args: Any, model: str) -> dict[str, Any]:
    """The remaining checks and the training, with the folder locked."""
    from eval.data.readers import data_folder, data_name
    from eval.models.checkpoints import check_model, load_tokenizer, weights_id
    from eval.runner.provenance import command, git_commit, machine, versions
    from reward.model import check_chat_template
    from reward.padding import set_pad_token
    from reward.preferences import fit_pairs, in_share, read_preferences, split_by_prompt
    from reward.training_run import publish_finished

    output, clock = Path(config.output_dir), Clock()
    with clock.stage("reading"):
        tokenizer = load_tokenizer(model, model_args.model_revision)
        check_chat_template(tokenizer, model)
        base = check_model(model, model_args.model_revision)
        new_pad_token = set_pad_token(tokenizer, base, model, config.pad_token)
        preferences = read_preferences(arguments.preferences, arguments.data_dir, arguments.preference_label)
        in_range = in_share(preferences.pairs, arguments.prompt_share)
        pairs, left_out = fit_pairs(in_range, tokenizer, config.max_length, arguments.over_long)
        training, held_out = split_by_prompt(pairs, arguments.held_out, config.seed, arguments.max_pairs)
    check_batches(len(training), config)
    weights = weights_id(model, model_args.model_revision)
    identity = {"base_weights": weights, "preferences": preferences.identity}
    if new_pad_token and config.pad_token is None:  # refuses to resume an earlier version's training
        identity["padded_with"] = tokenizer.pad_token
    settings = settings_of(config, model_args, arguments, processes=config.world_size, **identity)
    stage = Stage(output, "reward.json", settings)
    if result := stage.begin():
        log.info("reward model finished already: %s", output / "model")
        publish_finished(output, config.report_to)
        return result
    description = {
        "base_model": model,
        **identity,
        "data": "named sources" if arguments.preferences else data_name(data_folder(arguments.data_dir)),
        "pairs": len(training),
        "held_out_pairs": len(held_out),
        "held_out_sha256": _sha256(held_out),
        "unreadable_pairs": preferences.unreadable,
        "left_out": left_out,
        "cut_pairs": sum(p.was_cut for p in pairs),
        "prompt_share": arguments.prompt_share,
        "pairs_by_subset": dict(Counter(p.subset for p in training)),
        "max_length": config.max_length,
        "over_long": arguments.over_long,
        "seed": config.seed,
        "git_commit": git_commit(),
        "command": command(),
        "versions": versions(),
        "machine": machine(),
        "settings": stage.settings,
    }
    return _run(stage, description, clock, (training, held_out), tokenizer, (arguments, config, model_args))


def _run(
    stage: Stage, description: dict[str, Any], clock: Clock, pairs: tuple[list[Pair], list[Pair]], tokenizer: Any,
    options: tuple[RewardArguments, Any, Any],
) -> dict[str, Any]:  # fmt: skip
    from accelerate import PartialState

    from eval.models.checkpoints import base_parameters
    from eval.tracking.ledger import policy_name
    from reward.model import load_base
    from reward.scoring import TRAINING_PROMPTS, RewardModel
    from reward.selfcheck import check_pooling
    from reward.training_run import track_on_wandb

    arguments, config, model_args = options
    training, held_out = pairs
    folder = stage.folder / "model"
    resumed = last_checkpoint(stage.folder)
    model = load_base(model_args, config, tokenizer)
    description["model_params"] = base_parameters(model)
    model.to(PartialState().device).eval()
    reader = RewardModel(
        model, tokenizer, None, None, {"reward_model": description["base_model"]}, padding=tokenizer.pad_token_id
    )
    check_pooling(reader)
    if arguments.head == "fitted":
        with clock.stage("head"):
            description["head"] = _fit_or_read_head(reader, training, config, stage.folder, resumed is not None)
    trainer = build_trainer(lambda: _trainer(model, tokenizer, training, options))
    stage.record()
    name = policy_name(stage.folder, stage.settings, readable=config.run_name)
    with track_on_wandb(trainer, stage.folder, name, {**description, "algorithm": "reward"}, resumed) as run:
        with clock.stage("training"):
            train_or_restore(trainer, resumed)
        result = {**description, "steps": trainer.state.global_step, "resumed_from": resumed.name if resumed else None}
        if trainer.accelerator.is_main_process:
            with clock.stage("saving"):
                _save_merged(trainer, folder)
                write_json(folder / TRAINING_PROMPTS, {"origins": sorted({p.origin for p in training})})
            with clock.stage("scoring"):
                result |= _measure(folder, description, held_out, stage.folder / "held_out.jsonl")
            stage.finish(result | {"seconds": clock.seconds})
            if run is not None:
                run.summary(_wandb_summary(result))
    trainer.accelerator.wait_for_everyone()
    return read_json(stage.result_path) or {}


def _fit_or_read_head(reader: Any, training: list[Pair], config: Any, folder: Path, resumed: bool) -> dict[str, Any]:
    """Fits the head on the main process and broadcasts it; its metrics are kept in a file for a restart."""
    from accelerate import PartialState
    from accelerate.utils import broadcast

    from reward.head import fit_head

    state, path = PartialState(), folder / "head.json"
    if resumed:  # the checkpoint contains the head
        return read_json(path) or {}
    if state.is_main_process:
        dialogues = [(p.prompt + p.chosen, p.prompt + p.rejected) for p in training]
        write_json(path, fit_head(reader, dialogues, config.seed))
    state.wait_for_everyone()
    if state.num_processes > 1:
        reader.model.score.weight.data = broadcast(reader.model.score.weight.data)
    return read_json(path) or {}


def _trainer(model: Any, tokenizer: Any, training: list[Pair], options: tuple[RewardArguments, Any, Any]) -> Any:
    from datasets import Dataset
    from trl import RewardTrainer

    from reward.model import lora_config

    arguments, config, model_args = options
    rows = Dataset.from_list([p.row() for p in training])
    if config.train_sampling_strategy != "random":  # the Trainer needs a column of lengths
        config.remove_unused_columns = False
        lengths = [sum(len(m["content"]) for m in (*p.prompt, *p.chosen, *p.rejected)) for p in training]
        rows = rows.add_column(config.length_column_name, lengths)
    trainer: Any = RewardTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(model_args, model_args.model_name_or_path, arguments.lora_top_layers),
    )
    if len(trainer.train_dataset) != len(training):
        raise RuntimeError(f"TRL dropped {len(training) - len(trainer.train_dataset)} pairs that were cut to fit")
    columns = trainer.train_dataset.select_columns(["chosen_ids", "rejected_ids"])
    if any(ids[-1] == tokenizer.pad_token_id for row in columns for ids in row.values()):
        raise InputError(
            f"a dialogue to train on ends with the padding token {tokenizer.pad_token!r}, so that the reward of the "
            "token before would be trained; remove it from the data, or give another --pad_token"
        )
    return trainer


def _save_merged(trainer: Any, folder: Path) -> None:
    """Saves the model with the adapter merged into its base: the folder needs nothing else."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)


def _measure(folder: Path, training_record: dict[str, Any], held_out: list[Pair], rows: Path) -> dict[str, Any]:
    """Scores the held-out pairs with the saved model; writes the scores and the model's description."""
    from reward.quality import as_row, quality
    from reward.scoring import DESCRIPTION, load_reward_model, score_pairs

    about = ("base_model", "base_weights", "preferences", "pairs", "seed", "max_length", "over_long")
    description = {name: training_record[name] for name in about}
    write_json(folder / DESCRIPTION, description)
    scored = score_pairs(load_reward_model(str(folder)), held_out)
    write_text(rows, "".join(json.dumps(as_row(p)) + "\n" for p in scored))
    measured = quality(scored)
    write_json(folder / DESCRIPTION, {**description, **measured})
    return measured


def _wandb_summary(result: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a reward model in W&B's table of runs."""
    metrics = {"reward/expected_calibration_error": result["calibration"]["expected_calibration_error"]}
    parts = {"accuracy": result["accuracy"]["all"]}
    parts |= {f"accuracy/{name}": part for name, part in result["accuracy"]["by_subset"].items()}
    parts |= {f"accuracy_{name}": result["length_bias"][name] for name in ("longer_is_worse", "longer_is_better")}
    for name, part in parts.items():
        metrics |= {
            f"reward/{name}{end}": part[key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
    return metrics


def _sha256(pairs: list[Pair]) -> str:
    """Checksum of pairs. Two reward models with the same checksum were measured on the same pairs."""
    return hashlib.sha256(json.dumps([p.row() for p in pairs]).encode()).hexdigest()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from accelerate import PartialState
    from trl import ModelConfig, RewardConfig

    arguments, config, model_args = parse([RewardArguments, RewardConfig, ModelConfig], sys.argv[1:], "reward.train")
    result = train(arguments, config, model_args)
    if not PartialState().is_main_process:
        return
    for name, part in {**result["accuracy"]["by_subset"], "all": result["accuracy"]["all"]}.items():
        interval = f"{part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"
        print(f"held-out pairwise accuracy, {name}: {interval} on {part['n_pairs']} pairs")
    print(f"reward model: {Path(config.output_dir) / 'model'}")


if __name__ == "__main__":
    run_main(main)
