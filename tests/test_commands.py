"""The commands of README.md and docs/, run as they stand there on the tiny model; and bad input through accelerate."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from eval.data.catalog import PINNED
from tests.support.file_server import serving
from tests.support.readme import COMMANDS, ROOT, documented, execute
from tests.support.tiny_models import build_model
from tests.support.tracked_runs import read_back


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    targets = [w for w in shlex.split(command, comments=True)[1:] if "=" not in w]
    assert subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True).returncode == 0


def test_every_command_is_covered() -> None:
    known = (
        "make",
        "accelerate launch -m reward.train",
        "accelerate launch -m train.rloo",
        "accelerate launch -m train.sft",
        "accelerate launch --config_file configs/accelerate/",  # parsed in test_launch.py
        "torchrun --nproc_per_node 2 -m eval run",  # run in test_processes.py
        "python -m eval",
        "python -m reward",
        "python -m benchmarks.",
        ".venv-vllm/bin/python -m eval run --scorer vllm",
    )
    assert [c for c in COMMANDS if not c.startswith(known)] == []
    assert {c.split()[3] for c in COMMANDS if c.startswith("python -m eval")} == {
        "run", "watch", "list", "compare", "report", "figures", "emergence", "publish", "dashboard", "live", "score",
        "oracle", "data", "measure"
    }  # fmt: skip


def test_the_chain_as_the_readme_says_it(tiny: Path, tmp_path: Path) -> None:
    """The shipped demo configs with a tiny model in place of the real one, two steps each."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m-instruct").symlink_to(tiny)
    small = ("--lora_top_layers", "1", "--use_cpu", "--disable_tqdm", "true", "--max_steps", "2")
    out = execute(
        documented("accelerate launch -m reward.train --config configs/demo"), tmp_path, *small, "--save_steps", "2"
    )
    assert "held-out pairwise accuracy" in out
    shipped = (ROOT / "configs" / "demo" / "in-training.yaml").read_text()
    (tmp_path / "eval.yaml").write_text(shipped.replace("limit: 60", "limit: 4"))
    more = ("--checkpoint_steps", "0", "2", "--max_prompt_tokens", "1000", "--evaluation", "eval.yaml")
    out = execute(documented("accelerate launch -m train.rloo --config configs/demo"), tmp_path, *small, *more)
    assert "2 RLHF steps: learned reward" in out
    watched = execute(documented("python -m eval watch"), tmp_path)
    assert "2 of 2 checkpoints done" in watched and "done already" in watched
    few = ("--limit", "4", "--categories", "Age", "--cot_limit", "4", "--cot_max_new_tokens", "2")
    out = execute(documented("python -m eval run --config configs/demo"), tmp_path, *few)
    assert "2 of 2 checkpoints done" in out and "bias_ambig" in out
    assert "3 runs written (offline)" in execute(documented("python -m eval publish"), tmp_path)
    tracked = read_back(tmp_path / "runs" / "demo" / "rloo")
    (policy,) = {entry["run"]["run_group"] for entry in tracked.values()}
    assert policy.startswith("demo-rloo-")
    names = [f"eval-{policy}-{c}" for c in ("q", "q-if", "q-if-cot", "q-match-stats")]
    names += [f"report-{policy}", f"train-{policy}"]
    assert sorted(tracked) == names
    assert [r["train/reward"] for r in tracked[names[-1]]["rows"] if "train/reward" in r]
    assert tracked[names[-1]]["run"]["job_type"] == "train"
    logged = {name for row in tracked[names[-1]]["rows"] for name in row}
    assert {"train/samples", "train/prompts", "train/beta"} <= logged
    assert any(name.startswith("samples/step-000002") for name in logged)
    assert {r["rlhf_step"] for r in tracked[names[0]]["rows"]} == {0, 2}
    sent = [(r["rlhf_step"], name) for r in tracked[names[0]]["rows"] for name in r if name.startswith("eval/")]
    assert len(set(sent)) == len(sent) and {n.split("/")[1] for _, n in sent} == {"bbq", "winogender", "admissions"}
    assert "model-index" in (tmp_path / "runs" / "demo" / "rloo" / "checkpoint-2" / "README.md").read_text()
    (run,) = [c for c in COMMANDS if c.startswith("python -m eval run") and "--adapter" in c]
    run = run.replace("checkpoint-60", "checkpoint-2").replace("bfloat16", "float32")
    out = execute(run, tmp_path, "--limit", "4", "--cot_limit", "4", "--cot_max_new_tokens", "2")
    assert "rho" in out
    assert "runs" not in (out := execute(documented("python -m eval list"), tmp_path)).splitlines()[2]
    assert out.count("complete") == 3 and "demo/rloo/eval/step-000002" in out
    command = documented("python -m eval compare").replace("runs/eval/real", "runs/demo/rloo/eval/step-000002")
    out = execute(command, tmp_path)
    assert re.search(r"^dtype +bfloat16 +float32$", out, re.M) and re.search(r"^admissions +Q +8 +0 +0 ", out, re.M)
    curve = documented("python -m eval run --model runs/demo/rloo")
    few = ("--limit", "4", "--experiments", "winogender", "--conditions", "Q")
    assert "2 of 2 checkpoints done" in execute(curve, tmp_path, *few)
    assert "done already" in execute(curve, tmp_path, *few)
    assert "nothing new" in execute(documented("python -m eval publish"), tmp_path)
    assert execute(documented("python -m eval measure"), tmp_path).count("up to date") == 2
    shown_at_a_glance(tmp_path)


