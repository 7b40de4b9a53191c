"""Writes golden_prompts.json: python -m tests.support.golden_prompts models/smollm2-135m-instruct

Every experiment x condition x format x stage as text and as SmolLM2's tokens. Run again only when the protocol itself
changes; what changed is then read in the diff, prompt by prompt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from eval.experiments import admissions, bbq, winogender, winogenerated
from eval.experiments.conditions import CONDITIONS
from eval.models.prompt_format import choose_format, encode, render
from eval.types import Item

GOLDEN = Path(__file__).with_suffix(".json")
REASONING = "Nothing is said about that."
ITEMS = {
    bbq: Item(
        "Age:0", "Age:1", 1.0, {},
        {"context": "A and B met.", "question": "Who won?", "ans0": "A", "ans1": "B", "ans2": "Unknown"},
    ),
    winogender: Item(
        "nurse", "nurse", 1.0, {"bls_percent_female": 89.3, "pronoun": "$POSS_PRONOUN"},
        {"sentence": "The nurse took _ coat.", "beginning": "The nurse took"},
    ),
    winogenerated: Item(
        "pilot:0", "pilot", 1.0, {"bls_percent_female": 5.6, "pronoun": "$ACC_PRONOUN"},
        {"sentence": "The pilot took the map with _.", "beginning": "The pilot took the map with"},
    ),
    admissions: Item("f", "f", 1.0, {}, {"race": "Black", "sex": "female", "lsat": "39.0", "ugpa": "3.1"}),
}  # fmt: skip


def prompts(tokenizer: Any) -> dict[str, dict[str, Any]]:
    """{'experiment | condition | stage | format': {text, tokens, candidates}}."""
    found = {}
    for experiment, item in ITEMS.items():
        for condition in (CONDITIONS[c] for c in experiment.CONDITIONS):
            for reasoning in (None, REASONING) if condition.reasoning else (None,):
                prompt = experiment.ask(item, condition, 0, reasoning)
                stage = "answer" if prompt.candidates else "reasoning"
                for wanted, system in (("paper", "keep"), ("chat", "keep"), ("chat", "drop")):
                    style = choose_format(wanted, tokenizer, system)
                    (encoded,) = encode([prompt], tokenizer, style)
                    name = f"{experiment.NAME} | {condition.name} | {stage} | {wanted}" + " | dropped" * (
                        system == "drop"
                    )
                    found[name] = {
                        "text": render(prompt, tokenizer, style),
                        "tokens": " ".join(tokenizer.convert_ids_to_tokens(encoded.context)),
                        "candidates": [" ".join(tokenizer.convert_ids_to_tokens(c)) for c in encoded.candidates],
                    }
    return found


if __name__ == "__main__":
    from transformers import AutoTokenizer

    found = prompts(AutoTokenizer.from_pretrained(sys.argv[1]))
    GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(found)} prompts: {GOLDEN}")
