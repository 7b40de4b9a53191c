"""DDP: two processes end with the weights, and log the rewards and KL, of one process with twice the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.torchrun import torchrun
from tests.support.two_processes import CASES, GROUP, answer, run


@pytest.fixture(scope="module")
def one(tiny: Path, tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("one")
    return output, run(str(tiny), str(tiny_reward), output, processes=1)


@pytest.fixture(scope="module")
def two(tiny: Path, tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("two")
    done = torchrun("tests.support.two_processes", tiny, tiny_reward, output)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def logged(output: Path, name: str) -> list[dict[str, float]]:
    return json.loads((output / name / f"{name}.json").read_text())["log"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.sampling])
def test_both_processes_take_part_and_see_the_prompts_of_one(
    name: str, one: tuple[Path, dict[str, Any]], two: Path
) -> None:
    halves = [json.loads((two / f"seen-{rank}-of-2.json").read_text())[name] for rank in (0, 1)]
    alone = one[1][name]
    assert len(alone) == len(halves[0]) == len(halves[1]) == 2
    for whole, left, right in zip(alone, *halves, strict=True):
        assert left + right == whole
        assert left != right
    assert alone[0] != alone[1]


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_are_logged(name: str, one: tuple[Path, dict[str, Any]], two: Path) -> None:
    alone, divided = logged(one[0], name), logged(two, name)
    assert [len(alone), len(divided)] == [2, 2]
    for key in CASES[name].compared:
        for a, b in zip(alone, divided, strict=True):
            assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-6), key
    first, second = ({key: entry[key] for key in CASES[name].compared} for entry in alone)
    assert first != pytest.approx(second, rel=1e-3, abs=1e-3)  # the losses of RLOO are 0 but for rounding


@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_come_out(name: str, one: tuple[Path, dict[str, Any]], two: Path) -> None:
    start, alone, divided = (
        load_file(folder / name / f"checkpoint-{step}" / "adapter_model.safetensors")
        for folder, step in ((one[0], 0), (one[0], 2), (two, 2))
    )
    assert alone.keys() == divided.keys()
    moved = max(float((alone[key] - start[key]).abs().max()) for key in alone)
    apart = max(float((alone[key] - divided[key]).abs().max()) for key in alone)
    assert moved > 1e-3
    assert apart < 1e-5 * moved


def test_the_answers_that_are_given_differ_in_length_and_end() -> None:
    answers = [answer([7, i], index) for i in range(8) for index in range(GROUP)]
    assert len({tuple(a) for a in answers}) == len(answers)
    assert len({len(a) for a in answers}) > 3
    assert {a[-1] == 1 for a in answers} == {True, False}
