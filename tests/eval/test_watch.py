"""Three ways to evaluate a training's checkpoints give the same records: in the training, beside it, and afterwards."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.commands.watch import CLAIM, EVALUATION_FILE, RUN_FILE, Watched, config_type, evaluate_output, watch
from eval.config import EvaluationConfig
from eval.errors import InputError, run_main
from eval.files import write_json
from eval.models import checkpoints
from eval.models.checkpoints import POLICY_FILE
from eval.runner.store import Store
from tests.support.rl_runs import rloo
from tests.support.tracked_runs import read_back

EVALUATION = "limit: 2\nexperiments: [winogender, admissions]\nconditions: [Q, Q+IF+CoT]\ncot_max_new_tokens: 3\n"
STEPS = (0, 2, 4)
FEW = {"limit": 4, "experiments": ["winogender"], "conditions": ["Q"]}


@pytest.fixture(scope="module", params=["float32 adapter", "bfloat16 adapter", "bfloat16 whole", "float32 autocast"])
def run(request: pytest.FixtureRequest, tiny: Path, tiny_reward: Path, tmp_path_factory) -> Path:
    """A training evaluated in its own process, of a model that is stored in fp32."""
    dtype, kind = request.param.split()
    folder = tmp_path_factory.mktemp("run")
    (folder / "eval.yaml").write_text(EVALUATION)
    more = ("--use_peft", str(kind == "adapter").lower(), "--max_steps", 2, "--checkpoint_steps", 0, 2)
    more += ("--bf16", str(kind == "autocast").lower())  # fp32 weights, whose products are in bf16 in the training
    rloo(tiny, tiny_reward, folder / "run", "--evaluation", folder / "eval.yaml", "--dtype", dtype, *more)
    return folder / "run"


@pytest.fixture(scope="module")
def plain(tiny: Path, tiny_reward: Path, tmp_path_factory) -> Path:
    """A finished training that was not evaluated."""
    output = tmp_path_factory.mktemp("plain") / "run"
    rloo(tiny, tiny_reward, output, "--keep_optimizer_states", "all")
    write_json(output / EVALUATION_FILE, FEW)
    return output


def records(output: Path) -> list[list[dict[str, Any]]]:
    """Of each checkpoint, in the order of the steps."""
    steps = [s for s in STEPS if (output / f"checkpoint-{s}").is_dir()]
    return [list(Store(output / "eval" / f"step-{step:06d}").read()) for step in steps]


def unevaluated(run: Path, copy: Path, *steps: int) -> Path:
    """A copy without results, with the checkpoints of these steps (default: all)."""
    left_out = [f"checkpoint-{s}" for s in STEPS if steps and s not in steps]
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("eval", *left_out))
    return copy


def watched(output: Path, **options: Any) -> dict[str, Any]:
    """The object of --json."""
    return watch(config_type()(output_dir=str(output), poll=0.05, **options))[1]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints whose weights were read, in order."""
    seen: list[str] = []
    load = checkpoints.load

    def noting(described: Any, device: str = "auto") -> Any:
        seen.append(Path(described.provenance["adapter"] or described.provenance["model"]).name)
        return load(described, device)

    monkeypatch.setattr(checkpoints, "load", noting)
    return seen


