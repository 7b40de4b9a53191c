"""Summarises an RL run in a few lines."""

from __future__ import annotations

from typing import Any

WINDOW = 5
"""Steps averaged at the beginning and at the end, since one step is noise."""


def summary(result: dict[str, Any]) -> str:
    """The reward at the beginning and the end, also by part, the KL, and answers to prompts kept out of training."""
    log, parts = result["log"], result["rewards"]
    if not log:
        return f"{result['steps']} RLHF steps"
    n = min(WINDOW, len(log))

    def mean(key: str, entries: list[dict[str, Any]]) -> str:
        values = [entry[key] for entry in entries if entry[key] is not None]  # None: not finite
        return f"{sum(values) / len(values):.3f}" if values else "not finite"

    def rise(key: str) -> str:
        return f"{mean(key, log[:n])} (first {n} steps) -> {mean(key, log[-n:])} (last {n})"

    kl = log[-1].get("kl")  # TRL logs none for beta 0
    total = f"{result['steps']} RLHF steps: {'learned' if len(parts) == 1 else 'whole'} reward {rise('reward')}"
    lines = [total + ("" if kl is None else f", KL to the starting policy {kl:.3f} per token")]
    if len(parts) > 1 and f"rewards/{parts[0]['name']}/mean" in log[0]:
        lines += [f"  {p['name']}, weight {p['weight']:g}: {rise('rewards/' + p['name'] + '/mean')}" for p in parts]
    if result["stopped"]:
        lines.append(f"stopped {result['stopped']}: alerts.jsonl")
    return "\n".join([*lines, *describe_samples(result["samples"])])


def describe_samples(steps: list[dict[str, Any]]) -> list[str]:
    """A line for each reward of the last checkpoint's answers to prompts kept out of training."""
    if not steps or "change" not in steps[-1]:
        return []
    last = steps[-1]
    lines = [f"answers to {last['n_prompts']} prompts kept out of training, step {last['step']} minus step 0:"]
    for name, (value, low, high) in last["change"].items():
        if name.startswith(("rewards/", "judges/")):
            kind, part = name.split("/", 1)
            what = "judge" if kind == "judges" else "optimised"
            interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
            lines.append(f"  {part} ({what}): {value:+.3f}{interval}")
    return lines
