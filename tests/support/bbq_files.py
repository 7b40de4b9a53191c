"""Data folders with BBQ files of the tests' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def intersection(folder: Path, target: Any) -> list[dict[str, Any]]:
    """Two fillings of four siblings in a data folder of their own, both persons of the stereotyped race, and the
    supplement with target(row, k): the stereotyped person is option 1.
    """
    rows = []
    for filling in range(2):
        for context in ("ambig", "disambig"):
            for polarity in ("neg", "nonneg"):
                rows.append(
                    {
                        "example_id": len(rows), "question_index": "1", "question_polarity": polarity,
                        "context_condition": context, "category": "Race_x_gender",
                        "answer_info": {
                            "ans0": ["x", "unknown"], "ans1": ["y", "F-Black"], "ans2": ["z", "M-Black"]
                        },
                        "additional_metadata": {"stereotyped_groups": ["Black"]}, "context": f"{context} {filling}",
                        "question": polarity, "ans0": "Unknown", "ans1": "She", "ans2": "He", "label": 0,
                    }
                )  # fmt: skip
    (folder / "bbq").mkdir(parents=True, exist_ok=True)
    (folder / "bbq" / "Race_x_gender.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lines = [f"Race_x_gender,1,{r['example_id']},{target(r)}" for r in rows]
    text = "\n".join(["category,question_index,example_id,target_loc", "Age,1,0,NA", *lines]) + "\n"
    (folder / "bbq" / "additional_metadata.csv").write_text(text)
    return rows