def test_three_ways_give_the_same_records(
    run: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a training in bf16 too: the base is loaded in bf16 because policy.json says so."""
    in_process = records(run)
    assert all(in_process) and in_process[0] != in_process[-1]
    beside = unevaluated(run, tmp_path / "beside")
    told = watched(beside)
    assert [s["step"] for s in told["done"]] == [0, 2] and told["error"] is None
    assert records(beside) == in_process
    after = unevaluated(run, tmp_path / "after")
    summaries = evaluate_output(after, EvaluationConfig(**json.loads((run / EVALUATION_FILE).read_text())))
    assert records(after) == in_process
    assert [s["metrics"] for s in summaries] == [s["metrics"] for s in told["done"]]
    command = unevaluated(run, tmp_path / "command")
    argv = ["eval", "run", "--config", run.parent / "eval.yaml", "--model", command, "--output", command / "eval"]
    monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
    main()
    assert records(command) == in_process
    cards = [(o / "checkpoint-2" / "README.md").read_text() for o in (beside, after, command)]
    assert len(set(cards)) == 1 and "model-index" in cards[0]
    assert loaded == ["checkpoint-0", "checkpoint-2"] * 3


def test_what_was_done_in_the_training_is_not_loaded_again(run: Path, tmp_path: Path, loaded: list[str]) -> None:
    output = tmp_path / "run"
    shutil.copytree(run, output)
    assert [s["step"] for s in watched(output)["done"]] == [0, 2]
    assert len(evaluate_output(output, EvaluationConfig(**json.loads((run / EVALUATION_FILE).read_text())))) == 2
    assert loaded == []


def test_the_training_goes_on_with_what_a_watcher_began(
    tiny: Path, tiny_reward: Path, tmp_path: Path, plain: Path
) -> None:
    """The evaluation in the training knows less of the model than one that loaded it: it is no other model for that."""
    whole = unevaluated(plain, tmp_path / "whole")
    watched(whole)
    output = unevaluated(plain, tmp_path / "run")
    shutil.rmtree(output / "checkpoint-4")
    (output / "rloo.json").unlink()
    evaluate_output(output, EvaluationConfig(**FEW))
    (output / "eval" / "step-000002" / "summary.json").unlink()
    (tmp_path / "eval.yaml").write_text(json.dumps(FEW))
    rloo(tiny, tiny_reward, output, "--evaluation", tmp_path / "eval.yaml")
    assert records(output) == records(whole)
    assert evaluated(output, 2)


def test_an_explicit_dtype_wins_and_old_checkpoints_are_loaded_as_stored(plain: Path, tmp_path: Path) -> None:
    def dtype(recorded: str | None, **options: Any) -> str:
        output = unevaluated(plain, tmp_path / f"{recorded} {options}", 4)
        path = output / "checkpoint-4" / POLICY_FILE
        policy = {k: v for k, v in json.loads(path.read_text()).items() if k != "dtype"}
        write_json(path, policy | ({"dtype": recorded} if recorded else {}))
        (summary,) = watched(output, **options)["done"]
        return summary["dtype"]

    assert dtype("bfloat16") == "bfloat16"
    assert dtype("bfloat16", dtype="float32") == "float32"
    assert dtype(None) == "float32"


def start(output: Path, source: Path, loaded: list[str]) -> Callable[[int], None]:
    """A function that moves checkpoint-N into `output` as a trainer leaves it, policy.json last."""

    def appear(step: int) -> None:
        name = f"checkpoint-{step}"
        shutil.copytree(source / name, output / name, ignore=shutil.ignore_patterns(POLICY_FILE))
        time.sleep(0.2)  # looked at several times, and not complete
        assert name not in loaded
        shutil.copy(source / name / POLICY_FILE, output / name / ".policy")
        (output / name / ".policy").rename(output / name / POLICY_FILE)

    return appear


def until(what: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def evaluated(output: Path, step: int) -> bool:
    return (output / "eval" / f"step-{step:06d}" / "summary.json").is_file()


def test_started_before_the_training_and_ended_with_it(plain: Path, tmp_path: Path, loaded: list[str], caplog) -> None:
    caplog.set_level(logging.INFO)
    output = tmp_path / "run"
    appear = start(output, plain, loaded)
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(watched, output)
        until(lambda: "waiting for the training to start" in caplog.text)
        assert not output.exists()  # a mistyped folder is not made
        started = tmp_path / "started"
        started.mkdir()
        shutil.copy(plain / RUN_FILE, started)
        shutil.copy(plain / EVALUATION_FILE, started)
        started.rename(output)  # at once: a run.json that has no evaluation.json beside it for two looks is an error
        for step in (4, 0, 2):
            appear(step)
            until(lambda step=step: evaluated(output, step))
            time.sleep(0.2)
            assert not watching.done()
        shutil.copy(plain / "rloo.json", output)
        told = watching.result(timeout=300)
    assert loaded == ["checkpoint-4", "checkpoint-0", "checkpoint-2"]
    assert [s["step"] for s in told["done"]] == [0, 2, 4] and told["error"] is None


def test_several_watchers_share_the_work(plain: Path, tmp_path: Path, loaded: list[str]) -> None:
    output = unevaluated(plain, tmp_path / "run")
    with ThreadPoolExecutor() as pool:
        told = list(pool.map(lambda _: watched(output), range(3)))
    assert [[s["step"] for s in t["done"]] for t in told] == [[0, 2, 4]] * 3
    assert sorted(loaded) == ["checkpoint-0", "checkpoint-2", "checkpoint-4"]


def test_a_locked_step_is_left_and_taken_later(plain: Path, tmp_path: Path, loaded: list[str]) -> None:
    output = unevaluated(plain, tmp_path / "run")
    with ThreadPoolExecutor() as pool, Store(output / "eval" / "step-000000").locked():
        watching = pool.submit(watched, output, give_up_after=0.001)
        until(lambda: evaluated(output, 4))
        time.sleep(0.3)  # several looks, and longer than it waits for a training that may be dead
        assert not watching.done() and not evaluated(output, 0)
    assert watching.result(timeout=300)["error"] is None
    assert evaluated(output, 0)


def test_a_failing_checkpoint_is_told_and_the_rest_done(plain: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    output = unevaluated(plain, tmp_path / "run")
    weights = output / "checkpoint-2" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    monkeypatch.setattr(sys, "argv", ["eval", "watch", str(output), "--json", "--poll", "0.05"])
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert stop.value.code == 2
    assert [s["step"] for s in told["done"]] == [0, 4]
    assert [(f["step"], Path(f["checkpoint"]).name) for f in told["failed"]] == [(2, "checkpoint-2")]
    (last,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "1 of 3 checkpoints failed, the others are done: checkpoint-2: adapter" in last
    with pytest.raises(InputError, match="1 of 3 checkpoints failed"):
        evaluate_output(output, EvaluationConfig(**FEW))
    weights.write_bytes(whole)
    assert [s["step"] for s in watched(output)["done"]] == [0, 2, 4]


def test_a_training_that_died_is_given_up(plain: Path, tmp_path: Path) -> None:
    output = unevaluated(plain, tmp_path / "run", 2)
    (output / "rloo.json").unlink()
    told = watched(output, give_up_after=0.002)
    assert [s["step"] for s in told["done"]] == [2]
    assert "nothing new in" in told["error"] and "its training has not ended" in told["error"]
    with pytest.raises(InputError, match=r"no training has started in .* for 0\.002 minutes"):
        watched(tmp_path / "never", give_up_after=0.002)
    assert not (tmp_path / "never").exists()


def test_killed_and_run_again_it_goes_on(plain: Path, tmp_path: Path, loaded: list[str], monkeypatch) -> None:
    whole = unevaluated(plain, tmp_path / "whole", 0, 2)
    watched(whole)
    output, looks = unevaluated(plain, tmp_path / "run", 0, 2), []

    def interrupted(self: Store, *given: Any) -> None:
        append(self, *given)
        looks.append(self.folder)
        if len(looks) == 2:
            raise KeyboardInterrupt

    append = Store.append
    monkeypatch.setattr(Store, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        watched(output)
    monkeypatch.setattr(Store, "append", append)
    del loaded[:]
    watched(output)
    assert loaded == ["checkpoint-2"]
    assert records(output) == records(whole)


def test_the_result_file_is_the_one_that_run_json_names(plain: Path, tmp_path: Path) -> None:
    output = unevaluated(plain, tmp_path / "run", 4)
    run = json.loads((output / RUN_FILE).read_text())
    write_json(output / RUN_FILE, {**run, "result": "ended.json"})
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(watched, output)
        until(lambda: evaluated(output, 4))
        time.sleep(0.2)
        assert not watching.done()
        write_json(output / "ended.json", {})
        assert len(watching.result(timeout=300)["done"]) == 1
    write_json(output / RUN_FILE, {k: v for k, v in run.items() if k != "result"})
    assert len(watched(output)["done"]) == 1


def test_options_take_the_place_of_the_trainings_evaluation(plain: Path, tmp_path: Path) -> None:
    output = unevaluated(plain, tmp_path / "run", 0)
    told = watched(output, limit=2, experiments=["admissions"], conditions=["Q"])
    assert {s["evaluation"]["limit"] for s in told["done"]} == {2}
    assert {s["evaluation"]["seed"] for s in told["done"]} == {0}


def test_published_after_each_and_with_pictures_at_the_end(plain: Path, tmp_path: Path) -> None:
    output = unevaluated(plain, tmp_path / "run", 0, 2)
    watched(output, publish=True)
    found, pictures = (run for _, run in sorted(read_back(output).items()))
    assert {r["rlhf_step"] for r in found["rows"]} == {0, 2}
    (row,) = pictures["rows"]
    assert {"report/page", "report/fig1", "report/fig2"} <= {name.partition(".")[0] for name in row}


def test_what_cannot_be_sent_stops_nothing(plain: Path, tmp_path: Path, monkeypatch) -> None:
    from eval.tracking import client as tracking
    from eval.tracking import send as sending

    def refused(*_: object) -> None:
        raise tracking.wandb.Error("no network")

    monkeypatch.setattr(sending, "send", refused)
    told = watched(unevaluated(plain, tmp_path / "run", 0), publish=True)
    assert len(told["done"]) == 1
    assert re.search(r"not all results were sent \(.*Error: no network\); `python -m eval publish", told["error"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the output folder of a training is missing"),
        (("RUN", "--poll", "0"), "poll must be a number above 0, not 0.0"),
        (("RUN", "--give_up_after", "-1"), "give_up_after must be a number above 0, not -1.0"),
        (("RUN", "--dtype", "fp8"), "dtype must be auto, float32, bfloat16 or float16, not 'fp8'"),
        (("RUN", "--device", "cuda:99"), "device 'cuda:99' is not there"),
        (("RUN", "--orders", "2"), "orders must be 1 (as given) or 3"),
        (("RUN", "--data_dir", "no/data"), "data folder no/data is not there"),
        (("RUN", "--limits", "2"), "unknown option --limits; did you mean 'limit'?"),
        (("RUN/checkpoint-2",), "is a model, not the output folder of a training"),
        (("RUN/run.json",), "is a file; give the output folder of a training"),
    ],
)
def test_bad_input(ended, plain: Path, arguments: tuple[str, ...], said: str) -> None:
    line = ended(main, "watch", *(a.replace("RUN", str(plain)) for a in arguments))
    assert said in line


def test_a_bad_evaluation_of_the_training(ended, plain: Path, tmp_path: Path) -> None:
    output = unevaluated(plain, tmp_path / "run")
    (output / EVALUATION_FILE).unlink()
    line = ended(main, "watch", output, "--poll", "0.05")
    assert "has no evaluation.json: its training was given no evaluation; say what to ask by --config" in line
    for values, said in (
        ({"limits": 2}, "unknown key 'limits'; did you mean 'limit'?"),
        ({"limit": "x"}, "is no evaluation"),
        ({"orders": 2}, "orders must be 1"),
    ):
        write_json(output / EVALUATION_FILE, values)
        line = ended(main, "watch", output, "--poll", "0.05")
        assert f"{output / EVALUATION_FILE}" in line and said in line
    assert not (output / "eval").exists()


def test_a_damaged_policy_json_is_told(plain: Path, tmp_path: Path) -> None:
    output = unevaluated(plain, tmp_path / "run", 0, 2)
    (output / "checkpoint-0" / POLICY_FILE).write_text("{")
    told = watched(output)
    assert [s["step"] for s in told["done"]] == [2]
    assert "policy.json is damaged" in told["error"]


def test_a_claimed_step_is_not_loaded(plain: Path, tmp_path: Path, loaded: list[str]) -> None:
    from filelock import FileLock

    from eval.commands.watch import _run_config

    output = unevaluated(plain, tmp_path / "run")
    folder = output / "eval" / "step-000002"
    folder.mkdir(parents=True)
    look = Watched(output, _run_config(EvaluationConfig(**FEW), output, "cpu"))
    with FileLock(folder / CLAIM):
        assert look.evaluate_ready() == (2, [2])
    assert loaded == ["checkpoint-0", "checkpoint-4"]
    assert look.evaluate_ready() == (1, [])