def shown_at_a_glance(folder: Path) -> None:
    """What shows the results of the chain, and of a checkpoint evaluated by itself."""
    alone, both = [c for c in COMMANDS if c.startswith("python -m eval report ")]
    assert "runs/demo/rloo/report/report.html" in execute(alone, folder)
    assert "runs/page/report.html" in execute(both.replace("runs/eval/real", "runs/eval/step-60"), folder)
    assert "captions.md" in execute(documented("python -m eval figures"), folder, "--only", "2")
    assert (folder / "runs" / "demo" / "rloo" / "figures" / "fig2.pdf").is_file()
    assert "2 steps, at least 3 are needed" in execute(documented("python -m eval emergence"), folder, status=2)
    assert "specifications are in runs/dashboard" in execute(documented("python -m eval dashboard"), folder)
    there = importlib.util.find_spec("trackio") is not None
    said = execute(documented("python -m eval live"), folder, status=0 if there else 2)
    assert "trackio project selfcorrect: " in said or "pip install 'trackio==0.43.*'" in said


@pytest.mark.real_data
def test_a_reward_model_as_the_readme_says_it(tiny: Path, tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m-instruct").symlink_to(tiny)
    (tmp_path / "data").symlink_to(real_data.resolve())
    (train,) = [c for c in COMMANDS if "configs/reward/harmless-base.yaml" in c and "--prompt_share" not in c]
    small = ("--lora_top_layers", "1", "--use_cpu", "--disable_tqdm", "true", "--max_steps", "2", "--max_pairs", "50")
    out = execute(train, tmp_path, *small, "--max_length", "600", "--save_strategy", "no")
    assert "held-out pairwise accuracy, hh-harmless-base-test: 0." in out
    assert "Religion" in execute(documented("python -m reward probe"), tmp_path, "--dimensions", "Religion")
    assert "README.md" in execute(documented("python -m reward report"), tmp_path)
    line = {"prompt": "Where is the key?", "answers": ["In the drawer.", "Ask your neighbour."]}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
    assert "In the drawer." in execute(documented("python -m reward score"), tmp_path)


@pytest.mark.real_data
def test_rlhf_as_the_readme_says_it(tiny: Path, tmp_path: Path, real_data: Path) -> None:
    """Two reward models on prompts apart, then RL on others; two steps each, of the tiny model."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m-instruct").symlink_to(tiny)
    small = ("--lora_top_layers", "1", "--use_cpu", "--disable_tqdm", "true", "--max_steps", "2")
    (tmp_path / "data").symlink_to(real_data.resolve())
    models = [c for c in COMMANDS if "--prompt_share" in c]
    assert len(models) == 2
    for command in models:
        execute(command, tmp_path, *small, "--max_pairs", "40", "--max_length", "600", "--save_strategy", "no")
    (tmp_path / "eval.yaml").write_text("limit: 4\nexperiments: [winogender]\nconditions: [Q]\n")
    (train,) = [c for c in COMMANDS if "configs/rloo/smollm2-135m.yaml" in c]
    more = ("--checkpoint_steps", "0", "2", "--max_prompt_tokens", "300", "--evaluation", "eval.yaml")
    out = execute(train, tmp_path, *small, *more)
    assert "does not say which prompts" not in out and "a reward model was trained on them" not in out
    assert re.search(r"judge \(judge\): [+-]\d\.\d{3} \[", out) and "optimised (optimised): " in out


def test_fine_tuning_as_the_readme_says_it(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m-instruct").symlink_to(tiny)
    more = ("--max_steps", "2", "--max_length", "400", "--disable_tqdm", "true")
    assert "completed to the letter 0.000" in execute(documented("accelerate launch -m train.sft"), tmp_path, *more)


@pytest.mark.real_data
def test_plain_evaluation_with_a_data_folder(tiny: Path, tmp_path: Path, real_data: Path) -> None:
    (run,) = [c for c in COMMANDS if c.startswith("python -m eval run") and "--data-dir" in c]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m-instruct").symlink_to(tiny)
    (tmp_path / "data").symlink_to(real_data.resolve())
    assert "gap" in execute(run, tmp_path, "--limit", "4", "--cot_limit", "4", "--cot_max_new_tokens", "2")


@pytest.mark.vllm
def test_vllm_as_the_readme_says_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    build_model(tmp_path / "models" / "smollm2-135m-instruct", head_dim=32)
    (tmp_path / ".venv-vllm").symlink_to(os.environ.get("SELFCORRECT_VLLM", ROOT / ".venv-vllm"))
    few = ("--limit", "4", "--cot_limit", "4", "--cot_max_new_tokens", "2")
    assert "gap" in execute(documented(".venv-vllm/bin/python"), tmp_path, *few)


@pytest.mark.real_data
def test_scoring_published_answers(tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "data").symlink_to(real_data.resolve())
    assert "29.8" in execute(documented("python -m eval score"), tmp_path)


def test_listing_the_public_data(tmp_path: Path) -> None:
    out = execute(documented("python -m eval data list"), tmp_path)
    assert "bbq/Race_x_gender.jsonl" in out and "missing" in out


@pytest.mark.real_data
def test_fetching_and_verifying_the_public_data(tmp_path: Path, real_data: Path) -> None:
    """From a local mirror that has the files at hand, in place of the real hosts, and answers 404 for the others."""
    at_hand = [p for p in PINNED if (real_data / p.path).is_file()]
    lacking = [p.path for p in PINNED if p not in at_hand and not p.optional]
    with serving() as mirror:
        for p in at_hand:
            mirror.files["/" + p.url.split("/", 3)[3]] = (real_data / p.path).read_bytes()
        fetch = documented("python -m eval data fetch")
        out = execute(fetch, tmp_path, "--mirror", mirror.address, status=2 if lacking else 0)
    assert "--data-dir data" in out
    assert not lacking or f"{len(lacking)} of 17 files were not fetched: {', '.join(lacking)}" in out
    out = execute(documented("python -m eval data verify"), tmp_path, status=2 if lacking else 0)
    assert out.count(" right ") == len([p for p in at_hand if not p.optional])
    assert not lacking or f"{len(lacking)} missing: {', '.join(lacking)}" in out


def test_the_oracle_and_the_benchmark(tmp_path: Path) -> None:
    assert "planted" in execute(documented("python -m eval oracle"), tmp_path, "--trials", "1", "--orders", "1")
    small = ("--resamples", "20", "--orders", "1")
    assert "seconds_one_interval" in execute(documented("python -m benchmarks.bootstrap"), tmp_path, *small)


def test_bad_input_through_the_launchers(tmp_path: Path) -> None:
    """python -m ends with status 2; accelerate launch passes our line on and turns any failure into status 1."""
    (tmp_path / "c.yaml").write_text("learning_rat: 1.0e-4\n")
    line = "unknown key 'learning_rat'; did you mean 'learning_rate'?"
    out = execute("python -m train.rloo --config c.yaml", tmp_path, status=2)
    assert line in out and "Traceback" not in out
    assert line in execute("accelerate launch --quiet -m reward.train --config c.yaml", tmp_path, status=1)
