"""Saves checkpoints exactly at the scheduled steps, and evaluates each when it is saved, without changing the training.

A checkpoint folder is complete if it has policy.json, which is written last, atomically, after every process has
written its part. A checkpoint contains adapter or weights, optimizer, scheduler and random states, and the tokenizer
with its chat template. policy.json has the resolved settings, commit, versions and checksums of all inputs.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.files import write_json
from eval.models.checkpoints import POLICY_FILE, adapter_id, weights_id
from eval.models.target import RLHF_STEP, numbered_checkpoints, step_folder
from eval.runner.evaluate import evaluate
from eval.runner.plan import Plan
from eval.runner.store import Busy, Store
from eval.scorers.local.transformers import TransformersScorer
from eval.views.model_card import write_card
from reward.stage import OPTIMIZER_STATES, last_checkpoint, train_or_restore

log = logging.getLogger(__name__)

TRAINING_STATES = (*OPTIMIZER_STATES, "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""Files that resuming from a checkpoint needs beside the weights."""
WhenSaved = Callable[[Any, Any, Path, int], None]
"""Called with the model (in evaluation mode), the tokenizer, the checkpoint's folder and its step."""


@contextmanager
def preserve_training_state(model: torch.nn.Module) -> Iterator[None]:
    """Restores random states and train/eval modes after the block, so that training stays bit-identical."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def computing_as_saved(model: Any) -> Iterator[None]:
    """Within the block, the model computes as one that is loaded from its checkpoint: in the dtype of its weights.

    It removes the autocast that accelerate puts around the forward passes in mixed precision.
    """
    patched = {name: model.__dict__[name] for name in ("forward", "_original_forward") if name in model.__dict__}
    if "_original_forward" in patched:
        model.forward = patched["_original_forward"]
    try:
        yield
    finally:
        if "_original_forward" in patched:
            model.forward = patched["forward"]


class ScheduledCheckpoints(TrainerCallback):
    """Saves at the scheduled steps; step 0 is the policy before training.

    policy: the content of policy.json for every checkpoint, including checkpoint_steps. when_saved: called once for
    each checkpoint, in this order. keep: which checkpoints keep the optimizer's state, "last" or "all".
    """

    def __init__(
        self, trainer: Any, policy: dict[str, Any], when_saved: Sequence[WhenSaved] = (), keep: str = "last"
    ) -> None:
        self.trainer = trainer
        self.steps = set(policy["checkpoint_steps"])
        self.policy = policy
        self.when_saved = list(when_saved)
        self.keep = keep

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves and evaluates step 0; after a resume, evaluates a checkpoint that a kill left unevaluated."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.global_step == 0 and 0 in self.steps and not is_complete(folder):
            with preserve_training_state(kwargs["model"]):
                self.trainer.save_model(str(folder))  # on every process: a sharded model needs all of them
        if state.global_step in self.steps:
            self._complete(folder, state, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the Trainer save after this step if it is scheduled."""
        control.should_save = state.global_step in self.steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks the checkpoint complete and evaluates it."""
        self._complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", state, kwargs)

    def _complete(self, folder: Path, state: Any, kwargs: dict[str, Any]) -> None:
        from accelerate import PartialState

        PartialState().wait_for_everyone()  # every process must have written its random state
        if state.is_world_process_zero:
            with preserve_training_state(kwargs["model"]):
                if not is_complete(folder):
                    write_json(folder / POLICY_FILE, {**self.policy, "rlhf_step": state.global_step})
                if self.keep == "last":
                    drop_optimizer_states(folder)
                for action in self.when_saved:
                    action(kwargs["model"], kwargs["processing_class"], folder, state.global_step)
        PartialState().wait_for_everyone()


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint has all its files. A complete one is never rewritten: results refer to these very files."""
    return (checkpoint / POLICY_FILE).is_file()


def resume_from(output: Path) -> Path | None:
    """The checkpoint from which a training resumes; None if it begins.

    Raises:
        InputError: checkpoints after step 0 are complete, but none has what training needs. Training would begin again
            and replace them.
    """
    if resumed := last_checkpoint(output, POLICY_FILE):
        return resumed
    steps = sorted(step for step, path in numbered_checkpoints(output).items() if step and is_complete(path))
    if steps:
        raise InputError(
            f"{output} has complete checkpoints (steps {', '.join(map(str, steps))}) and none that can be gone on from "
            f"(trainer_state.json and one of {', '.join(OPTIMIZER_STATES)}); choose another --output_dir or remove the "
            "folder"
        )
    return None


def train_or_finish_checkpoint(
    trainer: Any, resumed: Path | None, checkpoints: ScheduledCheckpoints, ended: bool = False
) -> None:
    """Trains, from the checkpoint `resumed` if there is one.

    From a checkpoint of the last step, or one with which training `ended`, it only completes what a kill left undone.
    """
    if not train_or_restore(trainer, resumed, ended):
        callback_arguments = {"model": trainer.model, "processing_class": trainer.processing_class}
        checkpoints.on_train_begin(trainer.args, trainer.state, trainer.control, **callback_arguments)


def drop_optimizer_states(newest: Path) -> None:
    """Removes the optimizer's states of checkpoints before `newest`, the complete one that training resumes from."""
    last = int(newest.name.rpartition("-")[2])
    for step, folder in numbered_checkpoints(newest.parent).items():
        if step < last:
            for path in (match for pattern in TRAINING_STATES for match in folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


class CheckpointEvaluator:
    """Evaluates the model in memory as its latest checkpoint, into OUTPUT/eval/step-N, and writes the model card."""

    def __init__(self, config: EvaluationConfig, planned: Plan, output: Path, policy: dict[str, Any]) -> None:
        self.config = config
        self.planned = planned
        self.output = output
        self.policy = policy

    def __call__(self, model: Any, tokenizer: Any, folder: Path, step: int) -> None:
        adapted = (folder / "adapter_config.json").is_file()
        provenance = {
            "model": self.policy["model"] if adapted else str(folder),
            "revision": self.policy["revision"] if adapted else None,
            "weights": self.policy["base_weights"] if adapted else weights_id(str(folder)),
            "adapter": str(folder) if adapted else None,
            "adapter_weights": adapter_id(str(folder)) if adapted else None,
            "model_params": self.policy["model_params"],
            "step_name": self.policy.get("step_name", RLHF_STEP),
        }
        scorer = TransformersScorer(
            model, tokenizer, self.config.format, self.config.most_batch_tokens, self.config.sample_batch,
            system_turn=self.config.system_turn,
        )  # fmt: skip
        results = self.output / "eval" / step_folder(step)
        try:
            with computing_as_saved(model):
                evaluate(scorer, self.config, results, provenance, step, self.planned)
        except Busy:
            log.warning("step %d is being evaluated by another process: left to it", step)
            return
        summary = Store(results).summary()
        assert summary is not None  # evaluate wrote it
        write_card(folder, summary)
