"""One RL run: the work around TRL's training loop, and the result at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.config import EvaluationConfig
from eval.data.readers import data_folder
from eval.errors import InputError
from eval.files import write_json
from eval.runner.plan import Plan
from eval.tracking.training_log import ALERTS, SAMPLES
from reward.functions import Rewards, build_rewards
from reward.stage import Stage, replace_non_finite
from train.arguments import PolicyArguments
from train.prompts import Prompts


def write_run_files(trainer: Any, output: Path, policy: dict[str, Any], evaluation: EvaluationConfig | None) -> None:
    """Writes run.json and evaluation.json, for programs that watch the run."""
    if not trainer.accelerator.is_main_process:
        return
    write_json(output / "run.json", policy)
    if evaluation is not None:
        resolved = dataclasses.replace(evaluation, data_dir=str(data_folder(evaluation.data_dir).resolve()))
        write_json(output / "evaluation.json", dataclasses.asdict(resolved))


def evaluate_afterwards(trainer: Any, output: Path, evaluation: EvaluationConfig) -> None:
    """Evaluates all checkpoints, one after the other, after moving the trained model to the CPU to free memory."""
    from eval.commands.watch import evaluate_output

    trainer.model.to("cpu")
    evaluate_output(output, evaluation)


class Run:
    """An RL run with all its components built."""

    def __init__(
        self, trainer: Any, stage: Stage, policy: dict[str, Any], arguments: PolicyArguments, end_ids: list[int],
        rewards: Rewards, judges: list[dict[str, Any]], prompts: Prompts,
    ) -> None:  # fmt: skip
        self.trainer = trainer
        self.stage = stage
        self.policy = policy
        self.arguments = arguments
        self.end_ids = end_ids
        self.rewards = rewards
        self.judges = judges
        self.prompts = prompts
        self.output = stage.folder
        self.is_main = trainer.accelerator.is_main_process

    def run(self, evaluation: EvaluationConfig | None, planned: Plan | None, adaptive: bool) -> dict[str, Any]:
        """Trains, and returns the result as it was written.

        Args:
            planned: the evaluation's plan if each checkpoint is evaluated in this process, else None.
        """
        from reward.training_run import track_on_wandb
        from train.callbacks import ScheduledCheckpoints, resume_from, train_or_finish_checkpoint
        from train.console import show_readable_log

        resumed = resume_from(self.output)
        write_run_files(self.trainer, self.output, self.policy, evaluation)
        saved = self._checkpoint_actions(evaluation, planned)
        with track_on_wandb(self.trainer, self.output, self.policy["policy"], self.policy, resumed):
            self._watch_budget(adaptive)
            keep = self.arguments.keep_optimizer_states
            checkpoints = ScheduledCheckpoints(self.trainer, self.policy, saved, keep)
            self.trainer.add_callback(checkpoints)
            show_readable_log(self.trainer, self.output)
            train_or_finish_checkpoint(self.trainer, resumed, checkpoints, self._stopped_at_alert(resumed))
            self.trainer.accelerator.wait_for_everyone()
            result = self._result()
            if self.is_main:
                if evaluation is not None and self.arguments.evaluate == "afterwards":
                    evaluate_afterwards(self.trainer, self.output, evaluation)
                self._finish(result)
        self.trainer.accelerator.wait_for_everyone()
        return result

    def _watch_budget(self, adaptive: bool) -> None:
        from train.budget import AdaptiveKL, Alerts

        if self.arguments.kl_target and adaptive:
            self.trainer.add_callback(AdaptiveKL(self.trainer, self.arguments.kl_target))
        self.trainer.add_callback(Alerts(self.arguments, self.output / ALERTS, self._latest_texts))

    def _stopped_at_alert(self, resumed: Path | None) -> bool:
        """Whether the run had stopped at an alert, with the checkpoint `resumed`, before it was killed."""
        from train.budget import alerted_steps

        alerted = alerted_steps(self.output / ALERTS) if self.arguments.stop_on_alert and resumed else set()
        return resumed is not None and int(resumed.name.rpartition("-")[2]) in alerted

    def _latest_texts(self) -> tuple[list[str], list[str]]:
        """The last step's (prompts' last turns, answers)."""
        first: Any = self.rewards.functions[0]
        prompts, answers = first.latest
        return [p[-1]["content"] for p in prompts], [a[-1]["content"] for a in answers]

    def _checkpoint_actions(self, evaluation: EvaluationConfig | None, planned: Plan | None) -> list[Any]:
        from train.callbacks import CheckpointEvaluator

        sharded = getattr(self.trainer, "is_fsdp_enabled", False) or getattr(
            self.trainer, "is_deepspeed_enabled", False
        )
        requested = [*(["evaluation"] if planned else []), *(["sample_prompts"] if self.prompts.samples else [])]
        if sharded and requested:
            raise InputError(
                f"{' and '.join(requested)} at each checkpoint need the whole model in a process, and FSDP or "
                "DeepSpeed shard it; add --sample_prompts 0, and --evaluate watch or afterwards"
            )
        actions: list[Any] = []
        if self.prompts.samples:
            actions.append(self._sampler())
        if evaluation is not None and planned is not None:
            actions.append(CheckpointEvaluator(evaluation, planned, self.output, self.policy))
        return actions

    def _sampler(self) -> Callable[[Any, Any, Path, int], None]:
        from train.samples import Samples, Sampling

        config = self.trainer.args
        judges = Rewards([], [], [])
        if self.judges:
            judges = build_rewards(self.judges, str(config.device), self.end_ids, self.arguments.reward_dtype)
        options = {name: getattr(config, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
        ends = tuple(self.end_ids)
        sampling = Sampling(config.max_completion_length, config.temperature, ends, config.seed, options)
        samples = Samples(
            self.output / SAMPLES, self.prompts.samples, self.trainer.processing_class, sampling, self.rewards,
            judges, self.trainer.ref_model,
        )  # fmt: skip

        def answer(model: Any, tokenizer: Any, folder: Path, step: int) -> None:
            samples(model, step)

        return answer

    def _result(self) -> dict[str, Any]:
        from train.samples import last_summary

        state = self.trainer.state
        steps = [entry for entry in state.log_history if "samples" in entry]
        result = {
            **self.policy,
            "steps": state.global_step,
            "stopped": "at an alert" if state.global_step < self.trainer.args.max_steps else None,
            "samples": last_summary(self.output / SAMPLES),
            "log": steps,
        }
        return replace_non_finite(result, self.stage.result_path.stem)

    def _finish(self, result: dict[str, Any]) -> None:
        from train.figures import training_figure

        if result["log"]:
            training_figure(result, self.output / "training.png")
        self.stage.finish(result)
