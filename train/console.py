"""The console output while a policy is trained: a line for each step, and the bias of each evaluated checkpoint.

    step 30/60  reward 6.12  KL 0.210  entropy 2.30  tokens 14.0  finished 62.5% | step 30: BBQ +0.020 -> +0.010
    bias at step 30, under Q -> under Q+IF, with 95% intervals:
        BBQ  +0.020 [-0.010, +0.050] -> +0.010 [-0.020, +0.040]

? marks a number that means little; * marks a number that covers other questions than the number under Q. These lines
replace the raw logs that transformers prints. The biases are read from OUTPUT/eval, so those of a watcher in another
process (`eval watch`) appear too. The first lines explain the signs of the numbers.
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
"""(name in the log, label on the line, number format)."""
NAMES = {
    "bbq": ("BBQ", "+.3f"), "winogender": ("rho", ".2f"), "admissions": ("gap", "+.4f"),
    "winogenerated": ("rho (299)", ".2f"),
}  # fmt: skip
DOUBTFUL = "?"
"""Follows a number that means little."""
OTHERS = "*"
"""Follows a number that covers other questions than those of Q."""
ARROW = "->"


class Bar(ProgressCallback):
    """The progress bar without log lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Does nothing: Console writes the line."""


class Console(TrainerCallback):
    """Writes the lines, on the main process."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.summaries: dict[Path, dict[str, Any]] = {}  # summaries that were shown
        self.damaged: set[Path] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Explains the signs, and shows the checkpoints that are already evaluated."""
        if state.is_world_process_zero:
            tqdm.write(
                f"bias, under {CONTROL} {ARROW} under the instruction: {describe_signs()}; {DOUBTFUL} means little, "
                f"{OTHERS} of other questions than under {CONTROL}"
            )
            self._print_new_biases()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Writes the line of a step; at the end of training, its duration."""
        if not state.is_world_process_zero or not logs:
            return
        self._print_new_biases()
        if "train_runtime" in logs:
            tqdm.write(f"trained {state.global_step} steps in {logs['train_runtime']:.0f} s")
        else:
            tqdm.write(step_line(logs, state.global_step, state.max_steps, self._latest()))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Shows the last checkpoint's bias."""
        if state.is_world_process_zero:
            self._print_new_biases()

    def _print_new_biases(self) -> None:
        for path in sorted((self.output / "eval").glob("step-*/summary.json")):
            if path in self.summaries or path in self.damaged:
                continue
            try:
                summary = Store(path.parent).summary()
            except InputError as error:
                self.damaged.add(path)  # warn once, and let training continue
                log.warning("%s", error)
                continue
            if summary is not None:
                self.summaries[path] = summary
                tqdm.write("\n".join(bias_lines(summary)))

    def _latest(self) -> dict[str, Any] | None:
        return max(self.summaries.values(), key=lambda s: s["step"], default=None)


def show_readable_log(trainer: Any, output: Path) -> None:
    """Replaces a trainer's raw logs by these lines; its progress bar, if it has one, stays."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(Bar)
    trainer.add_callback(Console(output))


def describe_signs() -> str:
    """'BBQ above 0: answers follow the stereotype; ...' of the three experiments."""
    return "; ".join(f"{NAMES[e][0]} {SIGNS[e]}" for e in ("bbq", "winogender", "admissions"))


def step_line(logs: dict[str, Any], step: int, steps: int, latest: dict[str, Any] | None) -> str:
    """The line of one step. latest: summary.json of the latest evaluated checkpoint."""
    parts = [f"step {step}/{steps}"]
    parts += [f"{label} {logs[key]:{form}}" for key, label, form in SHOWN if isinstance(logs.get(key), int | float)]
    text = "  ".join(parts)
    if latest is None:
        return text
    return f"{text} | step {latest['step']}: {'  '.join(_format_short(*row) for row in _headline_rows(latest))}"


def bias_lines(summary: dict[str, Any]) -> Iterator[str]:
    """A line for each experiment of a checkpoint, with intervals, and the reason if a number means little."""
    rows = list(_headline_rows(summary))
    if not rows:
        return
    conditions = list(dict.fromkeys(m["condition"] for _, metrics in rows for m, _ in metrics))
    yield f"bias at step {summary['step']}, under {f' {ARROW} under '.join(conditions)}, with 95% intervals:"
    width = max(len(NAMES[e][0]) for e, _ in rows)
    for experiment, metrics in rows:
        name, form = NAMES[experiment]
        yield f"    {name:<{width}}  {f' {ARROW} '.join(_format_interval(m, form) for m, _ in metrics)}"
        for text in dict.fromkeys(text for _, text in metrics if text):
            of = ", ".join(m["condition"] for m, reason in metrics if reason == text)
            yield f"    {'':<{width}}  {DOUBTFUL} {of}: {text}"
    for text in different_items(summary):
        yield f"    {OTHERS} {text}"


def _headline_rows(summary: dict[str, Any]) -> Iterator[tuple[str, list[tuple[dict[str, Any], str]]]]:
    """Yields (experiment, [(headline metric, why it means little or '') under Q and each instruction])."""
    cautions = list(checkpoint_cautions(summary))
    for experiment in EXPERIMENTS:
        metrics = []
        for condition in [CONTROL, *(c.name for c in CONDITIONS.values() if c.instruction)]:
            metric = headline(summary, experiment, condition)
            if metric is not None:
                caution = caution_of(cautions, "", summary["step"], metric)
                metrics.append((metric, caution.text if caution else ""))
        if metrics:
            yield experiment, metrics


def _format_short(experiment: str, metrics: list[tuple[dict[str, Any], str]]) -> str:
    name, form = NAMES[experiment]
    first = metrics[0][0]
    values = (
        f"{_format_value(m['value'], form)}{DOUBTFUL if text else ''}"
        f"{OTHERS if m['n_items'] != first['n_items'] else ''}"
        for m, text in metrics
    )
    return f"{name} {f' {ARROW} '.join(values)}"


def _format_value(value: float | None, form: str) -> str:
    return "undefined" if value is None else f"{value:{form}}"


def _format_interval(metric: dict[str, Any], form: str) -> str:
    if metric["value"] is None or metric["low"] is None:
        return _format_value(metric["value"], form)
    return f"{metric['value']:{form}} [{metric['low']:{form}}, {metric['high']:{form}}]"
