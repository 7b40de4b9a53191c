"""Which steps are checkpoints. One RLHF step is one optimizer update (the Trainer's global_step)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from eval.errors import InputError

log = logging.getLogger(__name__)

PAPER = (0, 50, *range(100, 1001, 100))
"""Ganguli et al. 2023, section 3.1: 50 and 100, 200 ... 1000 RLHF steps. Step 0, before RLHF, is added."""


def check_schedule(requested: Sequence[str | int], config: Any) -> list[int]:
    """The checkpoint steps in order: those `requested`, or for "paper" those of PAPER up to max_steps.

    A checkpoint inside a generation buffer (completions that serve several updates) could not be resumed exactly:
    step * gradient_accumulation_steps must be a multiple of steps_per_generation * num_iterations.

    Raises:
        InputError: a step cannot be a checkpoint of this run. This is checked before training.
    """
    if not requested:
        raise InputError("checkpoint_steps is empty; list at least one step, such as 0, or say paper")
    if config.max_steps < 1:
        raise InputError(f"max_steps must be set to the last step, it is {config.max_steps}")
    if getattr(config.save_strategy, "value", config.save_strategy) != "no":
        raise InputError(
            f"save_strategy must be 'no', not '{config.save_strategy}': checkpoint_steps says when to save"
        )
    steps = parse_steps(requested, config.max_steps)
    buffer = getattr(config, "steps_per_generation", 1) * getattr(config, "num_iterations", 1)
    for step in steps:
        if step < 0:
            raise InputError(f"checkpoint step {step} is negative; steps count from 0")
        if step > config.max_steps:
            raise InputError(
                f"checkpoint step {step} is above the last step, max_steps {config.max_steps}; "
                "raise max_steps or remove it from checkpoint_steps"
            )
        if step * config.gradient_accumulation_steps % buffer:
            raise InputError(
                f"checkpoint step {step} lies inside a generation buffer of {buffer} micro-steps; choose steps so that "
                "step * gradient_accumulation_steps is a multiple of steps_per_generation * num_iterations"
            )
    if config.max_steps not in steps:
        log.warning(
            "the last step, %d, is not in checkpoint_steps: the policy at the end is not kept", config.max_steps
        )
    return steps


def parse_steps(requested: Sequence[str | int], last: int) -> list[int]:
    """Turns checkpoint_steps into steps in order. Raises InputError for anything but numbers or "paper"."""
    if list(requested) == ["paper"]:
        return [step for step in PAPER if step <= last]
    try:
        return sorted({int(step) for step in requested})
    except ValueError as error:
        raise InputError(
            f"checkpoint_steps must be numbers, or the one word paper, not '{' '.join(map(str, requested))}'"
        ) from error


def per_step(config: Any, processes: int) -> dict[str, int]:
    """The size of one optimizer update: {"samples_per_step": answers, "prompts_per_step": prompts}."""
    rows = config.per_device_train_batch_size * processes * config.gradient_accumulation_steps
    if not hasattr(config, "num_generations"):  # online DPO's rows are prompts, with two answers each
        return {"samples_per_step": 2 * rows, "prompts_per_step": rows}
    rows //= config.num_iterations
    return {"samples_per_step": rows, "prompts_per_step": rows // config.num_generations}
