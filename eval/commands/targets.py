"""Which checkpoints `eval run` evaluates, at which step each stands, and which folder its results go to.

A single model goes to --output itself. Revisions, and the checkpoints of a training's output folder, go to a subfolder
each, and form one curve in `eval report`. Several models go to a subfolder each, named only after the model, so that a
longer list finds what a shorter one has evaluated.
"""

from __future__ import annotations

import logging
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from eval.cli.parser import parse, split_commas
from eval.commands.run_config import RunConfig
from eval.errors import InputError
from eval.models.checkpoints import is_hub_id, read_policy
from eval.models.target import (
    CHECKPOINT,
    POSITION,
    RLHF_STEP,
    TRAINING_STEP,
    Target,
    _hash,
    complete_checkpoints,
    numbered_checkpoints,
    safe_name,
    step_folder,
)

log = logging.getLogger(__name__)

STEP = re.compile(r"(?:^|[-_/])step[-_]?(\d+)(?=$|[-_/])")
"""The step in a revision's name: Pythia's step1000, OLMo's step1000-tokens4B and stage1-step1000-tokens3B."""
COMMIT = re.compile(r"hub:([0-9a-f]{40})")


@dataclass
class Listed:
    """A line of --models FILE, written like the command's options, or what the command line gives."""

    model: list[str] = field(default_factory=list)
    revision: list[str] = field(default_factory=list)
    adapter: str | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        self.revision = split_commas(self.revision)
        if self.step is not None and self.step < 0:
            raise InputError(f"step must be at least 0, not {self.step}")
        if len(self.model) != 1:
            raise InputError("give one model: MODEL [--revision R] [--adapter A] [--step N]")

    @property
    def name(self) -> str:
        return self.model[0]


def targets(config: RunConfig) -> tuple[Path, list[Target]]:
    """Returns the output folder, and the checkpoints in the order of evaluation.

    Raises:
        InputError: Options contradict each other, or two checkpoints would share a folder.
    """
    models = list(dict.fromkeys(config.model))
    several = len(models) > 1 or config.models is not None
    if several and (config.adapter or config.step is not None):
        raise InputError(
            "--adapter and --step belong to one model; with several, put them into the lines of --models FILE"
        )
    listed = [Listed([model], config.revision, config.adapter, config.step) for model in models]
    listed += read_list(Path(config.models), config.revision) if config.models else []
    output = Path(config.output or Path("runs") / "eval" / ("" if several else Path(models[0]).name))
    by_folder: dict[Path, Target] = {}
    for entry in listed:
        if config.scorer == "endpoint":  # a served name, even if a local folder has the same name
            folder = output / safe_name(entry.name.replace("/", "--")) if several else output
            revision = entry.revision[0] if entry.revision else None
            by_folder[folder] = Target(entry.name, entry.adapter, revision, entry.step or 0, RLHF_STEP, folder)
            continue
        for target in _expanded(entry, output / folder_name(entry.name, entry.adapter) if several else output, several):
            if by_folder.setdefault(target.folder, target) != target:
                raise InputError(
                    f"{target} is given twice, with steps {by_folder[target.folder].step} and {target.step}"
                )
    return output, list(by_folder.values())


def read_list(path: Path, revisions: list[str]) -> list[Listed]:
    """Reads --models FILE.

    Args:
        path: The file.
        revisions: The revisions of a hub model whose line gives none.

    Raises:
        InputError: A line cannot be used, which the message names, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"models file {path} cannot be read: {error}") from error
    listed = []
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from error
        if words:
            try:
                (entry,) = parse([Listed], words if words[0].startswith("--") else ["--model", *words], "models")
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from error
            if not entry.revision and is_hub_id(entry.name):
                entry.revision = revisions
            listed.append(entry)
    if not listed:
        raise InputError(f"models file {path} names no model; write one a line")
    return listed


def _expanded(entry: Listed, folder: Path, several: bool) -> list[Target]:
    path = Path(entry.name)
    if path.is_dir() and (steps := _chosen_checkpoints(path)):
        if entry.revision or entry.adapter or entry.step is not None:
            raise InputError(
                f"{path} is a training's output folder, evaluated at all its checkpoints: --revision, --adapter and "
                f"--step do not go with it; give one of its checkpoints, {steps[max(steps)]}"
            )
        return [single_target(checkpoint, folder / step_folder(step)) for step, checkpoint in sorted(steps.items())]
    if not entry.revision:
        return [single_target(path, folder, entry)]
    if path.exists():
        raise InputError(f"--revision names a revision on the hub, and {path} is local: leave it out")
    if len(entry.revision) == 1:
        (revision,) = entry.revision
        step = entry.step if entry.step is not None else step_of(revision) or 0
        inner = folder / safe_name(revision) if several else folder
        return [Target(entry.name, entry.adapter, revision, step, TRAINING_STEP, inner)]
    if entry.step is not None:
        raise InputError("--step is that of one checkpoint; of several revisions it is taken from their names")
    steps, name = _steps(entry.revision)
    return [
        Target(entry.name, entry.adapter, revision, step, name, folder / safe_name(revision))
        for revision, step in zip(entry.revision, steps, strict=True)
    ]


def step_of(revision: str) -> int | None:
    """Returns the training step in a revision's name, or None."""
    match = STEP.search(revision)
    return int(match[1]) if match else None


