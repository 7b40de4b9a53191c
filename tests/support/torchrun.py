"""A module of the tests in two processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `module` in two processes of one thread each, with further environment variables."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", module]
    return subprocess.run(
        [*launcher, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
