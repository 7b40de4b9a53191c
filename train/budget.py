"""The KL budget: an adaptive KL coefficient, and the limits that a healthy run stays within.

A policy that moves too far from its start exploits its reward model: the learned reward rises while the answers
collapse into one (Gao et al. 2023, "Scaling Laws for Reward Model Overoptimization").
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from eval.files import append_json, write_text
from train.arguments import PolicyArguments

log = logging.getLogger(__name__)

KL_EXPONENT = 6
"""beta grows with this power of KL / target: 5 times at 1.3 times the target, 64 times at twice the target."""
MAX_BETA_FACTOR = 1000.0
"""beta rises to at most this many times --beta."""
WINDOW = 5
"""Number of steps in a mean, since one step is noise: that of the last steps, and that of the first for comparison."""
MAX_SAMPLES = 3
"""Answers shown with an alert."""


class AdaptiveKL(TrainerCallback):
    """Adapts the trainer's beta after each step: --beta x (KL / target)^KL_EXPONENT.

    KL is the mean of the last WINDOW steps. beta is at least --beta, which holds below the target, and at most
    MAX_BETA_FACTOR x --beta.

    Ziegler et al. 2019 ("Fine-Tuning Language Models from Human Preferences", section 2.2) and PPO's adaptive penalty
    (Schulman et al. 2017, section 4) multiply the present beta instead, by a factor that depends on the KL. That sums
    up errors and reacts late: in tests, KL swung between a tenth of the target and twice it, and each swing lost what
    was learned. A beta that depends on the KL alone forgets as fast as it reacts. It is computed from the log, which a
    checkpoint contains, so a resumed run continues exactly as it would have.
    """

    def __init__(self, trainer: Any, target: float) -> None:
        self.trainer = trainer
        self.target = target
        self.min_beta = trainer.beta

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._update_beta(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._update_beta(state)

    def _update_beta(self, state: Any) -> None:
        values = [entry["kl"] for entry in state.log_history if entry.get("kl") is not None]
        last = [kl for kl in values if not math.isnan(kl)][-WINDOW:]
        if last:
            excess = max(sum(last) / len(last) / self.target, 1.0)
            self.trainer.beta = self.min_beta * min(excess**KL_EXPONENT, MAX_BETA_FACTOR)


def limit_violations(entries: Sequence[dict[str, Any]], options: PolicyArguments) -> dict[str, str]:
    """The limits that the last steps exceed: {"kl": "KL per token 0.41 is above 0.3", ...}.

    Compares the mean of the last WINDOW steps. The limits are relative to the first WINDOW steps, except those of KL
    and of the finished answers.

    Args:
        entries: one log entry per step, from the first step on.
    """
    violations: dict[str, str] = {}
    if len(entries) < WINDOW:
        return violations

    def mean(key: str, part: Sequence[dict[str, Any]]) -> float | None:
        values = [entry[key] for entry in part if entry.get(key) is not None]
        return sum(values) / len(values) if values else None

    first, last = entries[:WINDOW], entries[-WINDOW:]
    kl = mean("kl", last)
    if options.kl_alert and kl is not None and kl > options.kl_alert:
        violations["kl"] = f"KL to the starting policy is {kl:.2f} per token, above kl_alert {options.kl_alert:g}"
    before, now = mean("entropy", first), mean("entropy", last)
    if options.entropy_alert and before and now is not None and now < options.entropy_alert * before:
        violations["entropy"] = (
            f"entropy is {now:.2f}, below {options.entropy_alert:g} (entropy_alert) of the first steps' {before:.2f}"
        )
    before, now = mean("observed/repetition", first), mean("observed/repetition", last)
    if options.repetition_alert and before is not None and now is not None and now > before + options.repetition_alert:
        violations["repetition"] = (
            f"{now:.0%} of the answers' trigrams are repeated, in the first steps {before:.0%} (repetition_alert "
            f"{options.repetition_alert:g})"
        )
    before, now = mean("observed/tokens", first), mean("observed/tokens", last)
    if options.length_alert and before and now and max(now / before, before / now) > options.length_alert:
        violations["length"] = (
            f"answers have {now:.1f} tokens, in the first steps {before:.1f} (length_alert {options.length_alert:g})"
        )
    if options.finished_alert and mean("observed/finished", last) == 0:
        violations["finished"] = (
            f"not one answer of the last {WINDOW} steps ended by itself, all were cut off (finished_alert); allow "
            "longer answers, or start from a policy that knows its end token"
        )
    return violations


def alerted_steps(path: Path) -> set[int]:
    """The steps of the alerts in a file that Alerts writes; empty if there is no file."""
    return {json.loads(line)["step"] for line in _whole_lines(path)}


def _whole_lines(path: Path) -> list[str]:
    """The complete lines of alerts.jsonl, without a last one that a kill cut off; empty if there is no file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


class Alerts(TrainerCallback):
    """Reports, with answers, each time that a run exceeds a limit. OUTPUT/alerts.jsonl has all alerts.

    latest: returns (prompts, answers) of the last step as texts.
    """

    def __init__(
        self,
        options: PolicyArguments,
        path: Path,
        latest: Callable[[], tuple[list[str], list[str]]],
    ) -> None:
        self.options = options
        self.path = path
        self.latest = latest

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes the alerts of steps that are repeated after a kill."""
        if state.is_world_process_zero and self.path.is_file():
            kept = [line for line in _whole_lines(self.path) if json.loads(line)["step"] <= state.global_step]
            write_text(self.path, "".join(kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        entries = [entry for entry in state.log_history if "samples" in entry]
        if not logs or "samples" not in logs:
            return
        new_violations = limit_violations(entries, self.options)
        for name in limit_violations(entries[:-1], self.options):
            new_violations.pop(name, None)
        for name, text in new_violations.items():
            if state.is_world_process_zero:
                self._report(name, text, state.global_step)
        if new_violations and self.options.stop_on_alert:
            control.should_training_stop = True
            control.should_save = state.global_step > 0

    def _report(self, name: str, text: str, step: int) -> None:
        prompts, answers = self.latest()
        samples = [{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)][:MAX_SAMPLES]
        append_json(self.path, {"step": step, "alert": name, "text": text, "samples": samples})
        log.warning("alert at step %d: %s", step, text)
        for sample in samples:
            log.warning("  %r -> %r", sample["prompt"][-80:], sample["answer"][:160])
