"""Which RLHF steps are checkpoints. One RLHF step is one optimizer update (the Trainer's global_step)."""

from __future__ import annotations

import logging
from typing import Any

from eval.config import InputError

log = logging.getLogger(__name__)


def check_schedule(steps: list[int], config: Any) -> list[int]:
    """The steps in order. Raises InputError, before training, for a step that cannot be a checkpoint of this run.

    A checkpoint inside a generation buffer (completions that serve several updates) could not be resumed exactly:
    step * gradient_accumulation_steps must be a multiple of steps_per_generation * num_iterations.
    """
    if not steps:
        raise InputError("checkpoint_steps is empty; list at least one step, such as 0")
    if config.max_steps < 1:
        raise InputError(f"max_steps must be set to the last RLHF step, it is {config.max_steps}")
    if getattr(config.save_strategy, "value", config.save_strategy) != "no":
        raise InputError(
            f"save_strategy must be 'no', not '{config.save_strategy}': checkpoint_steps says when to save"
        )
    buffer = config.steps_per_generation * config.num_iterations
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
    return sorted(set(steps))
