"""Runs of planted models: sizes x steps x seeds, evaluated and laid out as trainings lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.config import EvaluationConfig
from eval.files import write_json
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.validation.oracle import Oracle, Preferences


def oracle_run(
    folder: Path,
    params: int,
    preferences: Sequence[tuple[int, Preferences]],
    config: EvaluationConfig,
    seed: int = 0,
    algorithm: str = "rloo",
    **described: Any,
) -> Path:
    """A training's folder with the evaluation of its checkpoints: (step, what is planted there)."""
    run = {"policy": folder.name, "algorithm": algorithm, "model": "oracle", "model_params": params, "seed": seed}
    write_json(folder / "run.json", run | described)
    policy = {"model": "oracle", "model_params": params, "weights": "oracle", "tokenizer_sha256": "", "adapter": None}
    for step, planted in preferences:
        planned = plan(config)
        scorer = Oracle(planted, seed, planned.questions)
        evaluate(scorer, config, folder / "eval" / f"step-{step:06d}", policy | {"step_name": "RLHF step"}, step)
    return folder
