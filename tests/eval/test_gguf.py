"""A GGUF file scores as the folder that it was made from, and one that cannot be read is one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from eval.__main__ import main
from eval.config import EvaluationConfig
from eval.models.checkpoints import load_checkpoint
from eval.runner.evaluate import evaluate
from eval.runner.store import Store
from eval.scorers.local.transformers import TransformersScorer
from tests.support.tiny_models import save_gguf


@pytest.fixture(scope="module")
def gguf(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tiny, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_the_same_numbers_as_the_folder(tiny: Path, gguf: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(limit=4, categories=["Age"], experiments=["bbq"], conditions=["Q"], format="paper")
    records = []
    for name in (tiny, gguf):
        checkpoint = load_checkpoint(str(name), dtype="float32")
        scorer = TransformersScorer(checkpoint.model, checkpoint.tokenizer, config.format)
        evaluate(scorer, config, tmp_path / name.name, checkpoint.provenance)
        records.append([r["logprobs"] for r in Store(tmp_path / name.name).read()])
    assert records[0] and torch.allclose(torch.tensor(records[0]), torch.tensor(records[1]), atol=1e-4)
    summary = Store(tmp_path / gguf.name).summary()
    assert summary is not None
    assert summary["weights"] == "sha256:" + hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert summary["model_params"] == load_checkpoint(str(tiny)).provenance["model_params"]


def test_files_that_cannot_be_read(ended, tiny: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "o")
    (tmp_path / "text.gguf").write_text("no model at all, whatever its name says")
    assert "text.gguf cannot be read" in ended(main, "run", "--model", tmp_path / "text.gguf", *output)
    unknown = save_gguf(tiny, tmp_path / "unknown.gguf", architecture="mamba9")
    line = ended(main, "run", "--model", unknown, *output)
    assert "unknown.gguf cannot be read" in line and "mamba9" in line and "not supported" in line
    assert "there is no such file" in ended(main, "run", "--model", tmp_path / "no.gguf", *output)
    assert "give a GGUF file in it" in ended(main, "run", "--model", tmp_path, *output)
    (tmp_path / "notes.txt").write_text("x")
    assert "no GGUF file" in ended(main, "run", "--model", tmp_path / "notes.txt", *output)
    assert "is local: leave it out" in ended(main, "run", "--model", unknown, "--revision", "main", *output)
