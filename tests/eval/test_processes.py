"""Several processes share a checkpoint's questions: the results are those of one, whatever is killed or fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from eval.commands import run
from eval.commands.run_config import RunConfig
from eval.commands.targets import single_target
from eval.config import EvaluationConfig
from eval.errors import InputError
from eval.runner import processes
from eval.runner.distribute import assigned
from eval.runner.evaluate import evaluate
from eval.runner.plan import plan
from eval.runner.processes import ProcessGroup, RemoteError, report_as_one
from eval.runner.store import Busy, Store
from tests.support.oracle_processes import (
    POLICY,
    SMALL,
    Counting,
    ask,
    in_threads,
    records,
    sessions_too,
    summary,
    writers,
)
from tests.support.readme import documented, execute
from tests.support.torchrun import torchrun

OPTIONS = [
    word for name, value in SMALL.items() for word in (f"--{name}", value[0] if isinstance(value, list) else value)
]


def start(grief: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes, of which the second comes to grief."""
    return torchrun("tests.support.one_of_several", *arguments, GRIEF=grief)


@pytest.fixture(scope="module", autouse=True)
def of_one_thread() -> Iterator[None]:
    """As the processes that `execute` and `start` start: with another number sums are taken in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the tiny model in one process."""
    folder = tmp_path_factory.mktemp("one")
    config = RunConfig(model=[str(tiny)], output=str(folder), **SMALL)
    run.evaluate_target(single_target(tiny, folder), config, plan(config))
    return folder


