"""The checkpoint that is evaluated, and a training's checkpoints on disk."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from eval.models.checkpoints import POLICY_FILE, read_policy

RLHF_STEP, TRAINING_STEP, POSITION = "RLHF step", "training step", "position of the revision"
"""What a checkpoint's step counts; labels of the report's axis."""


CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Target:
    """One checkpoint to evaluate. folder: of its results. step_name: what `step` counts."""

    model: str
    adapter: str | None
    revision: str | None
    step: int
    step_name: str
    folder: Path

    @property
    def training_checkpoint(self) -> Path | None:
        """The checkpoint's folder, if selfcorrect trained it and its results go into OUTPUT/eval/step-N beside it; else
        None.
        """
        path = Path(self.adapter or self.model)
        beside = path.absolute().parent.resolve() / "eval" / step_folder(self.step)
        return path if (path / POLICY_FILE).is_file() and self.folder.resolve() == beside else None

    def __str__(self) -> str:
        at = f" at {self.revision}" if self.revision else ""
        return self.model + at + (f" with {self.adapter}" if self.adapter else "")


def numbered_checkpoints(folder: Path) -> dict[int, Path]:
    """{step: checkpoint-N} for a folder. The checkpoints may be incomplete."""
    return {int(m[1]): p for p in folder.glob("checkpoint-*") if (m := CHECKPOINT.fullmatch(p.name)) and p.is_dir()}


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """{step: checkpoint-N} for a folder's complete checkpoints.

    Complete means: it has policy.json, which the trainers write last, or is a full model.
    """
    return {s: p for s, p in numbered_checkpoints(folder).items() if read_policy(p) or (p / "config.json").is_file()}


def step_folder(step: int) -> str:
    """Name of the folder of a checkpoint's results, in OUTPUT/eval of a training or in --output."""
    return f"step-{step:06d}"


def safe_name(text: str) -> str:
    """`text` as a folder name. If characters had to be replaced, a hash of the text is appended."""
    safe = re.sub(r"[^A-Za-z0-9._-]|^[.]+", "_", text)[:100]
    return safe if safe == text else f"{safe}-{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
