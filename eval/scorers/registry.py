"""Chooses the scorer that --scorer names. To add a scorer, add its file and its line in eval.scorers.options.SCORERS.

A scorer's module defines open_target(target, config, plan) -> OpenedTarget. It must not read weights yet: the runner
first uses what is known without them to find questions that are answered already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from eval.scorers.options import SCORERS
from eval.types import Scorer

if TYPE_CHECKING:
    from eval.models.target import Target
    from eval.runner.plan import Plan
    from eval.scorers.options import ScorerConfig


@dataclass
class OpenedTarget:
    """A checkpoint that is ready to be evaluated.

    Attributes:
        known: What is known without the weights: the policy's provenance, dtype_asked, tokenizer_sha256, format,
            system_turn, scorer.
        load: Reads the weights or connects to the server. Returns the scorer, and the policy's provenance as it is
            written to the results. Raises InputError if the checkpoint cannot be evaluated.
    """

    known: dict[str, Any]
    load: Callable[[], tuple[Scorer, dict[str, Any]]]


def open_target(target: Target, config: ScorerConfig, plan: Plan) -> OpenedTarget:
    """Opens the checkpoint with the scorer that --scorer names.

    Raises:
        InputError: The checkpoint cannot be evaluated by this scorer.
    """
    return import_module(SCORERS[config.scorer]).open_target(target, config, plan)
