"""`python -m eval watch OUTPUT_DIR`: evaluates a training's checkpoints as they become complete, beside the training.

The results are the same as those of the evaluation in the training process and of `eval run --model OUTPUT_DIR`, and go
to the same OUTPUT_DIR/eval/step-N. A checkpoint is complete when it has policy.json, which is written last. A step that
another process is writing is skipped and checked again later, so that several watchers share the work. The command ends
when the training's result file is there and all complete checkpoints are evaluated. `evaluate_output` does the same
after a training.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from filelock import FileLock, Timeout

from eval.cli.dispatch import JSON_HELP, CommandOutput
from eval.commands.run import evaluate_target, format_summaries, free_memory
from eval.commands.run_config import RunConfig
from eval.commands.targets import single_target
from eval.config import EvaluationConfig
from eval.errors import FAILURES, InputError, log_failure, nearest
from eval.files import prepare_output, read_json
from eval.models.checkpoints import POLICY_FILE, choose_device
from eval.models.target import numbered_checkpoints, step_folder
from eval.runner.plan import plan
from eval.runner.store import Busy
from eval.tracking.during_training import publish_pending

log = logging.getLogger(__name__)

RUN_FILE, EVALUATION_FILE = "run.json", "evaluation.json"
"""Files that a trainer writes into its output folder at the start: its description, and how to evaluate checkpoints."""
CLAIM = ".watch.lock"
"""Lock file in a step's folder. The watcher that evaluates the step holds it from before the model is loaded."""
POLL_SECONDS = 30.0


