"""The import direction train -> reward -> eval, and that eval works without the other two."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(("package", "forbidden"), [("eval", {"train", "reward", "trl"}), ("reward", {"train"})])
def test_import_direction(package: str, forbidden: set[str]) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & forbidden, path


def test_only_tracking_imports_wandb_on_the_evaluation_side() -> None:
    users = [p.name for p in (ROOT / "eval").rglob("*.py") if "wandb" in imported(p)]
    assert users == ["tracking.py"]


def test_eval_loads_alone() -> None:
    code = (
        "import sys, importlib, pathlib\n"
        "paths = [p for p in pathlib.Path('eval').rglob('*.py') if p.stem != '__init__']\n"
        "names = ['.'.join(p.with_suffix('').parts) for p in paths]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'train', 'reward', 'trl'}), len(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found, _, count = done.stdout.strip().rpartition(" ")
    assert found == "[]"
    assert int(count) > 15


def test_no_file_is_too_long() -> None:
    for package in ("eval", "reward", "train"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 350, path
