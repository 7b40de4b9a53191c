"""The README's commands, and a shell that runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]


BIN = Path(sys.executable).parent


def execute(command: str, folder: Path, *more: str, status: int = 0) -> str:
    words = [*shlex.split(command, comments=True), *more]
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "WANDB_MODE": "offline"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    environment.pop("WANDB_SERVICE", None)  # a user's shell has no helper of wandb's, as a test before this one may
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def documented(start: str) -> str:
    (found,) = [c for c in COMMANDS if c.startswith(start)]
    return found
