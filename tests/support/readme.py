"""The documented commands, and a shell that runs them.

A command for users stands in a bash block of README.md or docs/*.md. A test runs it, or parses it where it needs GPUs
or an hour. The commands that gave the numbers of a table stand in indented blocks.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> list[str]:
    """The lines of a document's bash blocks, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", document.read_text(), re.S | re.M)
    lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


COMMANDS = list(dict.fromkeys(command for document in DOCUMENTS for command in commands(document)))
"""Each once, whichever documents it stands in."""


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
