"""The pins of the public data, eval data verify | list, and errors that name the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.__main__ import main
from eval.config import EvaluationConfig
from eval.data.catalog import PINNED, DataConfig, blob_id, inventory, pin_of, table, verify
from eval.data.readers import SMALL_SET, data_folder, required
from eval.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data",), "unknown command 'data'"),
        (("data", "fech"), "did you mean 'data fetch'?"),
        (("data", "fetch", "--only", "bqq"), "did you mean 'bbq'?"),
        (("data", "fetch", "--timeout", "0"), "timeout must be"),
        (("data", "fetch", "--mirror", "ftp://x"), "mirror must be"),
        (("data", "fetch", "--mirror", "http://"), "mirror must be"),
        (("data", "fetch", "--data-dir", str(SMALL_SET)), "the small set"),
        (("data", "fetch", "--data-dir", "/dev/null/x"), "cannot be written"),
        (("data", "list", "--timeout", "3"), "unknown option --timeout"),
    ],
)
def test_bad_input(ended, arguments: tuple[str, ...], said: str) -> None:
    assert said in ended(main, *arguments)


def test_where_the_data_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DataConfig().folder == Path("data")
    monkeypatch.setenv("SELFCORRECT_DATA", str(tmp_path / "named"))
    assert DataConfig().folder == tmp_path / "named"
    assert DataConfig(data_dir="here").folder == Path("here")


def test_pins_are_whole() -> None:
    """11 files of BBQ and its supplement; what is fetched by default is not optional; addresses carry the commit."""
    bbq = [p.path for p in PINNED if p.dataset == "bbq"]
    assert len(bbq) == 12 and sum(p.endswith(".jsonl") for p in bbq) == 11
    assert (
        len({p.path for p in PINNED})
        == len({p.url for p in PINNED})
        == len({p.checksum for p in PINNED})
        == len(PINNED)
    )
    for p in PINNED:
        kind, digest = p.checksum.split(":")
        assert len(bytes.fromhex(digest)) == {"git": 20, "sha256": 32}[kind]
        assert p.url.startswith("https://") and f"/{p.source.split('@')[1]}/" in p.url
        assert p.optional == (p.dataset in ("bbq_unifiedqa", "preferences"))
        assert pin_of(Path("anywhere") / p.path) == p
    assert pin_of(Path("bbq/Mine.jsonl")) is None


def test_blob_id_is_git_s(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert (
        blob_id(tmp_path / "a") == "git:ce013625030ba8dba906f756967f9e9ca394464a"
    )  # echo hello | git hash-object --stdin


def test_missing_files_name_the_command(tmp_path: Path) -> None:
    from eval.runner.plan import plan
    from reward.preferences import preference_files

    command = f"python -m eval data fetch --data-dir {tmp_path}"
    with pytest.raises(InputError, match=command):
        required(tmp_path / "winogender" / "templates.tsv")
    with pytest.raises(InputError, match=command):
        plan(EvaluationConfig(data_dir=str(tmp_path)))
    with pytest.raises(InputError, match=f"{command} --only preferences"):
        preference_files(str(tmp_path))
    with pytest.raises(InputError, match="python -m eval data fetch --data-dir no/such"):
        data_folder("no/such")


@pytest.mark.real_data
def test_the_real_files_agree_with_their_pins(real_data: Path) -> None:
    found = inventory(DataConfig(data_dir=str(real_data)))
    states = {f["path"]: f["state"] for f in found["files"]}
    assert "wrong" not in states.values()
    assert {"bbq/Age.jsonl", "winogender/templates.tsv", "admissions/law_data.csv"} <= {
        p for p, s in states.items() if s == "right"
    }
    for f, p in zip(found["files"], PINNED, strict=True):
        assert f["state"] == "missing" or p.size in (None, f["size"])
    error = verify(DataConfig(data_dir=str(real_data)))["error"]
    assert (error is None) == all(
        s == "right" or f["optional"] for f, s in zip(found["files"], states.values(), strict=True)
    )
    assert "wrong" not in table(found)