def test_two_processes_end_with_the_records_of_one(tiny: Path, one: Path, tmp_path: Path) -> None:
    """By the README's command."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m-instruct").symlink_to(tiny)
    out = execute(documented("torchrun"), tmp_path, *map(str, OPTIONS))
    folder = tmp_path / "runs" / "eval" / "shared"
    assert records(folder) == records(one)
    assert summary(folder) == summary(one)
    assert (folder / "breakdown.jsonl").read_bytes() == (one / "breakdown.jsonl").read_bytes()
    found = writers(folder)
    assert set(found) == {0, 1} and min(found.values()) > 0.2 * sum(found.values())
    assert not (folder / "shards").exists()
    assert out.count("records, breakdown and summary") == out.count("2 processes share the questions") == 1
    state = json.loads((folder / "provenance.json").read_text())
    assert state["done"] == state["planned"] == sessions_too(folder)["records"]
    parts = [seconds for s in state["sessions"] for parts in s["seconds"].values() for seconds in parts.values()]
    told = [seconds for parts in sessions_too(folder)["seconds"].values() for seconds in parts.values()]
    assert sum(told) == pytest.approx(sum(parts), abs=0.01) and len(parts) > len(told)


def test_one_killed_and_the_next_run_finishes(tiny: Path, one: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    options = ["run", "--model", tiny, "--output", killed, *OPTIONS]
    done = start("killed", *options)
    assert done.returncode == 1 and "SIGKILL" in done.stderr
    left = {path.suffix: path for path in (killed / "shards").glob("*-rank-1.json*")}
    assert left[".jsonl"].read_bytes()[-1:] != b"\n"
    there = sum(path.read_bytes().count(b"\n") for path in (killed / "shards").glob("*.jsonl"))
    assert 0 < there < records(one).count(b"\n") and not (killed / "records.jsonl").exists()
    for n in (1, 2):
        folder = tmp_path / str(n)
        shutil.copytree(killed, folder)
        config = RunConfig(model=[str(tiny)], output=str(folder), **SMALL)
        ends = in_threads(
            n,
            lambda us, n=n, folder=folder, config=config: run.evaluate_target(
                single_target(tiny, folder), config, plan(config), us if n > 1 else None
            ),
        )
        assert ends[0]["metrics"] and all(end == {} for end in ends[1:])
        assert records(folder) == records(one) and summary(folder) == summary(one)
        assert writers(folder).keys() - {0} == ({None, 1} if n == 1 else {1})
        assert not (folder / "shards").exists()


def test_one_checkpoint_that_fails_in_one_process_is_told_once(tiny: Path, one: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, other := tmp_path / "other")
    models = ["--model", tiny, "--model", tmp_path / "none", "--model", other]
    done = start("error", "run", *models, "--output", tmp_path / "out", *OPTIONS)
    assert done.returncode == 1
    assert done.stderr.count("failed, going on with the rest: ") == 2
    assert f"rank 1: failed, going on with the rest: {tiny}" in done.stderr
    assert done.stderr.count("error: 2 of 3 checkpoints failed, the others are done") == 1
    assert done.stderr.count("error: ") == 1
    assert done.stdout.count("rank 1: ValueError: the model broke") == 1
    (folder,) = [path.parent for path in (tmp_path / "out").rglob("summary.json")]
    assert "other" in folder.name and records(folder) == records(one)


def test_what_several_processes_do_not_share_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(us: ProcessGroup) -> None:
        places[threading.get_ident()] = us
        with report_as_one("watch"):
            pytest.fail("watched")

    places: dict[int, ProcessGroup] = {}
    monkeypatch.setattr(processes, "team", lambda: places[threading.get_ident()])
    ends = sorted(in_threads(3, work), key=lambda end: isinstance(end, SystemExit))
    assert isinstance(ends[0], InputError) and "eval watch is the work of one process" in str(ends[0])
    assert [end.code for end in ends[1:]] == [2, 2]


@pytest.mark.parametrize("n", [2, 9])
def test_any_number_of_processes(tmp_path: Path, n: int) -> None:
    ask(tmp_path / "one")
    asked, ends = ask(tmp_path / "several", n)
    assert ends[0] and all(end == [] for end in ends[1:])
    assert records(tmp_path / "several") == records(tmp_path / "one")
    assert summary(tmp_path / "several") == summary(tmp_path / "one")
    assert asked == records(tmp_path / "one").count(b"\n")


def test_with_a_precision_they_stop_where_one_does(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "precision": 0.1, "limit": None, "categories": [], "cot_limit": 50, "conditions": ["Q", "Q+IF-CoT"],
        "experiments": ["bbq", "winogender"],
    }  # fmt: skip
    ask(tmp_path / "one", **settings)
    stops = summary(tmp_path / "one")["stopping"]
    assert [stop["groups_asked"] < stop["groups"] for stop in stops] == [True, False, False, False]
    for n in (2, 5):
        folder = tmp_path / str(n)
        assert ask(folder, n, **settings)[0] >= len(list(Store(folder).read()))
        assert records(folder) == records(tmp_path / "one") and summary(folder) == summary(tmp_path / "one")
        (folder / "summary.json").unlink()
        assert ask(folder, **settings)[0] == 0
        assert records(folder) == records(tmp_path / "one") and summary(folder) == summary(tmp_path / "one")


def test_more_processes_than_chunks(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"experiments": ["winogender"], "conditions": ["Q"]}
    ask(tmp_path / "one", **settings)
    asked, ends = ask(tmp_path / "several", 4, **settings)
    assert asked == 60 and ends[1:] == [[], [], []]
    assert records(tmp_path / "several") == records(tmp_path / "one")


def test_chunks_are_assigned_evenly_and_always_alike() -> None:
    costs = {n: (n >= 20, float(10 + n % 7)) for n in range(28)}
    for size in (1, 2, 3, 5, 40):
        shares = assigned(costs, size)
        assert sorted(n for share in shares for n in share) == list(costs) and all(s == sorted(s) for s in shares)
        assert shares == assigned(dict(reversed(costs.items())), size)
        for wanted in (costs, [n for n in costs if costs[n][0]]):
            loads = [sum(costs[n][1] for n in share if n in wanted) for share in shares]
            assert max(loads) - min(loads) <= 16  # the dearest chunk
    dear = {0: (False, 100.0), **dict.fromkeys(range(1, 11), (False, 10.0))}
    assert assigned(dear, 2) == [[0], list(range(1, 11))]  # and not in turn
    assert assigned({}, 3) == [[], [], []]


@pytest.mark.parametrize("broken", [(100,), (10**9, 100), (100, 300)])
def test_one_fails_and_all_end_and_the_next_go_on(tmp_path: Path, broken: tuple[int, ...]) -> None:
    ask(tmp_path / "one")
    whole = records(tmp_path / "one").count(b"\n")
    ends = ask(tmp_path / "out", 3, broken)[1]
    assert Counter(type(end) for end in ends) == {RuntimeError: 1, RemoteError: 2}
    there = sum(path.read_bytes().count(b"\n") for path in (tmp_path / "out" / "shards").glob("*.jsonl"))
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    for n, folder in ((1, tmp_path / "out"), (2, tmp_path / "other")):
        assert ask(folder, n)[0] == whole - there
        assert records(folder) == records(tmp_path / "one") and summary(folder) == summary(tmp_path / "one")


def test_another_job_is_refused_and_all_its_processes_end(tmp_path: Path) -> None:
    tmp_path.joinpath("out").mkdir()
    with Store(tmp_path / "out").locked():
        ends = ask(tmp_path / "out", 3)[1]
    assert isinstance(ends[0], Busy) and [type(end) for end in ends[1:]] == [RemoteError] * 2
    assert str(ends[1]) == str(ends[0])


def test_processes_with_other_weights_do_not_mix(tmp_path: Path) -> None:
    config = EvaluationConfig(**SMALL, experiments=["winogender"])
    planned = plan(config)

    def work(us: ProcessGroup) -> Any:
        with us.task("x"):
            policy = POLICY | {"weights": "w" if us.rank == 0 else "v"}
            return evaluate(Counting(planned), config, tmp_path, policy, planned=planned, group=us)

    ends = in_threads(2, work)
    assert [type(end) for end in ends] == [RemoteError, InputError] and "another weights than rank 0" in str(ends[1])


def test_what_is_done_loads_no_model_on_any_rank(tiny: Path, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.models.checkpoints.load", lambda *_: pytest.fail("loaded"))
    config = RunConfig(model=[str(tiny)], output=str(one), **SMALL)
    ends = in_threads(2, lambda us: run.evaluate_target(single_target(tiny, one), config, plan(config), us))
    assert ends == [sessions_too(one), {}]


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    second = ProcessGroup(HashStore(), rank=5, size=8, local_rank=1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert second.device("auto") == "auto"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda _: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [second.device(asked) for asked in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda:1"] * 2 + ["cuda:0", "cpu"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError, match="more processes than GPUs"):
        second.device("auto")


def test_a_training_in_several_processes_evaluates_on_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert ask(tmp_path)[1][0]
    assert not (tmp_path / "shards").exists() and "rank" not in sessions_too(tmp_path)["sessions"][0]
