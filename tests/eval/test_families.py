"""Several checkpoints in one command: revisions, a training's checkpoints, models; each in a folder of its own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from eval.__main__ import main
from eval.cli.parser import parse
from eval.commands.run_config import RunConfig
from eval.commands.targets import folder_name, step_of, targets
from eval.config import EvaluationConfig
from eval.curves.read import find_summaries
from eval.errors import InputError, run_main
from eval.files import write_json
from eval.models import checkpoints
from eval.models.checkpoints import POLICY_FILE, weights_id
from eval.models.target import POSITION, RLHF_STEP, TRAINING_STEP
from eval.runner.evaluate import evaluate
from eval.runner.store import Store
from eval.scorers.local.fused import FusedDecoder
from eval.scorers.local.transformers import TransformersScorer
from eval.views.page.report import ReportConfig, report
from tests.support.tiny_models import build_model

FEW = ("--limit", "4", "--experiments", "winogender", "--conditions", "Q", "--dtype", "float32")
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`eval run` on few questions -> (exit status, the object of --json, stderr)."""

    def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", ["eval", "run", *map(str, arguments), *FEW, "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_main(main)
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, json.loads(out) if out else {}, err

    return run


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it makes every further loading of a model a failure of the test."""

    def forbid() -> None:
        monkeypatch.setattr(checkpoints, "load", lambda *_: pytest.fail("a model was loaded"))

    return forbid


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A hub cache as huggingface_hub leaves it, with three revisions of lab/tiny; revision -> commit."""
    folder = tmp_path_factory.mktemp("cache")
    commits = {name: str(k) * 40 for k, name in enumerate(("step1000", "step2000", "main"), 1)}
    home = folder / "models--lab--tiny"
    for k, (name, commit) in enumerate(commits.items()):
        build_model(home / "snapshots" / commit, seed=k)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / name).write_text(commit)
    return {"folder": str(folder), **commits}


@pytest.fixture
def hub(cache: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache["folder"])
    return cache


def chosen(*arguments: object) -> list[Any]:
    (config,) = parse([RunConfig], [*map(str, arguments)], "eval run")
    return targets(config)[1]


def with_adapter(base: Path, folder: Path, step: int, scale: float = 0.1) -> Path:
    """A checkpoint as our trainers leave it."""
    torch.manual_seed(step)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=step == 0)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, config).save_pretrained(str(folder))
    policy = {"model": str(base), "revision": None, "base_weights": weights_id(str(base)), "rlhf_step": step}
    write_json(folder / POLICY_FILE, {**policy, "algorithm": "rloo", "seed": 0})
    return folder


def test_revisions_are_a_curve_over_training(run: Run, hub, loads_nothing, tmp_path: Path) -> None:
    arguments = ("--model", "lab/tiny", "--revision", "step1000,step2000", "--output", tmp_path)
    status, told, _ = run(*arguments)
    assert status == 0 and told["failed"] == []
    assert [Path(s["output"]).name for s in told["done"]] == ["step1000", "step2000"]
    for summary in told["done"]:
        assert summary["weights"] == f"hub:{summary['commit']}" == f"hub:{hub[summary['revision']]}"
    assert len({s["metrics"][0]["value"] for s in told["done"]}) == 2
    assert [s["step"] for s in find_summaries(tmp_path)] == [1000, 2000]
    (path,) = report(ReportConfig(runs=[str(tmp_path)]))[1]["files"]
    shown = Path(path).read_text().split('<script type="application/json"')
    assert "Bias against training step: tiny" in shown[0] and "RLHF" not in shown[0]
    assert '"step_name":"training step"' in shown[1] and '"RLHF step"' not in shown[1]
    loads_nothing()
    assert run(*arguments)[1]["done"] == told["done"]


def test_a_revision_that_is_missing_fails_alone(run: Run, hub, tmp_path: Path) -> None:
    arguments = ("--model", "lab/tiny", "--revision", "step1000", "step3000", "step2000", "--output", tmp_path)
    status, told, err = run(*arguments)
    assert status == 2 and [s["step"] for s in told["done"]] == [1000, 2000]
    (failure,) = told["failed"]
    assert failure["revision"] == "step3000" and "hf download lab/tiny --revision step3000" in failure["error"]
    assert "error: 1 of 3 checkpoints failed" in err


def test_one_revision_and_the_default_branch_are_known_by_their_commits(run: Run, hub, tmp_path: Path) -> None:
    one = run("--model", "lab/tiny", "--revision", "step2000", "--output", tmp_path / "one")[1]
    assert (one["step"], one["step_name"], one["commit"]) == (2000, TRAINING_STEP, hub["step2000"])
    assert run("--model", "lab/tiny", "--output", tmp_path / "main")[1]["weights"] == f"hub:{hub['main']}"


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step1000", 1000), ("step0", 0), ("step1000-tokens4B", 1000), ("stage1-step1000-tokens3B", 1000),
        ("stage2-ingredient1-step23-tokens51B", 23), ("main", None), ("steps", None), ("footstep7", None),
        ("checkpoint_step_50", 50),
    ],
)  # fmt: skip
def test_the_step_in_a_revisions_name(revision: str, step: int | None) -> None:
    assert step_of(revision) == step