@dataclass
class WatchOptions:
    """Options of `eval watch`, without those of the evaluation."""

    output_dir: str = field(default="", metadata={"help": "output folder of a training, there already or not yet"})
    dtype: str = field(
        default="auto", metadata={"help": "auto (as it was trained, else as stored), float32, bfloat16 or float16"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1 ..."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "execute code that the model's repository brings along; read it first"}
    )
    poll: float = field(default=POLL_SECONDS, metadata={"help": "seconds between two looks at the folder"})
    give_up_after: float | None = field(
        default=None, metadata={"help": "end with an error when nothing new came for so many minutes; default never"}
    )
    publish: bool = field(default=False, metadata={"help": "send the results to Weights & Biases after each"})
    json: bool = field(default=False, metadata={"help": JSON_HELP})

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise InputError("eval watch: the output folder of a training is missing; give it as OUTPUT_DIR")
        for name in ("poll", "give_up_after"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be a number above 0, not {value}")


def config_type() -> type:
    """Returns WatchOptions with every option of EvaluationConfig, None by default."""
    hints = get_type_hints(EvaluationConfig)
    options: list[Any] = []
    for f in fields(EvaluationConfig):
        flag = {"nargs": "?", "const": True} if hints[f.name] is bool else {}  # --inverse without a value
        options.append((f.name, hints[f.name] | None, field(default=None, metadata={**f.metadata, **flag})))
    return make_dataclass("WatchConfig", options, bases=(WatchOptions,))


class Patience:
    """The time since something new came. It is over after `minutes`, or never if that is None."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.renew()

    def renew(self) -> None:
        """Restarts the time, because something new came."""
        self.since = time.monotonic()

    @property
    def over(self) -> bool:
        return self.minutes is not None and time.monotonic() - self.since > 60 * self.minutes


class Watched:
    """A training's complete checkpoints, each evaluated once into OUTPUT/eval/step-N.

    Attributes:
        done: The summaries by step.
        failed: (checkpoint, reason) by step.
        unsent: Which results are not on W&B, and why, as of the last attempt. None if all are.
    """

    def __init__(self, output: Path, config: RunConfig, publish: bool = False) -> None:
        self.output = output
        self.config = config
        self.publish = publish
        self.planned = plan(config)
        self.done: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, tuple[Path, str]] = {}
        self.unsent: str | None = None

    def complete(self) -> dict[int, Path]:
        """Returns {step: checkpoint folder}, ordered by step."""
        return {s: p for s, p in sorted(numbered_checkpoints(self.output).items()) if (p / POLICY_FILE).is_file()}

    def folder(self, step: int) -> Path:
        return self.output / "eval" / step_folder(step)

    def evaluate_ready(self) -> tuple[int, list[int]]:
        """Evaluates the complete checkpoints that no other process is on.

        Returns:
            How many were handled, and the steps that other processes are on.
        """
        handled, busy = 0, []
        for step, checkpoint in self.complete().items():
            if step in self.done or step in self.failed:
                continue
            try:
                with _claimed(self.folder(step)):
                    log.info("step %d: %s, into %s", step, checkpoint, self.folder(step))
                    target = single_target(checkpoint, self.folder(step))
                    self.done[step] = evaluate_target(target, self.config, self.planned)
            except Busy:
                busy.append(step)
                continue
            except FAILURES as error:
                self.failed[step] = checkpoint, log_failure(checkpoint, error)
            handled += 1
            free_memory()
            if self.publish and step in self.done:
                self.send()
        return handled, busy

    def send(self, pictures: bool = False) -> None:
        """Publishes what is not on W&B yet. A failure is kept in `unsent` and stops nothing."""
        self.unsent = publish_pending(self.output, pictures)

    def summaries(self) -> list[dict[str, Any]]:
        """Returns the summaries, ordered by step."""
        return [self.done[step] for step in sorted(self.done)]

    def errors(self) -> list[str]:
        """Returns what went wrong, as lines."""
        lines = [f"{path.name}: {why}" for path, why in (self.failed[s] for s in sorted(self.failed))]
        if lines:
            n = len(lines) + len(self.done)
            lines[0] = f"{len(lines)} of {n} checkpoints failed, the others are done: {lines[0]}"
        if self.unsent:
            lines.append(self.unsent)
        return lines


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Locks a step's folder, so that no other watcher loads a model for it.

    Raises:
        Busy: Another watcher holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / CLAIM)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise Busy(f"{folder} is being written by another watcher; wait for its end") from error
    try:
        yield
    finally:
        lock.release()


def evaluate_output(output: Path, config: EvaluationConfig, device: str = "auto") -> list[dict[str, Any]]:
    """Evaluates every complete checkpoint in `output` that is not evaluated yet, and waits for those of other watchers.

    Returns:
        All summaries, ordered by step.

    Raises:
        InputError: A checkpoint failed. Raised at the end, with the others done.
    """
    watched = Watched(output, _run_config(config, output, device))
    prepare_output(output / "eval")
    while any(progress := watched.evaluate_ready()):
        if not progress[0]:
            log.info("another process is evaluating steps %s: waiting for it", progress[1])
            time.sleep(POLL_SECONDS / 10)
    if errors := watched.errors():
        raise InputError("; ".join(errors))
    return watched.summaries()


def watch(config: Any) -> CommandOutput:
    """Runs `eval watch`.

    Args:
        config: The options, of config_type().

    Returns:
        The text for the terminal and the object for --json. Later failures are in the object's 'failed' and 'error'.

    Raises:
        InputError: Bad input.
    """
    output, patience = Path(config.output_dir), Patience(config.give_up_after)
    choose_device(config.device)
    _check_folder(output)
    given = {f.name: v for f in fields(EvaluationConfig) if (v := getattr(config, f.name)) is not None}
    evaluation = EvaluationConfig(**given) if given else None
    if evaluation is not None:  # report bad options before waiting for anything
        _run_config(evaluation, output, config.device, config.dtype)
        plan(evaluation)
    evaluation = _when_started(output, evaluation, config.poll, patience)
    prepare_output(output / "eval")
    chosen = _run_config(evaluation, output, config.device, config.dtype, config.trust_remote_code)
    watched = Watched(output, chosen, config.publish)
    gave_up = _follow(watched, config.poll, patience)
    if watched.publish and watched.done:
        watched.send(pictures=True)
    shown = [(watched.folder(step), watched.done[step]) for step in sorted(watched.done)]
    failed = [(path, step, why) for step, (path, why) in sorted(watched.failed.items())]
    text = format_summaries(output / "eval", shown, [(path.name, why) for path, _, why in failed])
    return text, {
        "output": str(output),
        "done": [{**summary, "output": str(folder)} for folder, summary in shown],
        "failed": [{"checkpoint": str(path), "step": step, "error": why} for path, step, why in failed],
        "error": "; ".join(filter(None, [gave_up, *watched.errors()])) or None,
    }


def _follow(watched: Watched, poll: float, patience: Patience) -> str | None:
    """Evaluates until the training has ended and all is evaluated. Returns why it gave up before that, or None."""
    logged = None
    while True:
        ended = _ended(watched.output)  # read first: no checkpoint comes after it
        handled, busy = watched.evaluate_ready()
        if ended and not handled and not busy:
            if incomplete := numbered_checkpoints(watched.output).keys() - watched.complete().keys():
                log.warning("%s: checkpoints %s are not complete and left out", watched.output, sorted(incomplete))
            return None
        if handled or busy:
            patience.renew()
        if patience.over:
            return (
                f"nothing new in {watched.output} for {patience.minutes:g} minutes, and its training has not ended; "
                "start the training again and watch again: both go on"
            )
        state = f"{len(watched.done)} evaluated{f', others are on steps {busy}' if busy else ''}"
        if not handled:
            if state != logged:
                log.info("%s: %s; %s", watched.output, state, "waiting for them" if ended else "waiting for more")
            logged = state
            time.sleep(poll)


def _ended(output: Path) -> bool:
    """Returns True if the training's last file is there: run.json's `result`, or ALGORITHM.json."""
    run = read_json(output / RUN_FILE) or {}
    name = run.get("result") or (f"{run['algorithm']}.json" if "algorithm" in run else None)
    return name is not None and (output / name).is_file()


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give the output folder of a training")
    if any((output / name).is_file() for name in (POLICY_FILE, "config.json", "adapter_config.json")):
        raise InputError(
            f"{output} is a model, not the output folder of a training; evaluate it by `python -m eval run --model "
            f"{output}`, or give the folder above it"
        )


def _when_started(
    output: Path, evaluation: EvaluationConfig | None, poll: float, patience: Patience
) -> EvaluationConfig:
    """Waits until the training has made its folder, and recorded its evaluation if none is given.

    Raises:
        InputError: The training has no evaluation, or nothing came for too long.
    """
    logged = without_evaluation = False
    while True:
        started = (output / RUN_FILE).is_file()  # read first: it is written before the evaluation
        if output.is_dir() and (chosen := evaluation or recorded_evaluation(output)):
            patience.renew()
            return chosen
        if started and (without_evaluation or _ended(output)):
            raise InputError(
                f"{output} has no {EVALUATION_FILE}: its training was given no evaluation; say what to ask by "
                "--config eval.yaml or options such as --experiments bbq"
            )
        without_evaluation = started
        if patience.over:
            raise InputError(
                f"no training has started in {output} for {patience.minutes:g} minutes; give the folder of one, or "
                "start it and watch again"
            )
        if not logged:
            log.info("waiting for the training to start in %s", output)
            logged = True
        time.sleep(poll)


def recorded_evaluation(output: Path) -> EvaluationConfig | None:
    """Returns the evaluation that the training was given, or None.

    Raises:
        InputError: The recorded evaluation cannot be used.
    """
    path = output / EVALUATION_FILE
    values = read_json(path)
    if values is None:
        return None
    known = [f.name for f in fields(EvaluationConfig)]
    for key in values:
        if key not in known:
            raise InputError(f"{path}: unknown key '{key}'{nearest(key, known)}")
    try:
        return EvaluationConfig(**values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path} is no evaluation ({error}); give one by --config eval.yaml") from error


def _run_config(
    evaluation: EvaluationConfig, output: Path, device: str, dtype: str = "auto", trust_remote_code: bool = False
) -> RunConfig:
    """Returns the options of `eval run` for the same evaluation."""
    return RunConfig(
        **dataclasses.asdict(evaluation), model=[str(output)], output=str(output / "eval"), device=device,
        dtype=dtype, trust_remote_code=trust_remote_code,
    )  # fmt: skip
