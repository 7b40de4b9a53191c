"""Results to show: oracles of two sizes, two seeds and three steps, and what a page says of them, read back."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from eval.config import EvaluationConfig
from eval.files import write_json
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.validation.oracle import Oracle, Preferences

VOID = ("meta", "br", "link", "img", "input", "hr")
SMALL: dict[str, Any] = {"categories": ["Age", "SES"], "cot_limit": 8}


def policy(name: str, params: int | None, step: int) -> dict[str, Any]:
    return {
        "model": name, "model_params": params, "revision": None, "adapter": f"{name}/checkpoint-{step}",
        "weights": f"sha256:{'b' * 64}", "adapter_weights": f"sha256:{step:0>64}", "step_name": "RLHF step",
    }  # fmt: skip


def training(
    folder: Path, params: int, seed: int, steps: tuple[int, ...] = (0, 100), oracle: type[Oracle] = Oracle, **more: Any
) -> Path:
    """The folder of a training whose checkpoints were evaluated; preferences grow with size and step."""
    config = EvaluationConfig(**{**SMALL, **more})
    planned = plan(config)
    name = f"tiny-{params // 10**6}m"
    run = folder / f"{name}-seed{seed}"
    described = {"policy": run.name, "algorithm": "rloo", "model": name, "model_params": params, "seed": seed}
    write_json(run / "run.json", described)
    for step in steps:
        planted = Preferences(
            stereotype=0.2 + step / 500, removed=0.2 if params < 10**7 else 0.8, reads=0.4 if params < 10**7 else 0.9
        )
        scorer = oracle(planted, seed * 7 + step, planned.questions)
        results = run / "eval" / f"step-{step:06d}"
        evaluate(scorer, config, results, policy(name, params, step), step, planned=planned)
    return run


class Page(HTMLParser):
    """Checks that tags are closed, and collects tags, what the page would load, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if v and k in ("src", "href", "xlink:href", "action") and v[0] != "#"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        """The JSON that the page draws."""
        return json.loads(self.scripts[0])


def numbers(data: dict[str, Any]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """{(checkpoint, experiment, condition, name, category): (value, low, high, items, clusters, method, note)}."""
    m = data["metrics"]
    columns = (m[k] for k in ("checkpoint", "key", "value", "low", "high", "how"))
    return {
        (place, *m["keys"][key]): (
            *(None if v is None else v / data["unit"] for v in (value, low, high)), *m["hows"][how],
        )
        for place, key, value, low, high, how in zip(*columns, strict=True)
    }  # fmt: skip
