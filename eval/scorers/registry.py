"""--scorer: which of the scorers asks a checkpoint. Adding one is adding its file, and its line here.

A scorer's module has open_target(target, config, planned) -> Opened, which reads no weights yet: what is done already
is found by what can be known without them.
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
    """A checkpoint that is about to be asked.

    known: what is known of its results without the weights: the policy's provenance, dtype_asked, tokenizer_sha256,
    format, system_turn, scorer. load reads the weights (or reaches the server): the scorer, and the policy's
    provenance as it goes into the results. Both raise InputError for what cannot be asked.
    """

    known: dict[str, Any]
    load: Callable[[], tuple[Scorer, dict[str, Any]]]


def open_target(target: Target, config: ScorerConfig, plan: Plan) -> OpenedTarget:
    """The checkpoint, opened by the scorer that the configuration names."""
    return import_module(SCORERS[config.scorer]).open_target(target, config, plan)
