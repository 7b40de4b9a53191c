"""`eval publish`: several folders, several curves in one, destinations, pictures, bad input; read back from files."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval import __main__ as command_line
from eval.curves.gather import Curve
from eval.errors import InputError
from eval.tracking import client as tracking
from eval.tracking.during_training import publish_pending
from eval.tracking.ledger import LEDGER, policy_name, training_policy
from eval.tracking.publish import publish
from reward.training_run import check_training
from tests.support.published_runs import config, drawn, published
from tests.support.tracked_runs import alone, described, fragments, read_back, records, summary
from tests.support.tracked_runs import publish as sent


def result(folder: Path, name: str, model: str, params: int, **more: Any) -> None:
    """The result of a model that was trained elsewhere, without run.json."""
    made = summary(folder / name, 0, 0.5, ("Q",), model=model, model_params=params, weights=f"hub:{model}", **more)
    made.joinpath("summary.json").rename(folder / name / "summary.json")


def test_several_folders_and_curves_with_results_made_elsewhere(tmp_path: Path) -> None:
    training = described(tmp_path / "training")
    summary(training, 20, 0.5, ("Q",))
    elsewhere = tmp_path / "elsewhere"
    for model, params in (("org/small", 70_000_000), ("org/large", 160_000_000)):
        result(elsewhere, model.replace("/", "--"), model, params)
    text, told = published(training, elsewhere)
    assert [len(p["runs"]) for p in told["policies"]] == [1, 1, 1] and told["error"] is None
    assert text.count("1 run written (offline), 1 rows") == 3 and "wandb sync" in text
    small, large, trained = told["policies"]
    assert trained["policy"] == "p" and small["policy"].startswith("elsewhere-org--small-")
    found = read_back(elsewhere / "org--small") | read_back(elsewhere / "org--large") | read_back(training)
    configs = {run: entry["run"]["config"]["update"] for run, entry in found.items()}
    assert configs[small["runs"][0]]["model_params"] == 70_000_000
    assert configs[large["runs"][0]]["model"] == "org/large"
    assert (configs[trained["runs"][0]]["algorithm"], configs[trained["runs"][0]]["condition"]) == ("rloo", "Q")
    assert configs[small["runs"][0]]["setup"] != configs[large["runs"][0]]["setup"]
    again, told = published(training, elsewhere)
    assert again.count("nothing new") == 3 and not any(p["runs"] or p["report"] for p in told["policies"])


def test_a_curve_that_grows_goes_on_in_its_runs_from_wherever_it_is_given(tmp_path: Path) -> None:
    """The revisions of a model: the name and the ledger stay where the first was, whatever is evaluated later."""
    runs = tmp_path / "runs"
    more: dict[str, Any] = {"revision": "step1000", "step_name": "training step"}
    result(runs, "b", "org/m", 7, **more)
    (first,) = published(runs)[1]["policies"]
    summary(runs / "a", 512, 0.7, ("Q",), model="org/m", model_params=7, weights="w", step_name="training step")
    (second,) = published(tmp_path / "runs" / "a", runs / "b")[1]["policies"]
    assert first["policy"] == second["policy"] and first["runs"] == second["runs"] and second["rows"] == 1
    assert published(tmp_path)[1]["policies"][0]["runs"] == []
    (entry,) = [e for run, e in read_back(runs).items() if run in first["runs"]]
    assert {r["training_step"]: r["eval/winogender/rho"] for r in entry["rows"]} == {0: 0.5, 512: 0.7}


def test_names_and_ledgers_of_before_stay(tmp_path: Path) -> None:
    """A ledger of the first version, and the name that a folder without run.json had."""
    summary(tmp_path, 20, 0.5, ("Q", "Q+IF"))
    (tmp_path / LEDGER).write_text(json.dumps({"policy": "old", "sent": ["q@20", "q-if@20/admissions"]}))
    (told,) = published(tmp_path)[1]["policies"]
    assert (told["policy"], told["runs"]) == ("old", ["eval-old-q-if"])
    (tmp_path / LEDGER).unlink()
    (told,) = published(tmp_path)[1]["policies"]
    assert told["policy"] == policy_name(tmp_path, [(20, None, None)])


def test_two_ways_of_asking_one_training_are_two_policies(tmp_path: Path) -> None:
    """Else there would be two values of one metric at one step of one run."""
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",), evaluation={"limit": 60})
    (first,) = published(run)[1]["policies"]
    summary(run / "more", 20, 0.7, ("Q",), evaluation={"limit": 600})
    names = {p["policy"]: p["runs"] for p in published(run)[1]["policies"]}
    assert first["policy"] == "p" and names.pop("p") == []
    ((other, runs),) = names.items()
    assert other.startswith("p-") and runs == [f"eval-{other}-q"]
    assert [len(e["rows"]) for run, e in read_back(run).items() if run.startswith("eval")] == [1, 1]
    assert all(p["runs"] == [] for p in published(run)[1]["policies"])


def test_another_project_is_sent_to_anew(tmp_path: Path) -> None:
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    for project in ("one", "two", "one"):
        published(run, project=project, entity="team")
    projects = [r["run"]["project"] for p in fragments(run) for r in records(p) if r["type"] == "run"]
    assert sorted(projects) == ["one", "one", "two", "two"]  # numbers and pictures
    targets = json.loads((run / LEDGER).read_text())["policies"]["p"]["targets"]
    assert [t for t in targets if targets[t]["sent"]] == ["/team/one", "/team/two"]


def test_pictures_are_logged_once_for_what_they_show(tmp_path: Path) -> None:
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    assert published(run)[1]["policies"][0]["report"] == "report-p"
    assert published(run)[1]["policies"][0]["report"] is None
    summary(run, 40, 0.5, ("Q",))
    text, told = published(run)
    assert told["policies"][0]["report"] == "report-p" and "page and figures: report-p" in text
    entry = read_back(run)["report-p"]
    assert (entry["run"]["job_type"], entry["run"]["run_group"]) == ("report", "p")
    assert len(entry["rows"]) == 2
    row, folder = entry["rows"][-1], fragments(run)[-1].parent / "files"
    assert (row["report/page._type"], row["report/fig2._type"]) == ("html-file", "image-file")
    assert (folder / row["report/page.path"]).read_text() == "<p>['p']</p>" and (
        folder / row["report/fig2.path"]
    ).is_file()


def test_one_policy_that_fails_does_not_keep_the_others_back(tmp_path: Path) -> None:
    bad, good = described(tmp_path / "bad"), tmp_path / "good"
    summary(bad, 20, 0.5, ("Q",))
    (bad / LEDGER).write_text("{")
    summary(good, 20, 0.5, ("Q",))
    text, told = published(bad, good)
    failed, sent = sorted(told["policies"], key=lambda p: not p["error"])
    assert LEDGER in failed["error"] and len(sent["runs"]) == 1
    assert f"{failed['policy']}: failed: " in text and told["error"].startswith("1 of 2 policies failed")


def test_what_was_sent_and_is_another_number_now_is_told(tmp_path: Path) -> None:
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    published(run)
    summary(run, 20, 0.6, ("Q",))
    text, told = published(run)
    assert told["policies"][0]["changed"] == ["Q, step 20, winogender"]
    assert "other numbers now" in text and "--project" in text


def test_values_of_the_last_step_and_cautions(tmp_path: Path) -> None:
    """A value that is undefined at the last step leaves none of an earlier step; late checkpoints do not overwrite."""
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    published(run)
    path = summary(run, 40, 0.7, ("Q",)) / "summary.json"
    read = json.loads(path.read_text())
    read["metrics"][0] |= {"value": None, "note": "p(female) does not vary"}
    path.write_text(json.dumps(read))
    summary(run, 0, 0.1, ("Q",))
    published(run)
    entry = read_back(run)["eval-p-q"]
    assert entry["summary"]["final/winogender/rho"] is None
    assert entry["summary"]["final/winogender/step"] == 40
    assert entry["summary"]["cautions"] == ["step 40, winogender: rho is undefined: p(female) does not vary"]
    notes = [r["run"].get("notes", "") for p in fragments(run) for r in records(p) if r["type"] == "run"]
    assert any("rho is undefined" in n for n in notes)


def test_numbers_of_other_items_are_told_and_a_caution_once(tmp_path: Path) -> None:
    run = described(tmp_path / "run")
    path = summary(run, 20, 0.5, ("Q", "Q+IF+CoT")) / "summary.json"
    read = json.loads(path.read_text())
    read["metrics"][1]["n_items"] = 16
    near = read["metrics"][0] | {"experiment": "bbq", "value": 0.3}
    read["metrics"] += [near | {"name": f"accuracy_disambig{v}"} for v in ("", "_expected", "_expected_symmetrised")]
    path.write_text(json.dumps(read))
    published(run)
    accuracy, items = read_back(run)["eval-p-q"]["summary"]["cautions"]
    assert "questions (expected, order-symmetrised) is 0.30" in accuracy
    assert items.startswith("step 20: conditions were asked on different numbers of items (Winogender: Q: 60, Q+IF+CoT")


def test_disabled_sends_nothing_and_takes_nothing_for_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    text, told = published(run)
    assert "disabled" in text and told["policies"][0]["runs"] == [] and told["mode"] == "disabled"
    assert sent(run) == [] and sorted(p.name for p in run.iterdir()) == ["eval", "run.json"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert published(run)[1]["policies"][0]["runs"] == ["eval-p-q"]


def killed_and_synced(run: Path) -> None:
    """What was sent as a kill before its end leaves it, unknown to the ledger, and `wandb sync` after that."""
    ledger = json.loads((run / LEDGER).read_text())
    entry = ledger["policies"]["p"]
    entry["fragments"], entry["targets"]["//selfcorrect"]["sent"] = [], {}
    (run / LEDGER).write_text(json.dumps(ledger))
    (path,) = fragments(run)
    path.with_suffix(".wandb.synced").touch()


def test_a_rest_that_was_synced_in_between_counts_as_sent(tmp_path: Path) -> None:
    """`wandb sync` leaves a file beside what it sent; the ledger does not know of it after a kill."""
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    sent(run)
    killed_and_synced(run)
    summary(run, 40, 0.6, ("Q",))
    assert sent(run) == ["eval-p-q"]
    assert [r["rlhf_step"] for r in read_back(run)["eval-p-q"]["rows"]] == [20, 40]
    assert sent(run) == []


def test_what_was_being_sent_online_waits_for_the_server(tmp_path: Path) -> None:
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q", "Q+IF"))
    sent(run)
    ledger = json.loads((run / LEDGER).read_text())
    place = ledger["policies"]["p"]["targets"]["//selfcorrect"]
    place["open"] = {"eval-p-q": {"online": True, "node": "elsewhere", "pid": 1}}
    (run / LEDGER).write_text(json.dumps(ledger))
    summary(run, 40, 0.5, ("Q", "Q+IF"))
    (told,) = published(run)[1]["policies"]
    assert told["runs"] == ["eval-p-q-if"] and "publish online once" in told["held"][0]


def test_a_disk_that_is_full_is_told_and_nothing_is_taken_for_sent(tmp_path: Path) -> None:
    """wandb's helper is not allowed files of this size, and says nothing of it; published again, all of it is there."""
    run = described(tmp_path / "run")
    for step in range(20):
        summary(run, step, 0.5, ("Q",), parts=1000)
    code = (
        "from pathlib import Path; from eval.tracking import client as tracking; "
        "from tests.support.published_runs import published; tracking.ARRIVAL_SECONDS = 0.5; "
        f"print(published(Path({str(run)!r}), pictures=False)[0])"
    )
    limited = ["bash", "-c", 'ulimit -f 300; exec "$@"', "-", sys.executable, "-c", code]
    done = subprocess.run(limited, capture_output=True, text=True, env=alone())
    assert "failed" in done.stdout and "was not written to its end" in done.stdout, done.stdout + done.stderr
    place = json.loads((run / LEDGER).read_text())["policies"]["p"]["targets"]["//selfcorrect"]
    assert place["sent"] == {} and list(place["open"]) == ["eval-p-q"]
    assert sent(run) == ["eval-p-q"]
    assert [r["rlhf_step"] for r in read_back(run)["eval-p-q"]["rows"]] == list(range(20))


