"""What the console shows while a policy is trained: a line for each step, and the bias of each checkpoint evaluated.

    step 30/60  reward 6.12  KL 0.210  entropy 2.30  tokens 14.0  finished 62.5% | step 30: BBQ +0.020 -> +0.010
    bias at step 30, under Q -> under Q+IF, with 95% intervals:
        BBQ  +0.020 [-0.010, +0.050] -> +0.010 [-0.020, +0.040]

Behind a number stands ? where it means little, and * where it is of other questions than the number under Q. All stands
in the place of the raw logs that transformers prints. The biases are read from OUTPUT/eval, so that those of a watcher
in another process (`eval watch`) are shown too; what the signs mean is said once, at the beginning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from eval.curves.cautions import SIGNS, caution_of, checkpoint_cautions, different_items
from eval.curves.headline import headline
from eval.errors import InputError
from eval.experiments.conditions import CONDITIONS
from eval.experiments.registry import EXPERIMENTS
from eval.metrics.measure import CONTROL
from eval.runner.store import Store

log = logging.getLogger(__name__)

SHOWN = (
    ("reward", "reward", ".3f"), ("kl", "KL", ".3f"), ("entropy", "entropy", ".2f"),
    ("observed/tokens", "tokens", ".1f"), ("observed/finished", "finished", ".1%"), ("loss", "loss", ".3g"),
)  # fmt: skip
"""(name in the log, on the line, how it is written)."""
NAMES = {
    "bbq": ("BBQ", "+.3f"), "winogender": ("rho", ".2f"), "admissions": ("gap", "+.4f"),
    "winogenerated": ("rho (299)", ".2f"),
}  # fmt: skip
DOUBTFUL = "?"
"""Behind a number that means little."""
OTHERS = "*"
"""Behind a number of other questions than those of Q."""
ARROW = "->"


class Bar(ProgressCallback):
    """The progress bar alone."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Nothing: Console writes the line."""


class Console(TrainerCallback):
    """Writes the lines, on the main process."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.found: dict[Path, dict[str, Any]] = {}  # the summaries that were told
        self.damaged: set[Path] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What the signs mean, and what is known already."""
        if state.is_world_process_zero:
            tqdm.write(
                f"bias, under {CONTROL} {ARROW} under the instruction: {signs()}; {DOUBTFUL} means little, "
                f"{OTHERS} of other questions than under {CONTROL}"
            )
            self._tell_new()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The line of a step; at the end of training how long it took."""
        if not state.is_world_process_zero or not logs:
            return
        self._tell_new()
        if "train_runtime" in logs:
            tqdm.write(f"trained {state.global_step} steps in {logs['train_runtime']:.0f} s")
        else:
            tqdm.write(line(logs, state.global_step, state.max_steps, self._latest()))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last checkpoint's bias."""
        if state.is_world_process_zero:
            self._tell_new()

    def _tell_new(self) -> None:
        for path in sorted((self.output / "eval").glob("step-*/summary.json")):
            if path in self.found or path in self.damaged:
                continue
            try:
                summary = Store(path.parent).summary()
            except InputError as error:
                self.damaged.add(path)  # training goes on, and says so once
                log.warning("%s", error)
                continue
            if summary is not None:
                self.found[path] = summary
                tqdm.write("\n".join(block(summary)))

    def _latest(self) -> dict[str, Any] | None:
        return max(self.found.values(), key=lambda s: s["step"], default=None)


def readable(trainer: Any, output: Path) -> None:
    """Gives a trainer our lines instead of the raw logs; its progress bar, where it has one, stays."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(Bar)
    trainer.add_callback(Console(output))


def signs() -> str:
    """'BBQ above 0: answers follow the stereotype; ...' of the three experiments."""
    return "; ".join(f"{NAMES[e][0]} {SIGNS[e]}" for e in ("bbq", "winogender", "admissions"))


def line(logs: dict[str, Any], step: int, steps: int, latest: dict[str, Any] | None) -> str:
    """The line of one step. latest: summary.json of the latest checkpoint that was evaluated."""
    parts = [f"step {step}/{steps}"]
    parts += [f"{label} {logs[key]:{form}}" for key, label, form in SHOWN if isinstance(logs.get(key), int | float)]
    said = "  ".join(parts)
    if latest is None:
        return said
    return f"{said} | step {latest['step']}: {'  '.join(_short(*row) for row in _rows(latest))}"


def block(summary: dict[str, Any]) -> Iterator[str]:
    """A line for each experiment of a checkpoint, with intervals, and why a number means little."""
    rows = list(_rows(summary))
    if not rows:
        return
    asked = list(dict.fromkeys(m["condition"] for _, found in rows for m, _ in found))
    yield f"bias at step {summary['step']}, under {f' {ARROW} under '.join(asked)}, with 95% intervals:"
    width = max(len(NAMES[e][0]) for e, _ in rows)
    for experiment, found in rows:
        name, form = NAMES[experiment]
        yield f"    {name:<{width}}  {f' {ARROW} '.join(_with_interval(m, form) for m, _ in found)}"
        for text in dict.fromkeys(text for _, text in found if text):
            of = ", ".join(m["condition"] for m, own in found if own == text)
            yield f"    {'':<{width}}  {DOUBTFUL} {of}: {text}"
    for text in different_items(summary):
        yield f"    {OTHERS} {text}"


def _rows(summary: dict[str, Any]) -> Iterator[tuple[str, list[tuple[dict[str, Any], str]]]]:
    """(experiment, [(headline metric, why it means little or '') under Q and each instruction])."""
    known = list(checkpoint_cautions(summary))
    for experiment in EXPERIMENTS:
        found = []
        for condition in [CONTROL, *(c.name for c in CONDITIONS.values() if c.instruction)]:
            metric = headline(summary, experiment, condition)
            if metric is not None:
                caution = caution_of(known, "", summary["step"], metric)
                found.append((metric, caution.text if caution else ""))
        if found:
            yield experiment, found


def _short(experiment: str, found: list[tuple[dict[str, Any], str]]) -> str:
    name, form = NAMES[experiment]
    first = found[0][0]
    values = (
        f"{_value(m['value'], form)}{DOUBTFUL if text else ''}{OTHERS if m['n_items'] != first['n_items'] else ''}"
        for m, text in found
    )
    return f"{name} {f' {ARROW} '.join(values)}"


def _value(value: float | None, form: str) -> str:
    return "undefined" if value is None else f"{value:{form}}"


def _with_interval(metric: dict[str, Any], form: str) -> str:
    if metric["value"] is None or metric["low"] is None:
        return _value(metric["value"], form)
    return f"{metric['value']:{form}} [{metric['low']:{form}}, {metric['high']:{form}}]"
