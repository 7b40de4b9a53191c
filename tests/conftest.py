"""Tiny models built here in seconds, the real model where `make model` built it, real data where it lies."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
REAL_DATA = Path(os.environ.pop("SELFCORRECT_DATA", "../shared/data"))

import pytest

from tests.support.model_server import ModelServer, serving
from tests.support.tiny_models import build_model, build_reward_model

ROOT = Path(__file__).parent.parent
REAL_MODEL = ROOT / "models" / "smollm2-135m-instruct"
VLLM = Path(os.environ.get("SELFCORRECT_VLLM", ROOT / ".venv-vllm"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("vllm") and not (VLLM / "bin" / "python").is_file():
        pytest.skip(f"no vLLM in {VLLM}: run `make vllm`, or set SELFCORRECT_VLLM")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama with a chat template."""
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_reward(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random reward model."""
    return build_reward_model(tiny, tmp_path_factory.mktemp("model") / "reward", seed=1)


@pytest.fixture(scope="session")
def tiny_judge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one."""
    return build_reward_model(tiny, tmp_path_factory.mktemp("model") / "judge", seed=2)


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of examples for supervised fine-tuning, tests.support.sft_runs.ROWS."""
    from tests.support.sft_runs import ROWS

    path = tmp_path_factory.mktemp("examples") / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="session")
def real_model() -> Path:
    if not (REAL_MODEL / "config.json").is_file():
        pytest.skip("the real model is not built: run `make model`")
    return REAL_MODEL


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not (REAL_DATA / "bbq").is_dir():
        pytest.skip(f"no real data in {REAL_DATA}; set SELFCORRECT_DATA")
    return REAL_DATA


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an entry point's main with arguments that are wrong; returns its one line after checking status and form."""
    from eval.errors import run_main

    def run(main: Callable[[], None], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_main(main)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert stop.value.code == 2
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def server(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """A server of the tiny model by the OpenAI routes; requests that fail are tried again without long waits."""
    monkeypatch.setattr("eval.scorers.endpoint.http_client.FIRST_WAIT", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(tiny) as found:
        yield found
