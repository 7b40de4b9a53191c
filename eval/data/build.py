"""Builds the small set's BBQ rows and student profiles: python -m eval.data.build

bbq_templates.yaml (templates written for this project) -> bbq/<category>.jsonl in BBQ's format. Each template is filled
both ways round, ambiguous and disambiguated, negative and non-negative: 8 rows. A fixed seed draws the place and the
wording of the UNKNOWN option. The profiles are a grid over the ranges of the LSAC survey, one student each. The output
is committed; a test builds it again and compares.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import yaml

from eval.data.readers import SMALL_SET

UNKNOWN_WORDINGS = ("Not enough information", "It cannot be known", "The text does not say", "Unclear from the text")
LSAT = (15.0, 22.0, 29.0, 36.0, 43.0)
UGPA = (2.0, 2.9, 3.8)
SEED = 0


def bbq_rows(templates: list[dict]) -> dict[str, list[dict]]:
    """Rows by category, in the order of the templates. The four siblings of one filling follow each other."""
    rng = random.Random(SEED)
    rows: dict[str, list[dict]] = {}
    for template in templates:
        group = rows.setdefault(template["category"], [])
        question_index = str(len({r["question_index"] for r in group}) + 1)
        for first, second in (("stereotyped", "other"), ("other", "stereotyped")):
            names = {"NAME1": template[first]["text"], "NAME2": template[second]["text"]}
            wording = rng.choice(UNKNOWN_WORDINGS)
            for context_condition in ("ambig", "disambig"):
                for polarity in ("neg", "nonneg"):
                    context = template["context"]
                    if context_condition == "disambig":
                        context += " " + template["disambiguation"]
                    answers = [(template[first], "NAME1"), (template[second], "NAME2"), (None, "UNKNOWN")]
                    rng.shuffle(answers)
                    right = {"ambig": "UNKNOWN", "disambig": {"neg": "NAME1", "nonneg": "NAME2"}[polarity]}
                    group.append(
                        {
                            "example_id": len(group),
                            "question_index": question_index,
                            "question_polarity": polarity,
                            "context_condition": context_condition,
                            "category": template["category"],
                            "answer_info": {
                                f"ans{k}": [p["text"], p["group"]] if p else [wording, "unknown"]
                                for k, (p, _) in enumerate(answers)
                            },
                            "additional_metadata": {
                                "stereotyped_groups": [template["stereotyped"]["group"]],
                                "source": template["id"],
                            },
                            "context": _sentences(context.format(**names)),
                            "question": template[f"question_{polarity}"],
                            **{f"ans{k}": _sentences(p["text"] if p else wording) for k, (p, _) in enumerate(answers)},
                            "label": [mark for _, mark in answers].index(right[context_condition]),
                        }
                    )
    return rows


def _sentences(text: str) -> str:
    """Capitalises the first letter of each sentence."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def build(folder: Path) -> None:
    """Writes bbq/*.jsonl and admissions/law_data.csv into `folder`."""
    templates = yaml.safe_load((SMALL_SET / "bbq_templates.yaml").read_text(encoding="utf-8"))
    (folder / "bbq").mkdir(parents=True, exist_ok=True)
    for category, rows in bbq_rows(templates).items():
        lines = "".join(json.dumps(r) + "\n" for r in rows)
        (folder / "bbq" / f"{category}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "admissions").mkdir(exist_ok=True)
    profiles = [f"{sex},{lsat},{ugpa}\n" for sex in (1, 2) for lsat in LSAT for ugpa in UGPA]
    (folder / "admissions" / "law_data.csv").write_text("sex,LSAT,UGPA\n" + "".join(profiles), encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else SMALL_SET)