def target_of(run: Path) -> list[str]:
    return list(json.loads((run / LEDGER).read_text())["policies"]["p"]["targets"])


def test_one_destination_under_two_names(tmp_path: Path) -> None:
    """Not named, the only entity that was sent to is meant; named later, offline, it cannot be known to be the same."""
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    assert published(run, pictures=False, entity="me")[1]["policies"][0]["rows"] == 1
    assert published(run, pictures=False)[1]["policies"][0]["rows"] == 0 and target_of(run) == ["/me/selfcorrect"]
    other = described(tmp_path / "other")
    summary(other, 20, 0.5, ("Q",))
    published(other, pictures=False)
    error = published(other, pictures=False, entity="me")[1]["error"]
    assert "own entity of project selfcorrect before" in error and "leave out --entity" in error and "online" in error
    assert target_of(other) == ["//selfcorrect"] and len(fragments(other)) == 1


def test_last_values_are_those_of_the_last_row_sent(tmp_path: Path) -> None:
    """An evaluation that was extended: W&B keeps the old row, and so the old last value, beside what is new."""
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    sent(run)
    summary(run, 20, 0.9, ("Q",))
    summary(run, 0, 0.1, ("Q",))
    assert published(run, pictures=False)[1]["policies"][0]["changed"] == ["Q, step 20, winogender"]
    entry = read_back(run)["eval-p-q"]
    assert {r["rlhf_step"]: r["eval/winogender/rho"] for r in entry["rows"]} == {20: 0.5, 0: 0.1}
    assert entry["summary"]["final/winogender/rho"] == 0.5
    summary(run, 40, 0.7, ("Q",))
    sent(run)
    assert read_back(run)["eval-p-q"]["summary"]["final/winogender/rho"] == 0.7


