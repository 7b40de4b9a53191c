"""--json: every command prints one JSON object on stdout and nothing else there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import COMMANDS, main
from eval.data.readers import SMALL_SET
from eval.errors import InputError
from eval.runner.store import Store
from tests.support.file_server import serving

RECORD = {
    "experiment", "condition", "item", "order", "candidates", "logprobs", "prompt_tokens", "boundary_moved", "weight",
    "cluster",
}  # fmt: skip
OWN = {
    "bbq": {"category", "example_id", "template", "context_condition", "polarity", "label", "unknown", "biased"},
    "winogender": {"occupation", "bls_percent_female", "pronoun"},
    "admissions": {"sex", "LSAT", "UGPA", "race", "profile_sex"},
}


def printed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """The object on stdout, at the level of file descriptors: a stray print of a library would break it."""
    monkeypatch.setattr(sys, "argv", ["eval", *map(str, arguments), "--json"])
    capfd.readouterr()
    main()
    found = json.loads(capfd.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_every_command(tiny: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    run = ("--model", tiny, "--output", tmp_path / "run", "--categories", "Age,SES", "--limit", "16", "--orders", "1",
           "--conditions", "Q,Q+IF", "--format", "paper", "--dtype", "float32", "--data-dir", SMALL_SET)  # fmt: skip
    told = {"run": printed(monkeypatch, capfd, "run", *run)}
    told["list"] = printed(monkeypatch, capfd, "list", tmp_path)
    told["compare"] = printed(monkeypatch, capfd, "compare", tmp_path / "run", tmp_path / "run")
    (tmp_path / "training").mkdir()
    for name, value in (("run", {"algorithm": "rloo"}), ("rloo", {}), ("evaluation", {"experiments": ["winogender"]})):
        (tmp_path / "training" / f"{name}.json").write_text(json.dumps(value))
    told["watch"] = printed(monkeypatch, capfd, "watch", tmp_path / "training")
    told["report"] = printed(monkeypatch, capfd, "report", tmp_path / "run", "--output", tmp_path / "page")
    told["figures"] = printed(
        monkeypatch, capfd, "figures", tmp_path / "run", "--only", "1", "-o", tmp_path / "figures"
    )
    told["publish"] = printed(monkeypatch, capfd, "publish", tmp_path / "run", "--no_pictures")
    told["dashboard"] = printed(monkeypatch, capfd, "dashboard", "-o", tmp_path / "dashboard")
    with pytest.raises(InputError, match="1 step, at least 3 are needed"):
        printed(monkeypatch, capfd, "emergence", tmp_path / "run")
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match="trackio is not installed"):
        printed(monkeypatch, capfd, "live", tmp_path / "run")
    rows = [json.loads(line) for line in (SMALL_SET / "bbq" / "Age.jsonl").read_text().splitlines()]
    lines = [json.dumps({"category": "Age", "example_id": r["example_id"], "answer": "a"}) + "\n" for r in rows]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    told["score"] = printed(monkeypatch, capfd, "score", "--experiment", "bbq", "--predictions", tmp_path / "p.jsonl",
                            "--data-dir", SMALL_SET)  # fmt: skip
    told["measure"] = printed(monkeypatch, capfd, "measure", tmp_path)
    oracle = ("--experiments", "winogender", "--conditions", "Q", "--trials", "2")
    told["oracle"] = printed(monkeypatch, capfd, "oracle", *oracle)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = ("--data-dir", tmp_path / "public", "--only", "admissions")
    told["data list"] = printed(monkeypatch, capfd, "data", "list", *folder)
    with pytest.raises(InputError, match=r"1 missing: admissions/law_data\.csv"):
        printed(monkeypatch, capfd, "data", "verify", *folder)
    told["data verify"] = json.loads(capfd.readouterr().out)
    with serving() as empty, pytest.raises(InputError, match="1 of 1 files were not fetched"):
        printed(monkeypatch, capfd, "data", "fetch", *folder, "--mirror", empty.address)
    told["data fetch"] = json.loads(capfd.readouterr().out)
    assert set(told) | {"emergence", "live"} == set(COMMANDS)
    assert told["measure"]["current"] and not told["measure"]["failed"]
    assert [f["state"] for f in told["data list"]["files"]] == ["missing"]
    assert told["data verify"]["files"] == told["data list"]["files"]
    assert "404" in told["data fetch"]["files"][0]["problem"]
    assert {m["condition"] for m in told["run"]["metrics"]} == {"Q", "Q+IF"}
    assert {e["after"] for e in told["run"]["effects"]} == {"Q+IF"}
    assert told["run"]["format"] == "paper" and told["run"]["output"] == str(tmp_path / "run")
    assert [Path(f).name for f in told["report"]["files"]][-1] == "report.html"
    assert told["report"]["checkpoints"][0]["metrics"] == told["run"]["metrics"]
    assert [f["folder"] for f in told["list"]["results"]] == [str(tmp_path / "run")]
    assert told["watch"]["done"] == told["watch"]["failed"] == [] and told["watch"]["error"] is None
    assert told["compare"]["identical"] and told["compare"]["a"] == str(tmp_path / "run")
    assert len(told["publish"]["policies"][0]["runs"]) == 2
    assert [f["figure"] for f in told["figures"]["figures"]] == [1] and len(told["dashboard"]["files"]) == 3
    assert set(told["score"]["categories"]["Age"]) >= {
        "bias_ambig", "bias_disambig", "accuracy_ambig", "accuracy_disambig", "n_ambig", "n_disambig", "unread"
    }  # fmt: skip
    assert told["oracle"]["trials"] == 2
    for record in Store(tmp_path / "run").read():
        assert set(record) >= RECORD | OWN[record["experiment"]]
        assert len(record["candidates"]) == len(record["logprobs"]) and max(record["logprobs"]) < 0


def test_without_it_tables_are_printed(tmp_path: Path, monkeypatch, capfd) -> None:
    oracle = ("--experiments", "admissions", "--conditions", "Q,Q+IF", "--trials", "2")
    monkeypatch.setattr(sys, "argv", ["eval", "oracle", *oracle])
    main()
    out = capfd.readouterr().out
    assert "Q -> Q+IF" in out and "coverage" in out.splitlines()[0]
