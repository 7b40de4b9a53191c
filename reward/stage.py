"""A training stage on disk: its settings and whether it is finished, so that a command can be repeated.

folder/settings.json  written when all checks have passed; another start with other settings is refused, not mixed
folder/<result>.json  written last and atomically: if it exists, the stage is finished
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eval.cli.parser import check_seed
from eval.errors import InputError
from eval.files import read_json, write_json
from eval.secrets import conceal, masked

log = logging.getLogger(__name__)

UNCOMPARED = {
    "output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "log_level", "local_rank", "ddp_timeout",
    "resume_from_checkpoint", "evaluation", "evaluate", "keep_optimizer_states", "hub_token",
}  # fmt: skip
"""Settings that may differ between two starts of the same stage, since they do not change what is learned. They are not
recorded.
"""


OPTIMIZER_STATES = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")
"""Files of the optimizer's state in a checkpoint: the Trainer's, FSDP2's in one file or in shards, DeepSpeed's."""


def settings_of(*configs: Any, **more: Any) -> dict[str, Any]:
    """The settings of dataclasses as JSON values, without those in UNCOMPARED. Secrets are masked.

    Args:
        more: further values, such as hashes of data and weights.

    Raises:
        InputError: a value is not a finite number, which no result file can hold.
    """
    settings = {f.name: getattr(c, f.name) for c in configs for f in dataclasses.fields(c) if f.name not in UNCOMPARED}
    plain = {k: v for k, v in settings.items() if isinstance(v, str | int | float | bool | list | dict | None)}
    for name, value in plain.items():
        try:
            json.dumps(value, default=str, allow_nan=False)
        except ValueError as error:
            raise InputError(f"{name} must be finite, not {value}; give a number, or leave it out") from error
    return json.loads(json.dumps(masked({**plain, **more}), default=str))


COUNTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "num_iterations",
    "steps_per_generation", "generation_batch_size", "pad_to_multiple_of",
)  # fmt: skip
"""The trainers divide by these. Not every trainer has all of them, and the last three may be unset."""


def check_counts(config: Any) -> None:
    """Raises InputError for a count below 1."""
    for name in COUNTS:
        if isinstance(value := getattr(config, name, None), int) and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")


def check_trainer(config: Any) -> None:
    """Raises InputError for options with which the Trainer would fail after its start."""
    check_seed(config.seed)
    if config.seed >= 2**32:
        raise InputError(f"seed must be below 2**32, which numpy takes, not {config.seed}")
    check_counts(config)
    for name in ("learning_rate", "weight_decay", "neftune_noise_alpha"):
        if (value := getattr(config, name)) is not None and not 0 <= value < math.inf:
            raise InputError(f"{name} must be a number of at least 0, not {value}")
    if config.max_steps < 1 and not 0 < config.num_train_epochs < math.inf:
        raise InputError(f"num_train_epochs must be a number above 0, not {config.num_train_epochs}; or give max_steps")
    if (optim := str(getattr(config.optim, "value", config.optim))).endswith("layerwise") and config.world_size > 1:
        raise InputError(f"optim {optim} works in one process, not in {config.world_size}; give another one")
    if (strategy := getattr(config.eval_strategy, "value", config.eval_strategy)) != "no":
        raise InputError(
            f"eval_strategy must be 'no', not '{strategy}': what is held out is measured by us, at the checkpoints or "
            "at the end; leave it out"
        )


@contextmanager
def lock_training_folder(folder: Path) -> Iterator[None]:
    """Locks a training's folder until the end of the block, or of the process; one training's processes share the lock.

    Raises:
        InputError: another training has the lock; the two would replace each other's checkpoints.
    """
    from accelerate import PartialState

    lock = FileLock(folder / ".training.lock")
    if PartialState().is_main_process:
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise InputError(
                f"another training is at work in {folder}; wait for its end or choose another --output_dir"
            ) from error
    try:
        yield
    finally:
        lock.release()


def check_tokenizer_options(config: Any) -> None:
    """Raises InputError for options with which TRL would change the tokenizer after lengths were measured with it."""
    for name in ("chat_template_path", "eos_token"):
        if getattr(config, name) is not None:
            raise InputError(f"{name} must be left out; save the tokenizer as it shall be, with the model")


def check_batches(rows: int, config: Any) -> None:
    """Raises InputError if the rows fill no batch: the training would end before its first step."""
    at_once = config.per_device_train_batch_size * config.world_size
    if config.dataloader_drop_last and rows < at_once:
        raise InputError(
            f"dataloader_drop_last leaves no batch: {rows} rows to train on are fewer than a batch of {at_once}; lower "
            "per_device_train_batch_size or leave dataloader_drop_last out"
        )


def build_trainer(build: Callable[[], Any]) -> Any:
    """Calls `build` and returns its trainer, without secrets in its options.

    Raises:
        InputError: TRL, peft or transformers refuses an option, now or when it makes the optimizer, the schedule and
            the loader of batches; or a server cannot be reached.
    """
    from eval.models.hub import first_lines

    try:
        trainer = build()
        _try_options(trainer)
    except (ValueError, ImportError, TypeError, ConnectionError) as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" not in str(error):
            raise
        raise InputError(f"the trainer cannot be made with these options: {first_lines(error)}") from error
    conceal(trainer.args)
    return trainer


def _try_options(trainer: Any) -> None:
    """Makes optimizer, schedule and loader of batches for one parameter and one row, to raise their errors early."""
    import torch
    from transformers import get_scheduler
    from transformers.trainer_optimizer import is_optimizer_factory
    from transformers.utils import is_liger_kernel_available

    args, one = trainer.args, [torch.nn.Parameter(torch.zeros(1, 1))]
    kind, options = trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
    if not is_optimizer_factory(kind) and not {"params", "model", "optimizer_dict"} & options.keys():
        kind(one, **options)  # the other optimizers need the whole model
    schedule = args.lr_scheduler_kwargs
    try:
        get_scheduler(args.lr_scheduler_type, torch.optim.SGD(one), args.get_warmup_steps(2), 2, schedule)
    except TypeError as error:  # a keyword is missing or unknown
        raise ValueError(f"lr_scheduler_kwargs: {error}") from error
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("use_liger_kernel needs the package liger-kernel, which is not there")
    workers, stay = args.dataloader_num_workers, args.dataloader_persistent_workers
    torch.utils.data.DataLoader([0], num_workers=workers, persistent_workers=stay)  # pyright: ignore[reportArgumentType]


def last_checkpoint(folder: Path, *needed: str) -> Path | None:
    """The latest checkpoint-N in `folder` from which training can resume, or None.

    It needs an optimizer's state, all files in `needed`, and a readable trainer_state.json. The Trainer writes that
    file last, so a killed save has none or a part of it.
    """
    from eval.models.target import numbered_checkpoints

    for _, path in sorted(numbered_checkpoints(folder).items(), reverse=True):
        optimizer = any(next(path.glob(name), None) for name in OPTIMIZER_STATES)
        if optimizer and all((path / name).is_file() for name in needed) and _is_whole(path / "trainer_state.json"):
            return path
    return None


def _is_whole(path: Path) -> bool:
    """Whether a file exists and is complete JSON."""
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def train_or_restore(trainer: Any, resumed: Path | None, ended: bool = False) -> bool:
    """Trains, from the checkpoint `resumed` if there is one.

    A checkpoint of the last step, or one with which training `ended`, only restores the trainer's state, because
    transformers would train one more step from it.

    Returns:
        Whether training ran.
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
    """A stage's folder. `result` is the name of its result file."""

    def __init__(self, folder: Path, result: str, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.result_path = folder / result
        self.settings = settings

    def begin(self) -> dict[str, Any] | None:
        """The result if the stage is finished, else None. Writes nothing.

        Raises:
            InputError: the folder was started with other settings.
        """
        recorded = masked(read_json(self.folder / "settings.json"))  # an earlier version did not mask secrets
        if recorded is not None:
            if "processes" not in recorded:  # an earlier version did not record them
                self.settings.pop("processes", None)
            for name in sorted({*recorded, *self.settings}):
                if recorded.get(name) != self.settings.get(name):
                    raise InputError(
                        f"{self.folder} was started with {name} = {recorded.get(name)!r}, now it is "
                        f"{self.settings.get(name)!r}; choose another --output_dir or remove the folder"
                    )
        return read_json(self.result_path)

    def record(self) -> None:
        """Writes the settings, once the options are accepted and work begins."""
        write_json(self.folder / "settings.json", self.settings)

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the result, which marks the stage as finished."""
        write_json(self.result_path, replace_non_finite(result, self.result_path.stem))


def replace_non_finite(value: Any, where: str) -> Any:
    """`value` as JSON can hold it: every number that is not finite becomes None, with a warning.

    Args:
        where: the place of `value` that the warning names, with the keys below it and the step in a log.
    """
    if isinstance(value, float) and not math.isfinite(value):
        log.warning("%s is %s: written as null", where, value)
        return None
    if isinstance(value, dict):
        step = f" at step {value['step']}" if "step" in value else ""
        return {key: replace_non_finite(part, f"{where}{step}: {key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(part, where) for part in value]
    return value
