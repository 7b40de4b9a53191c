"""The RL prompts: the distinct prompts of the preference pairs, without those that a reward model was trained on."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.errors import InputError
from eval.files import read_json
from reward.dialogues import Message, Pair
from reward.scoring import TRAINING_PROMPTS

log = logging.getLogger(__name__)


class Prompts(NamedTuple):
    """RL prompts after filtering.

    training: RL samples answers to these. samples: kept out of training, answered at each checkpoint. left_out: number
    of distinct prompts left out, by reason.
    """

    training: list[list[Message]]
    samples: list[list[Message]]
    left_out: dict[str, int]


def rl_prompts(
    pairs: Sequence[Pair], tokenizer: Any, max_tokens: int, seen: set[str], n_samples: int = 0, seed: int = 0
) -> Prompts:
    """Distinct prompts of at most max_tokens tokens in the chat template; those for training in file order.

    TRL has no length limit for prompts, so it is applied here.

    Args:
        seen: Pair.origin of prompts to leave out.
        n_samples: number of the remaining prompts to keep out of training, drawn with `seed`, at most half. Prompts
            with the same start are kept out too.

    Raises:
        InputError: no prompt is left to train on.
    """
    distinct = {repr(p.prompt): p for p in pairs}
    new = [p for p in distinct.values() if p.origin not in seen]
    texts = [tokenizer.apply_chat_template(p.prompt, add_generation_prompt=True, tokenize=False) for p in new]
    fit = [
        p for p, text in zip(new, texts, strict=True)
        if len(tokenizer(text, add_special_tokens=False).input_ids) <= max_tokens
    ]  # fmt: skip
    left_out = {
        "a reward model was trained on them": len(distinct) - len(new),
        f"longer than {max_tokens} tokens": len(new) - len(fit),
    }
    for reason, n in left_out.items():
        if n:
            log.warning("%d of %d RL prompts left out: %s", n, len(distinct), reason)
    if not new:
        raise InputError(
            f"a reward model was trained on all {len(distinct)} RL prompts; give other --preferences, train the reward "
            "model on a part of them (--prompt_share 0 0.8 there and 0.8 1 here), or add --seen_prompts keep"
        )
    if not fit:
        raise InputError(f"no RL prompt has at most {max_tokens} tokens; raise max_prompt_tokens")
    origins = list(dict.fromkeys(p.origin for p in fit))
    kept_out = set(random.Random(seed).sample(origins, min(n_samples, len(origins) // 2)))
    samples = list({p.origin: p.prompt for p in reversed(fit) if p.origin in kept_out}.values())
    if len(samples) < n_samples:
        log.warning("%d prompts are answered at each checkpoint, not %d: there are few", len(samples), n_samples)
    return Prompts([p.prompt for p in fit if p.origin not in kept_out], samples, left_out)


def seen_prompts(rewards: Sequence[dict[str, Any]]) -> set[str]:
    """Pair.origin of all prompts that the reward models of the reward parts (reward.functions) were trained on.

    A reward model trained elsewhere does not record its prompts: a warning names it.
    """
    seen: set[str] = set()
    for model in dict.fromkeys(m["reward_model"] for part in rewards for m in part.get("members", [])):
        recorded = read_json(Path(model) / TRAINING_PROMPTS) if Path(model).is_dir() else None
        if recorded is None:
            log.warning(
                "reward model %s does not say which prompts it was trained on (no %s): RL's may be among them",
                model, TRAINING_PROMPTS,
            )  # fmt: skip
        else:
            seen.update(recorded["origins"])
    return seen
