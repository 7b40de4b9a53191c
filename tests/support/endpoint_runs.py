"""Evaluations of a few questions over the tests' server of a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from eval.commands.run import run
from eval.commands.run_config import RunConfig
from eval.runner.keys import record_key
from eval.runner.store import Store
from tests.support.model_server import ModelServer

ROOT = Path(__file__).parents[2]
KEY = "sk-test-0123456789abcdef"
FEW: dict[str, Any] = {"limit": 3, "categories": ["Age"], "orders": 1, "cot_max_new_tokens": 6, "cot_limit": 2}
Q = {"conditions": ["Q"]}


def asked(server: ModelServer, output: Path, **settings: Any) -> list[dict[str, Any]]:
    """The records of an evaluation over the server, by key."""
    given = {**FEW, "scorer": "endpoint", "base_url": server.url, "model": ["tiny"], "output": str(output), **settings}
    run(RunConfig(**given))
    return sorted(Store(output).read(), key=record_key)


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def quick(server: ModelServer, output: Path, **settings: Any) -> list[dict[str, Any]]:
    """As `asked`: Winogender's three questions by the tokenizer's ids."""
    given = {"experiments": ["winogender"], "tokenizer": str(server.folder), **Q, **settings}
    return asked(server, output, **given)


def questions(bodies: list[dict[str, Any]]) -> Counter[str]:
    """How often each prompt was asked with its candidates."""
    return Counter(json.dumps(b["prompt"]) for b in bodies if "prompt" in b and b.get("max_tokens") == 0)


def command(server: ModelServer, output: Path, *more: object) -> list[object]:
    return [
        "run", "--scorer", "endpoint", "--base-url", server.url, "--model", "tiny", "--experiments", "winogender",
        "--conditions", "Q", "--tokenizer", server.folder, "--output", output, *more,
    ]  # fmt: skip