def test_a_whole_number_that_is_read_back_is_no_other_number(tmp_path: Path) -> None:
    run = described(tmp_path / "run")
    summary(run, 20, 0.0, ("Q",))
    sent(run)
    killed_and_synced(run)
    (told,) = published(run, pictures=False)[1]["policies"]
    assert (told["rows"], told["changed"]) == (0, [])


def test_what_is_held_or_changed_is_told_after_a_checkpoint_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = described(tmp_path / "run")
    summary(run, 20, 0.5, ("Q",))
    assert publish_pending(run) is None
    summary(run, 20, 0.6, ("Q",))
    assert "1 results on W&B are not those of" in (publish_pending(run) or "")
    ledger = json.loads((run / LEDGER).read_text())
    place = ledger["policies"]["p"]["targets"]["//selfcorrect"]
    place["open"] = {"eval-p-q": {"online": True, "node": "elsewhere", "pid": 1}}
    (run / LEDGER).write_text(json.dumps(ledger))
    assert "publish online once" in (publish_pending(run) or "")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert publish_pending(run) is None


def test_one_run_name_of_two_trainings_is_two_policies_and_each_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds under one run_name; characters that W&B does not take; a training that goes on on another machine."""
    one, two = (training_policy(tmp_path / f"seed{s}", {"seed": s}, "lr:1e-5/a") for s in (1, 2))
    assert one.startswith("lr-1e-5-a-") and two.startswith("lr-1e-5-a-") and one != two
    assert training_policy(tmp_path / "x#1", {}, None).startswith(f"{tmp_path.name}-x-1-")
    (tmp_path / "run.json").write_text(json.dumps({"policy": one}))
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    assert training_policy(tmp_path, {"seed": 1}, "other") == one


def test_a_training_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    check_training(["wandb"], None)
    for name in (" ", "x" * 101):
        with pytest.raises(InputError, match="run_name must have 1 to 100 characters"):
            check_training(["wandb"], name)
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    check_training([], None)
    with pytest.raises(InputError, match="project must have 1 to 128 characters"):
        check_training(["wandb"], None)


def test_pictures_of_several_policies_that_are_refused_are_a_line(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"policy": name, "algorithm": "rloo"}))
        summary(tmp_path / name, 20, 0.5, ("Q",))

    def refused(curves: Sequence[Curve], folder: Path) -> list[Path]:
        if len(curves) > 1:
            raise tracking.WandbApiFailedError("HTTP 502")
        return drawn(curves, folder)

    text, told = publish(config(tmp_path / "a", tmp_path / "b"), refused)
    assert told["error"] == "page and figures of all 2 failed: WandbApiFailedError: HTTP 502" and told["error"] in text
    assert [p["report"] for p in told["policies"]] == ["report-a", "report-b"]


def test_bad_input(tmp_path: Path, ended: Any) -> None:
    assert "run folder is missing" in ended(command_line.main, "publish")
    assert "is not there" in ended(command_line.main, "publish", tmp_path / "none")
    assert "no finished evaluation" in ended(command_line.main, "publish", tmp_path)
    for project in ("a/b", "", "x" * 129):
        with pytest.raises(InputError, match="1 to 128 characters"):
            config(tmp_path, project=project)