def test_revisions_without_a_step_are_placed_by_position(caplog) -> None:
    for revisions, why in (("step5,main", "'main' carries no step"), ("a-step5,b-step5", "carry the same step")):
        found = chosen("--model", "lab/tiny", "--revision", revisions)
        assert [(t.step, t.step_name) for t in found] == [(0, POSITION), (1, POSITION)]
        assert why in caplog.text


def test_a_checkpoint_of_a_training(run: Run, tiny: Path, tmp_path: Path) -> None:
    """Base, adapter and step come from it; a base that has become another one is refused."""
    folder = with_adapter(tiny, tmp_path / "checkpoint-24", 24)
    status, told, _ = run("--model", folder, "--output", tmp_path / "a")
    assert status == 0
    assert (told["model"], told["adapter"], told["step"]) == (str(tiny), str(folder), 24)
    assert run("--model", tiny, "--adapter", folder, "--output", tmp_path / "b")[1]["metrics"] == told["metrics"]
    policy = json.loads((folder / POLICY_FILE).read_text())
    write_json(folder / POLICY_FILE, policy | {"base_weights": "sha256:other"})
    status, _, err = run("--model", folder, "--output", tmp_path / "c")
    assert status == 2 and "was trained on other weights than" in err
    write_json(folder / POLICY_FILE, policy | {"model": str(tmp_path / "moved")})
    status, _, err = run("--model", folder, "--output", tmp_path / "c")
    assert status == 2 and "which is not there; give the base as --model and the checkpoint as --adapter" in err


def test_a_checkpoint_trained_on_a_hub_model(run: Run, hub, cache, tmp_path: Path) -> None:
    """The base is taken at the commit that was trained on, wherever its branch stands now."""
    snapshot = Path(cache["folder"]) / "models--lab--tiny" / "snapshots" / hub["step1000"]
    folder = with_adapter(snapshot, tmp_path / "checkpoint-5", 5)
    policy = json.loads((folder / POLICY_FILE).read_text())
    policy |= {"model": "lab/tiny", "revision": "main", "base_weights": f"hub:{hub['step1000']}"}
    write_json(folder / POLICY_FILE, policy)
    status, told, _ = run("--model", folder, "--output", tmp_path / "o")
    assert status == 0 and (told["model"], told["commit"]) == ("lab/tiny", hub["step1000"])
    status, _, err = run("--model", "lab/tiny", "--adapter", folder, "--output", tmp_path / "p")
    assert status == 2 and "was trained on other weights than" in err


def test_all_checkpoints_of_a_training(run: Run, tiny: Path, tmp_path: Path, caplog) -> None:
    output = tmp_path / "rloo"
    for step in (100, 0, 20):
        with_adapter(tiny, output / f"checkpoint-{step}", step)
    shutil.copytree(output / "checkpoint-20", output / "checkpoint-30")
    (output / "checkpoint-30" / POLICY_FILE).unlink()  # being written
    status, told, _ = run("--model", output, "--output", tmp_path / "curve")
    assert status == 0 and [s["step"] for s in told["done"]] == [0, 20, 100]
    assert "checkpoints 30 are not complete" in caplog.text
    assert {s["step_name"] for s in find_summaries(tmp_path / "curve")} == {RLHF_STEP}
    status, _, err = run("--model", output, "--step", 3, "--output", tmp_path / "x")
    assert status == 2 and "evaluated at all its checkpoints" in err


def test_whole_checkpoints_carry_their_step(tiny: Path, tmp_path: Path) -> None:
    ours, others = (shutil.copytree(tiny, tmp_path / f"checkpoint-{n}") for n in (7, 9))
    write_json(ours / POLICY_FILE, {"model": "base", "rlhf_step": 7})
    (others / "trainer_state.json").write_text("{}")
    found = chosen("--model", ours, others)
    assert [(t.model, t.adapter, t.step, t.step_name) for t in found] == [
        (str(ours), None, 7, RLHF_STEP), (str(others), None, 9, TRAINING_STEP)
    ]  # fmt: skip


