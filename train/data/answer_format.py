"""The shipped examples for train.sft. `python -m train.data.answer_format FILE.jsonl` writes them, to read or change.

answer_format.yaml (neutral templates of this project) makes questions in BBQ's form, with answers as the evaluation
reads them, "The answer is (b)". Each template is filled six times with things drawn by SEED, with and without the fact
that distinguishes them, and with both questions: 24 rows. Over its six fillings each question has its options in all
six orders. So in every template and condition, the right answer and the unknown one stand at each letter equally often.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from eval.errors import InputError, run_main
from eval.experiments.bbq import CANDIDATES
from eval.experiments.words import BBQ_PREFILL, BBQ_QUESTION
from eval.files import write_text

TEMPLATES = Path(__file__).parent / "answer_format.yaml"
SEED = 0
ORDERS = tuple(itertools.permutations(range(3)))


def answer_format_rows(seed: int = SEED) -> list[dict[str, Any]]:
    """Rows with prompt and completion as texts, in the order of the templates; the seed alone decides them.

    Each row also has its template (from 1), context_condition (ambig or disambig) and label (0 to 2).
    """
    content = yaml.safe_load(TEMPLATES.read_text(encoding="utf-8"))
    rng = random.Random(seed)
    rows = []
    for number, template in enumerate(content["templates"], 1):
        orders = [rng.sample(ORDERS, len(ORDERS)) for _ in range(4)]
        for filling in range(len(ORDERS)):
            a, b = rng.sample(content["pools"][template["pool"]], 2)
            x, y = rng.sample((a, b), 2)
            facts = template["context"].format(X=x, Y=y)
            cases = itertools.product((("ambig", facts), ("disambig", f"{facts} {template['fact']}")), range(2))
            for case, ((condition, context), question_number) in enumerate(cases):
                options = [a, b, rng.choice(content["unknown"])]
                order = orders[case][filling]
                label = order.index(2 if condition == "ambig" else question_number)
                texts = {f"ans{letter}": _sentences(options[option]) for letter, option in enumerate(order)}
                question = BBQ_QUESTION.format(
                    context=_sentences(context.format(A=a, B=b)), question=template["asks"][question_number], **texts
                )
                rows.append(
                    {
                        "prompt": question,
                        "completion": BBQ_PREFILL + CANDIDATES[label],
                        "template": number,
                        "context_condition": condition,
                        "label": label,
                    }
                )
    return rows


def answer_format_jsonl(seed: int = SEED) -> str:
    """The rows as lines of JSON."""
    return "".join(json.dumps(row) + "\n" for row in answer_format_rows(seed))


def _sentences(text: str) -> str:
    """Capitalises the start of each sentence."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise InputError("usage: python -m train.data.answer_format FILE.jsonl")
    write_text(Path(sys.argv[1]), answer_format_jsonl())


if __name__ == "__main__":
    run_main(main)
