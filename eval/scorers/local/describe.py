"""A checkpoint whose files are here or in the hub's cache: described and checked, for the scorers that read them."""

from __future__ import annotations

import logging
from typing import Any

from eval.models import checkpoints
from eval.models.checkpoints import Described
from eval.models.prompt_format import Format, choose_format
from eval.models.target import Target
from eval.runner.plan import Plan
from eval.runner.provenance import tokenizer_sha256
from eval.scorers.options import ScorerConfig
from eval.scorers.question_checks import check_questions

log = logging.getLogger(__name__)


def describe(target: Target, config: ScorerConfig) -> tuple[Described, Format, dict[str, Any]]:
    """The checkpoint without its weights, the dialogue format, and Opened.known. Raises InputError."""
    checkpoints.choose_device(config.device)
    described = checkpoints.describe_checkpoint(
        target.model, target.adapter, target.revision, config.dtype, config.adapter_base_differs,
        config.trust_remote_code,
    )  # fmt: skip
    style = choose_format(config.format, described.tokenizer, config.system_turn)
    provenance = {
        **described.provenance,
        "tokenizer_sha256": tokenizer_sha256(described.tokenizer),
        "format": style.name,
        "system_turn": style.system_turn,
        "scorer": config.scorer,
    }
    return described, style, provenance


def check(described: Described, style: Format, target: Target, config: ScorerConfig, plan: Plan) -> None:
    """What is checked before weights are read: that every question can be asked. Raises InputError."""
    if config.format == "auto" and style.name == "paper":
        log.warning("%s: the tokenizer has no chat template, so questions are in the paper's format", target.model)
    check_questions(plan, config, described.tokenizer, style, described.config, target.model)
