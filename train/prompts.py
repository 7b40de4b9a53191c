"""The RL prompts: the human sides of the preference pairs, each once."""

from __future__ import annotations

import logging
from typing import Any

from eval.config import InputError
from reward.dialogues import Pair

log = logging.getLogger(__name__)


def rl_prompts(pairs: list[Pair], tokenizer: Any, max_tokens: int) -> list[dict[str, Any]]:
    """Distinct prompts of at most max_tokens tokens in the chat template, in file order.

    Raises InputError where none is left. TRL has no length limit for prompts, so it is applied here and counted.
    """
    distinct = {repr(p.prompt): p.prompt for p in pairs}
    kept = []
    for prompt in distinct.values():
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        if len(tokenizer(text, add_special_tokens=False).input_ids) <= max_tokens:
            kept.append({"prompt": prompt})
    if len(kept) < len(distinct):
        log.warning(
            "%d of %d RL prompts are longer than %d tokens and left out",
            len(distinct) - len(kept),
            len(distinct),
            max_tokens,
        )
    if not kept:
        raise InputError(f"no RL prompt has at most {max_tokens} tokens; raise max_prompt_tokens")
    return kept
