"""Loading a checkpoint: what does not belong together is refused in one line with exit status 2."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from eval.__main__ import main
from eval.errors import InputError
from eval.models.checkpoints import POLICY_FILE, load_checkpoint, weights_id
from tests.support.adapters import adapter_for
from tests.support.tiny_models import build_model


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes, other weights."""
    return build_model(tmp_path_factory.mktemp("model") / "other", seed=5)


def test_loads_at_the_same_time_leave_the_head_tied(tmp_path: Path) -> None:
    tied = str(build_model(tmp_path / "tied", tie_word_embeddings=True))
    before = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(3) as pool:
        for checkpoint in [*pool.map(lambda _: load_checkpoint(tied), range(9)), load_checkpoint(tied)]:
            model: Any = checkpoint.model
            assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert PreTrainedModel.tie_weights is before


def test_model_that_is_not_there(ended) -> None:
    assert "model ./no/such/model: there is no such folder" in ended(main, "run", "--model", "./no/such/model")
    line = ended(main, "run", "--model", "nobody/no-such-model")
    assert "neither a model folder nor a hub id that can be reached" in line


def test_folder_that_is_no_model(ended, tmp_path: Path) -> None:
    assert "no model: it has no config.json" in ended(main, "run", "--model", tmp_path, "--output", tmp_path / "o")
    (tmp_path / "config.json").write_text("{}")
    ended(main, "run", "--model", tmp_path, "--output", tmp_path / "o")


def test_adapter_given_as_model(ended, tiny: Path, tmp_path: Path) -> None:
    folder = adapter_for(tiny, tmp_path / "adapter")
    assert "is a LoRA adapter: give its base as --model" in ended(
        main, "run", "--model", folder, "--output", tmp_path / "o"
    )


def test_adapter_for_another_base(ended, tiny: Path, other: Path, tmp_path: Path) -> None:
    """By name where nothing better is recorded, by the weights' hash where our trainers recorded it."""
    folder = adapter_for(tiny, tmp_path / "adapter")
    load_checkpoint(str(tiny), str(folder))
    arguments = ("run", "--model", other, "--adapter", folder, "--output", tmp_path / "o")
    assert "was trained on" in ended(main, *arguments)
    load_checkpoint(str(other), str(folder), adapter_base_differs=True)
    (folder / POLICY_FILE).write_text(json.dumps({"base_weights": weights_id(str(tiny))}))
    assert "was trained on other weights than" in ended(main, *arguments, "--adapter_base_differs")
    copied = tmp_path / "copied under another name"
    shutil.copytree(tiny, copied)
    load_checkpoint(str(copied), str(folder))


def test_adapter_of_another_shape(tiny: Path, tmp_path: Path) -> None:
    wide = build_model(tmp_path / "wide" / "tiny", hidden_size=64)
    folder = adapter_for(wide, tmp_path / "adapter")
    with pytest.raises(InputError, match="does not fit the model"):
        load_checkpoint(str(tiny), str(folder))
    deep = build_model(tmp_path / "deep" / "tiny", num_hidden_layers=3)
    with pytest.raises(InputError, match="does not fit the model"):
        load_checkpoint(str(tiny), str(adapter_for(deep, tmp_path / "deeper")))


def test_folder_that_is_no_adapter(ended, tiny: Path, tmp_path: Path) -> None:
    line = ended(main, "run", "--model", tiny, "--adapter", tmp_path, "--output", tmp_path / "o")
    assert "is no adapter: it has no adapter_config.json" in line


def test_other_bad_input_of_the_commands(ended, tiny: Path, tmp_path: Path) -> None:
    assert "did you mean 'report'?" in ended(main, "reprot")
    assert "is not there" in ended(main, "report", tmp_path / "no")
    assert "no finished evaluation" in ended(main, "report", tmp_path)
    assert "cannot be written" in ended(main, "run", "--model", tiny, "--output", "/proc/no")
    assert "data folder" in ended(main, "run", "--model", tiny, "--data-dir", "no/such", "--output", tmp_path)
    assert "unknown option --modle" in ended(main, "run", "--modle", tiny)
    assert "device 'cuda:7' is not there" in ended(
        main, "run", "--model", tiny, "--output", tmp_path / "o", "--device", "cuda:7", "--limit", 4
    )
