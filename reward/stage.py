"""A training stage on disk: what it was started with, and whether it is finished, so that a command can be repeated.

folder/settings.json  written at the start; another start with other settings is refused instead of mixed
folder/<result>.json  written last and atomically: its presence means that the stage is finished
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from eval.config import InputError
from eval.results import write_json

FREE = {
    "output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "log_level", "local_rank", "ddp_timeout",
    "resume_from_checkpoint", "evaluation", "evaluate", "keep_optimizer_states", "hub_token",
}  # fmt: skip
"""Settings that may differ between two starts of the same stage, since they do not change what is learned. They are not
written down, least of all a token."""


def settings_of(*configs: Any, **more: Any) -> dict[str, Any]:
    """The settings of dataclasses as JSON values, without FREE, plus `more` (hashes of data and weights)."""
    settings = {f.name: getattr(c, f.name) for c in configs for f in dataclasses.fields(c) if f.name not in FREE}
    plain = {k: v for k, v in settings.items() if isinstance(v, str | int | float | bool | list | dict | None)}
    return json.loads(json.dumps({**plain, **more}, default=str))


def last_checkpoint(folder: Path, *needed: str) -> Path | None:
    """The latest checkpoint-N in `folder` that has all files in `needed`; None without one.

    The Trainer writes trainer_state.json last, so a save that was killed does not have it.
    """
    found = [p for p in folder.glob("checkpoint-*") if all((p / name).is_file() for name in needed)]
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def train_from(trainer: Any, resumed: Path | None, ended: bool = False) -> bool:
    """trainer.train, from the checkpoint `resumed` where there is one; False where that is of the last step, or where
    training `ended` with it.

    From there transformers would train one step more: then the trainer is only brought to where the checkpoint is.
    """
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(resumed / "trainer_state.json")) if resumed else None
    if resumed is None or state is None or (state.global_step < state.max_steps and not ended):
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        return True
    state.is_world_process_zero = trainer.is_world_process_zero()
    trainer._load_from_checkpoint(str(resumed))
    trainer.state = state
    return False


class Stage:
    """A stage's folder; `result` is the name of its result file."""

    def __init__(self, folder: Path, result: str, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.result_path = folder / result
        self.settings = settings

    def begin(self) -> dict[str, Any] | None:
        """The result if the stage is finished, else None, the settings recorded.

        Raises InputError where the folder was started with other settings.
        """
        path = self.folder / "settings.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            for name in sorted({*found, *self.settings}):
                if found.get(name) != self.settings.get(name):
                    raise InputError(
                        f"{self.folder} was started with {name} = {found.get(name)!r}, now it is "
                        f"{self.settings.get(name)!r}; choose another --output_dir or remove the folder"
                    )
        else:
            write_json(path, self.settings)
        return json.loads(self.result_path.read_text(encoding="utf-8")) if self.result_path.is_file() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Marks the stage as finished."""
        write_json(self.result_path, result)