def _steps(revisions: list[str]) -> tuple[list[int], str]:
    """Returns the step of each revision and what it counts.

    Falls back to positions if a name has no step or two have the same.
    """
    steps = [step_of(r) for r in revisions]
    known = [s for s in steps if s is not None]
    if len(set(known)) == len(revisions):
        log.info("training steps by the revisions' names: %s", ", ".join(map(str, known)))
        return known, TRAINING_STEP
    without = next((r for r, s in zip(revisions, steps, strict=True) if s is None), None)
    why = f"revision '{without}' carries no step" if without else "two revisions carry the same step"
    log.warning("%s: all are placed by their position, 0 to %d", why, len(revisions) - 1)
    return list(range(len(revisions))), POSITION


def _chosen_checkpoints(folder: Path) -> dict[int, Path]:
    """Returns {step: complete checkpoint-N} of a training's output folder; {} for any other folder."""
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return {}
    checkpoints = numbered_checkpoints(folder)
    complete = complete_checkpoints(folder)
    if incomplete := sorted(checkpoints.keys() - complete.keys()):
        log.warning("%s: checkpoints %s are not complete and left out", folder, ", ".join(map(str, incomplete)))
    return complete


def single_target(path: Path, folder: Path, entry: Listed | None = None) -> Target:
    """Returns the target of one model, or of a checkpoint with the base and step that its trainer recorded in it.

    Args:
        path: A checkpoint or model folder, or a hub id as a path.
        folder: The results folder.
        entry: The line or options that name the model. None for a checkpoint found in a training's output folder.

    Raises:
        InputError: The checkpoint is an adapter and another is given, or its base model is not there.
    """
    name = entry.name if entry else str(path)
    adapter = entry.adapter if entry else None
    policy = read_policy(path)
    step, step_name = policy.get("rlhf_step"), policy.get("step_name", RLHF_STEP)
    revision = None
    if policy and (path / "adapter_config.json").is_file():
        if adapter:
            raise InputError(f"{path} is an adapter itself: --adapter {adapter} does not go with it")
        name, adapter, revision = policy["model"], str(path), policy.get("revision")
        if Path(name).exists():
            revision = None
        elif commit := COMMIT.fullmatch(policy.get("base_weights", "")):
            revision = commit[1]  # the branch may have moved since training
        elif not is_hub_id(name):
            raise InputError(
                f"checkpoint {path} was trained on '{name}', which is not there; give the base as --model and the "
                "checkpoint as --adapter"
            )
    elif adapter:
        recorded = read_policy(Path(adapter))
        step, step_name = recorded.get("rlhf_step"), recorded.get("step_name", RLHF_STEP)
    elif step is None and (path / "trainer_state.json").is_file() and (m := CHECKPOINT.fullmatch(path.name)):
        step, step_name = int(m[1]), TRAINING_STEP
    if entry and entry.step is not None:
        if step not in (None, entry.step):
            log.warning("%s: --step %d is used, although %d is recorded", path, entry.step, step)
        step = entry.step
    return Target(name, adapter, revision, step or 0, step_name, folder)


def folder_name(model: str, adapter: str | None = None) -> str:
    """Returns a folder name that is unique to the model: 'EleutherAI/pythia-70m' -> 'EleutherAI--pythia-70m'.

    A local path gets a hash of the whole path, so that two folders of one name do not collide.
    """
    path = Path(model)
    if path.exists():
        name = f"{safe_name(path.resolve().name)}-{_hash(str(path.resolve()))}"
    else:
        name = safe_name(model.replace("/", "--"))
    return name if adapter is None else f"{name}+{folder_name(adapter)}"