def test_a_family_with_failures(run: Run, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    """Models of one name stay apart; what fails, bad input or an error of the model's code, leaves the rest done."""
    other, raising = build_model(tmp_path / "other" / "tiny", seed=3), build_model(tmp_path / "raising")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text(f"{tiny}  # the first\n\n# nothing\n{tmp_path / 'empty'}\n{raising}\n{other}\n")
    right = checkpoints.load

    def load(described: Any, device: str) -> Any:
        if described.provenance["model"] == str(raising):
            raise RuntimeError("its own code is wrong")
        return right(described, device)

    monkeypatch.setattr(checkpoints, "load", load)
    arguments = ("--models", tmp_path / "list.txt", "--output", tmp_path / "o")
    status, told, err = run(*arguments)
    assert status == 2 and [s["model"] for s in told["done"]] == [str(tiny), str(other)]
    assert len({s["output"] for s in told["done"]}) == 2
    reasons = [f["error"] for f in told["failed"]]
    assert "has no config.json" in reasons[0] and reasons[1] == "RuntimeError: its own code is wrong"
    assert "2 of 4 checkpoints failed" in err
    monkeypatch.setattr(checkpoints, "load", lambda *_: pytest.fail("a model was loaded"))
    again = run("--model", other, "--model", tiny, "--output", tmp_path / "o")[1]["done"]
    assert again == told["done"][::-1]
    with pytest.raises(InputError, match="give the folder of one run or model"):
        find_summaries(tmp_path / "o")


def test_the_table_of_failures(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = ["--model", str(tiny), "--model", str(tmp_path / "no"), "--output", str(tmp_path / "o"), *FEW]
    monkeypatch.setattr(sys, "argv", ["eval", "run", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 2
    assert any(line.startswith(folder_name(str(tiny))) and "rho" in line for line in lines)
    assert any(line.startswith(str(tmp_path / "no")) and "there is no such folder" in line for line in lines)
    assert lines[-1].startswith("1 of 2 checkpoints done")


def test_lists_of_models(tmp_path: Path) -> None:
    path = tmp_path / "models.txt"
    path.write_text("lab/a --revision step1,step2\nlab/b --adapter lab/c --step 3  # with a LoRA\nother/a\n")
    found = chosen("--models", path, "--output", "o")
    assert [(str(t.folder), t.revision, t.adapter, t.step) for t in found] == [
        ("o/lab--a/step1", "step1", None, 1), ("o/lab--a/step2", "step2", None, 2),
        ("o/lab--b+lab--c", None, "lab/c", 3), ("o/other--a", None, None, 0),
    ]  # fmt: skip
    for text, said in (("lab/a --revison x", "models.txt:1: models: unknown option --revison"), ("", "names no model"),
                       ("lab/a lab/b", "give one model"), ("'lab/a", "models.txt:1")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            chosen("--models", path)
    with pytest.raises(InputError, match="cannot be read"):
        chosen("--models", tmp_path / "no.txt")
    with pytest.raises(InputError, match="belong to one model"):
        chosen("--model", "lab/a", "lab/b", "--adapter", "lab/c")
    path.write_text("lab/a --step 1\nlab/a --step 2\n")
    with pytest.raises(InputError, match="is given twice, with steps 1 and 2"):
        chosen("--models", path)


def test_models_and_revisions_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: [lab/a, lab/b]\nrevision: [step1, step2]\nbatch_tokens: 512\n")
    assert len(chosen("--config", path)) == 4
    assert {t.model for t in chosen("--config", path, "--model", "lab/c")} == {"lab/c"}
    (config,) = parse([RunConfig], ["--config", str(path), "--batch-tokens", "64", "--trust-remote-code"], "x")
    assert config.most_batch_tokens == 64 and config.trust_remote_code


def test_names_of_folders() -> None:
    assert folder_name("EleutherAI/pythia-70m") == "EleutherAI--pythia-70m"
    assert folder_name("lab/a") != folder_name("lab--a/") and "/" not in folder_name("refs/../pr")


def test_memory_that_runs_out_loses_nothing(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    """Halved batches give the same records; what another batch size began is continued and never refused."""
    checkpoint = checkpoints.load_checkpoint(str(tiny), dtype="float32")
    config = EvaluationConfig(limit=8, experiments=["winogender", "admissions"], conditions=["Q"], format="paper")

    def evaluated(folder: Path, batch_tokens: int | None) -> dict[str, Any]:
        scorer = TransformersScorer(checkpoint.model, checkpoint.tokenizer, "paper", batch_tokens, tier="fused")
        evaluate(scorer, config, folder, checkpoint.provenance)
        summary = Store(folder).summary()
        assert summary is not None
        return summary

    whole = evaluated(tmp_path / "whole", None)
    right, limit = FusedDecoder.run, 10_000

    def run(self: FusedDecoder, piece: Any, *rest: Any) -> Any:
        if len(piece.tokens_N) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return right(self, piece, *rest)

    monkeypatch.setattr(FusedDecoder, "run", run)
    folder = tmp_path / "halved"
    right_append = Store.append

    def append(self: Store, *arguments: Any) -> None:  # memory becomes scarce after the first experiment
        nonlocal limit
        right_append(self, *arguments)
        limit = 20

    with monkeypatch.context() as scarce:
        scarce.setattr(Store, "append", append)
        summary = evaluated(folder, 1024)
    assert summary["batch_tokens"] < 1024 and whole["batch_tokens"] == 2048
    assert [m["value"] for m in summary["metrics"]] == pytest.approx([m["value"] for m in whole["metrics"]], abs=1e-4)
    limit = 1  # nothing more fits: the one line, and what was kept is continued with another batch size
    (folder / "summary.json").unlink()
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["experiment"] == "winogender"]
    (folder / "records.jsonl").write_text("".join(kept))
    with pytest.raises(InputError, match="out of memory with batches of"):
        evaluated(folder, 64)
    assert (folder / "records.jsonl").read_text() == "".join(kept)
    limit = 10_000
    assert len(evaluated(folder, 512)["metrics"]) == len(whole["metrics"])
    assert (folder / "records.jsonl").read_text().startswith("".join(kept))
