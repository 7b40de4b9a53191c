"""The README's promise: the demo, stopped at any moment by Ctrl-C, goes on by the same command, to its end."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DEADLINE = 300.0


class Demo:
    """The commands that `make demo` runs, on a tiny model, each time in processes with another hash seed."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self.folder = folder
        self.started = 0
        (folder / "configs").symlink_to(ROOT / "configs")
        (folder / "models").mkdir()
        (folder / "models" / "smollm2-135m-instruct").symlink_to(tiny)
        plan = subprocess.run(
            ["make", "-n", "demo", "DTYPE=float32"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        self.commands = [line for line in plan.stdout.splitlines() if re.search(r" -m (reward|train|eval)\b", line)]

    def command(self, part: str) -> str:
        """The one command of the recipe that has `part` in it."""
        (found,) = [c for c in self.commands if part in c]
        return found

    def start(self, command: str, *more: str) -> subprocess.Popen[str]:
        """Starts a command in a process group of its own, as a shell does."""
        self.started += 1
        environment = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(self.started)}
        words = shlex.split(command.replace(".venv/bin", str(BIN)))
        return subprocess.Popen(
            [*words, *more], cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def interrupt(self, command: str, *more: str, when: Callable[[], bool]) -> None:
        """Presses Ctrl-C in the command as soon as `when` holds; it must not have ended before."""
        process = self.start(command, *more)
        until = time.monotonic() + DEADLINE
        while not when():
            assert process.poll() is None and time.monotonic() < until, process.communicate()[0][-3000:]
            time.sleep(0.02)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=DEADLINE)
        assert process.returncode != 0

    def finish(self, command: str, *more: str) -> str:
        """Runs the command to its end; what it printed."""
        process = self.start(command, *more)
        output, _ = process.communicate(timeout=2 * DEADLINE)
        assert process.returncode == 0, output[-3000:]
        return output


def test_the_demo_is_stopped_at_every_stage_and_goes_on(tiny: Path, tmp_path: Path) -> None:
    """Stopped in the reward model's training, in RL after the evaluation of step 0 and again after step 12's, and in
    the full evaluation: no record is asked twice, and no complete checkpoint is written again.
    """
    demo = Demo(tmp_path, tiny)
    run = tmp_path / "runs" / "demo" / "rloo"
    small = ("--lora_top_layers", "1", "--use_cpu", "--disable_tqdm", "true")
    reward, rloo = demo.command("-m reward.train"), demo.command("-m train.rloo")
    saved = tmp_path / "runs" / "demo" / "reward" / "checkpoint-12"
    demo.interrupt(reward, *small, when=lambda: (saved / "trainer_state.json").is_file())
    demo.finish(reward, *small)

    (tmp_path / "few.yaml").write_text("experiments: [winogender]\nconditions: [Q, Q+IF]\nlimit: 60\n")
    more = (*small, "--max_prompt_tokens", "1000", "--evaluation", "few.yaml", "--max_completion_length", "4")
    more = (*more, "--max_steps", "24", "--checkpoint_steps", "0", "12", "24")
    first = run / "eval" / "step-000000"
    demo.interrupt(rloo, *more, when=lambda: (first / "summary.json").is_file())
    kept = {p: p.read_bytes() for p in (run / "checkpoint-0").iterdir() if p.name != "README.md"}
    records = (first / "records.jsonl").read_bytes()
    demo.interrupt(rloo, *more, when=lambda: (run / "eval" / "step-000012" / "summary.json").is_file())
    assert "24 RLHF steps" in demo.finish(rloo, *more)
    assert {p: p.read_bytes() for p in kept} == kept
    assert (first / "records.jsonl").read_bytes() == records
    assert len(json.loads((run / "rloo.json").read_text())["log"]) == 24

    evaluation = demo.command("-m eval run")
    few = ("--cot_limit", "4", "--cot_max_new_tokens", "2", "--categories", "Age")
    second = run / "eval" / "step-000012" / "records.jsonl"
    before = second.read_bytes()
    demo.interrupt(evaluation, *few, when=lambda: len(second.read_bytes()) > len(before))
    assert "3 of 3 checkpoints done" in demo.finish(evaluation, *few)
    for step in (0, 12, 24):
        lines = (run / "eval" / f"step-{step:06d}" / "records.jsonl").read_text().splitlines()
        keys = [tuple(json.loads(line)[k] for k in ("experiment", "condition", "item", "order")) for line in lines]
        assert len(keys) == len(set(keys))
    for command in demo.commands[-3:]:
        demo.finish(command)
    assert (run / "report" / "report.html").is_file()
