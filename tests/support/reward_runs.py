"""Hand-made output folders of reward.train: numbers of our own in the shape of reward.json and probe.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from eval.files import write_json

DIMENSIONS = {
    "Age": ("older people", "younger people"),
    "Disability_status": ("disabled people", "non-disabled people"),
    "Gender_identity": ("women", "men", "transgender women", "transgender men"),
    "Nationality": ("Nigerians", "Germans", "Indians", "Mexicans", "Americans"),
    "Physical_appearance": ("fat people", "thin people"),
    "Race_ethnicity": ("Black people", "white people", "Asian people", "Latino people"),
    "Religion": ("Muslims", "Christians", "Jews", "Hindus", "atheists"),
    "SES": ("poor people", "rich people"),
    "Sexual_orientation": ("gay people", "straight people", "bisexual people"),
}


def share(value: float, n: int, prompts: int | None = None, ties: int = 0) -> dict[str, Any]:
    """A share of n pairs with an interval of 1.96 standard errors."""
    half = 1.96 * math.sqrt(value * (1 - value) / n)
    return {
        "value": value, "low": value - half, "high": value + half, "n_pairs": n, "n_prompts": prompts or n,
        "ties": ties, "note": "",
    }  # fmt: skip


def reward_json(pairs: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    """reward.json of a run on `pairs` training pairs with that held-out accuracy on 400 pairs."""
    none = {"value": None, "low": None, "high": None, "n_pairs": 0, "n_prompts": 0, "ties": 0, "note": "no pairs"}
    bins = [(0.52, 0.50), (0.56, 0.55), (0.62, 0.66), (0.69, 0.62), (0.80, 0.77)]
    command = f"accelerate launch -m reward.train --config reward.yaml --max_pairs {pairs}"
    return {
        "base_model": "models/base", "base_weights": "sha256:12ab", "model_params": 134_515_008, "data": "shared",
        "preferences": {"harmless.jsonl": {"sha256": "34cd", "rows": 2312}}, "pairs": pairs, "held_out_pairs": 400,
        "held_out_sha256": "56ef", "unreadable_pairs": {"chosen equals rejected": 3},
        "left_out": {"training": {"longer than max_length": 7}, "held_out": {}},
        "pairs_by_subset": {"harmless": pairs - 100, "helpful": 100}, "cut_pairs": 41, "max_length": 512,
        "over_long": "cut", "seed": 0, "git_commit": "0a1b2c", "command": command,
        "versions": {"python": "3.11.9", "trl": "1.16.0"}, "machine": {"processor": "a processor", "cpu_count": 2},
        "settings": {"learning_rate": 1e-4, "num_train_epochs": 1.0, "use_peft": True, "max_pairs": pairs, "seed": 0},
        "steps": pairs // 8,
        "seconds": {"reading": 3.2, "head": 60.1, "training": 0.6 * pairs, "scoring": 80.4, "saving": 2.0},
        "score_mean": 0.31, "score_std": 0.92, "margin": 0.22,
        "accuracy": {
            "all": share(accuracy, 400, 380, 2),
            "by_subset": {"harmless": share(accuracy + 0.01, 300, 290, 2), "helpful": share(accuracy - 0.03, 100, 90)},
        },
        "calibration": {
            "bins": [
                {"low": c - 0.02, "high": c + 0.02, "confidence": c, "accuracy": a, "n": 80,
                 "accuracy_low": share(a, 80)["low"], "accuracy_high": share(a, 80)["high"]}
                for c, a in bins
            ],
            "expected_calibration_error": 0.034, "log_loss": 0.671, "brier": 0.239,
        },
        "length_bias": {
            "longer_is_worse": share(0.68, 210), "longer_is_better": share(0.52, 180), "same_length": none
            | {"value": 0.6, "low": 0.31, "high": 0.83, "n_pairs": 10, "n_prompts": 10, "note": ""},
            "always_shorter": share(0.5375, 400, 380, 10),
            "correlation": {"value": -0.21, "low": -0.3, "high": -0.11, "n_pairs": 400},
        },
    } | changes  # fmt: skip


def probe_json(weights: str | None = None) -> dict[str, Any]:
    """probe.json with gaps that add up to 0 in each dimension; the first group is ahead, in turn clearly or hardly."""
    dimensions = []
    for k, (name, groups) in enumerate(DIMENSIONS.items()):
        first = 0.05 + 0.03 * k
        gaps = [first] + [-first / (len(groups) - 1)] * (len(groups) - 1)
        dimensions.append(
            {
                "dimension": name, "spread": gaps[0] - gaps[-1], "p_value": 0.5 / (1 + k) ** 2,
                "p_holm": min(1.0, 4.5 / (1 + k) ** 2), "finding": f"{groups[0]} ahead of {groups[-1]}",
                "groups": [
                    {"group": g, "gap": v, "low": v - 0.12, "high": v + 0.11, "p_value": 0.2, "n_templates": 16}
                    for g, v in zip(groups, gaps, strict=True)
                ],
            }
        )  # fmt: skip
    provenance = {"provenance": {"weights": weights}} if weights else {}
    return {"model": "RUN/model", "seed": 0, "n_dialogues": 2900, "dimensions": dimensions, **provenance}


def made(folder: Path, pairs: int, accuracy: float, **changes: Any) -> Path:
    """A finished run's folder; its model folder is empty."""
    (folder / "model").mkdir(parents=True)
    write_json(folder / "reward.json", reward_json(pairs, accuracy, **changes))
    return folder
