"""Describes and checks a checkpoint whose files are local or in the hub's cache, for the scorers that read them."""

from __future__ import annotations

import logging
from typing import Any

from eval.models import checkpoints
from eval.models.checkpoints import DescribedCheckpoint
from eval.models.prompt_format import Format, choose_format
from eval.models.target import Target
from eval.runner.plan import Plan
from eval.runner.provenance import tokenizer_sha256
from eval.scorers.options import ScorerConfig
from eval.scorers.question_checks import check_questions

log = logging.getLogger(__name__)


def describe(target: Target, config: ScorerConfig) -> tuple[DescribedCheckpoint, Format, dict[str, Any]]:
    """Describes a checkpoint without reading its weights.

    Returns:
        The description, the dialogue format, and OpenedTarget.known.

    Raises:
        InputError: The device does not exist, or the checkpoint cannot be read.
    """
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


def check(described: DescribedCheckpoint, style: Format, target: Target, config: ScorerConfig, plan: Plan) -> None:
    """Checks, before weights are read, that every question can be encoded.

    Raises:
        InputError: A question cannot be scored with this tokenizer or context length.
    """
    if config.format == "auto" and style.name == "paper":
        log.warning("%s: the tokenizer has no chat template, so questions are in the paper's format", target.model)
    check_questions(plan, config, described.tokenizer, style, described.config, target.model)
