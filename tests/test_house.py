"""The import direction train -> reward -> eval, and that eval works without the other two."""

from __future__ import annotations

import ast
import re
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
    users = [p.relative_to(ROOT).as_posix() for p in (ROOT / "eval").rglob("*.py") if "wandb" in imported(p)]
    assert users == ["eval/tracking/client.py"]


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


ROOMS = (
    ("eval/stats", "eval/types.py", "eval/secrets.py"),
    ("eval/errors.py",),
    ("eval/cli", "eval/files.py"),
    ("eval/data",),
    ("eval/experiments", "eval/models"),
    ("eval/config.py", "eval/metrics"),
    ("eval/runner",),
    ("eval/curves", "eval/scorers", "eval/validation"),
    ("eval/views", "eval/scorers/endpoint", "eval/scorers/local"),
    ("eval/views/figures", "eval/views/emergence", "eval/scorers/vllm"),
    ("eval/views/page",),
    ("eval/tracking",),
    ("eval/commands",),
    ("eval/__main__.py",),
)
"""The folders and files of eval/, lowest first: a module imports from its own room and from lower ones only."""


def modules() -> dict[str, Path]:
    """{dotted name: file} of the code."""
    paths = [path for package in ("eval", "reward", "train") for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imports() -> dict[str, set[str]]:
    """{module: the modules of ours that it imports, wherever in the file}."""
    known = modules()
    edges: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys() or {node.module}
                edges[name] |= targets & known.keys() - {name}
    return edges


def test_every_file_of_eval_has_a_room() -> None:
    rooms = {room for level in ROOMS for room in level} | {"eval/__init__.py"}
    files = [path.relative_to(ROOT) for path in (ROOT / "eval").rglob("*.py")]
    assert files
    for path in files:
        assert path.as_posix() in rooms or path.parent.as_posix() in rooms, path
    assert len([path for path in files if path.parent == Path("eval")]) <= 8


def test_imports_between_rooms_run_downwards() -> None:
    level = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}

    def of(module: str) -> int:
        path = modules()[module].relative_to(ROOT)
        return level.get(path.as_posix(), level.get(path.parent.as_posix(), 0))

    known = modules()
    edges = [(a, b) for a, targets in imports().items() for b in targets if a.startswith("eval.")]
    assert len(edges) > 100
    upward = [
        f"{a} imports {b}" for a, b in edges
        if known[a].parent != known[b].parent and b.startswith("eval.") and of(a) <= of(b)
    ]  # fmt: skip
    assert upward == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    edges = imports()

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = list(edges[start])
        while pending:
            module = pending.pop()
            if module not in seen:
                seen.add(module)
                pending += edges[module]
        return seen

    assert [module for module in edges if module in reached(module)] == []


def test_no_test_imports_a_test() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"(from|import) tests\.(\w+\.)?test_", path.read_text()), path
