"""`python -m eval run`: evaluates a checkpoint, or several in turn, each into a folder of its own.

One of several that fails is told at once and again at the end, with the rest done. What is complete is skipped without
loading the model.
"""

from __future__ import annotations

import gc
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.commands.run_config import RunConfig
from eval.commands.targets import targets
from eval.errors import FAILURES, log_failure
from eval.files import prepare_output
from eval.models.target import Target
from eval.runner.evaluate import evaluate, finished
from eval.runner.plan import Plan, plan
from eval.runner.processes import Elsewhere, Team, team
from eval.scorers.registry import open_target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be evaluated."""

    target: Target
    error: str


def run(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """Evaluates everything that `config` names; returns the text for the terminal and the object for --json.

    Raises InputError for bad input and, where there is only one checkpoint, for what is wrong with it. Failures of
    several stand in the object's 'failed'. Under torchrun or accelerate launch the processes share each checkpoint's
    questions, and the first alone tells of them.
    """
    us = team()
    output, chosen = targets(config)
    if us is not None:
        chosen = same_targets(us, chosen)
        config.device = us.device(config.device)
        log.info("%d processes share the questions; the progress bar is that of all", us.size)
    prepare_output(output)
    planned = plan(config)
    if [t.folder for t in chosen] == [output]:
        summary = evaluate_target(chosen[0], config, planned, us)
        return (_told(summary, output), {**summary, "output": str(output)}) if summary else ("", {})
    done: list[tuple[Target, dict[str, Any]]] = []
    failed: list[Failure] = []
    for number, target in enumerate(chosen, 1):
        log.info("checkpoint %d of %d: %s, into %s", number, len(chosen), target, target.folder)
        try:
            done.append((target, evaluate_target(target, config, planned, us)))
        except Elsewhere as error:
            failed.append(Failure(target, str(error)))
        except FAILURES as error:
            failed.append(Failure(target, log_failure(target, error)))
        free_memory()
    if us is not None and us.rank > 0:
        return "", {}
    shown = [(target.folder, summary) for target, summary in done]
    return told_of_several(output, shown, [(str(f.target), f.error) for f in failed]), {
        "output": str(output),
        "done": [{**summary, "output": str(target.folder)} for target, summary in done],
        "error": f"{len(failed)} of {len(chosen)} checkpoints failed, the others are done" if failed else None,
        "failed": [
            {"model": f.target.model, "revision": f.target.revision, "adapter": f.target.adapter, "error": f.error}
            for f in failed
        ],
    }


def same_targets(us: Team, chosen: list[Target]) -> list[Target]:
    """Those that the first process has found: a training may have saved another checkpoint since."""
    found = us.of_first("targets", [{**vars(t), "folder": str(t.folder)} for t in chosen])
    return [Target(**{**t, "folder": Path(t["folder"])}) for t in found]


def evaluate_target(target: Target, config: RunConfig, planned: Plan, us: Team | None = None) -> dict[str, Any]:
    """Evaluates one checkpoint into its folder, or finds it done there; returns its summary.

    Where its results go beside a checkpoint of our trainers, its model card is written too. With `us` each process does
    its share, and on others than the first there is no summary: {}.
    """
    from eval.views.model_card import write_card

    with nullcontext() if us is None else us.task(str(target.folder)):
        summary = _evaluated(target, config, planned, us)
        if summary and (checkpoint := target.own_checkpoint):
            write_card(checkpoint, summary)
    return summary


def _evaluated(target: Target, config: RunConfig, planned: Plan, us: Team | None) -> dict[str, Any]:
    """The summary, of what is done already without loading the model."""
    from eval.runner.store import Store

    opened = open_target(target, config, planned)
    opened.known["step_name"] = target.step_name
    first = us is None or us.rank == 0
    summary = finished(config, planned, target.folder, opened.known, target.step) if first else None
    complete = summary is not None
    if us is not None:
        complete = us.of_first("complete", complete)
    if complete:
        log.info("done already: %s", target.folder)
        return summary or {}
    scorer, provenance = opened.load()
    evaluate(scorer, config, target.folder, {**provenance, "step_name": target.step_name}, target.step, planned, us)
    if not first:
        return {}
    summary = Store(target.folder).summary()
    assert summary is not None  # evaluate has written it
    return summary


def free_memory() -> None:
    """Gives back what the last model held, before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _told(summary: dict[str, Any], folder: Path) -> str:
    from eval.curves.cautions import headline_notes
    from eval.curves.tables import effects_table, remarks, text_table
    from eval.experiments.conditions import CONDITIONS
    from eval.metrics import upper_bounds
    from eval.metrics.sampled_answers import left_out_lines

    def by_cell(entries: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(entry["experiment"], entry["condition"]): entry for entry in entries}

    shown = [m for m in summary["metrics"] if m["category"] == "all" and m["condition"] in CONDITIONS]
    parts = [
        text_table([(summary["step"], m) for m in shown]),
        "\n".join([*remarks(shown), *headline_notes(summary)]),
        "\n".join(left_out_lines(by_cell(summary.get("left_out", [])))),
        "\n".join(upper_bounds.lines(by_cell(summary.get("upper_bounds", [])))),
        effects_table(summary["effects"]),
        f"records, breakdown and summary: {folder}",
    ]
    return "\n\n".join(filter(None, parts))


def told_of_several(output: Path, done: list[tuple[Path, dict[str, Any]]], failed: list[tuple[str, str]]) -> str:
    """The headline metrics of what is done, (folder, summary), and (what, why) failed."""
    from eval.cli.columns import columns
    from eval.curves.headline import headlines
    from eval.curves.tables import COLUMNS, metric_row

    named = [(str(folder.relative_to(output)), summary) for folder, summary in done]
    rows = [(name, *metric_row(summary["step"], m)) for name, summary in named for m in headlines(summary)]
    parts = [columns([("checkpoint", *COLUMNS), *rows])] if rows else []
    parts += ["\n".join(lines)] if (lines := _doubts(named)) else []
    if failed:
        parts.append(columns([("failed", "why"), *failed]))
    parts.append(f"{len(done)} of {len(done) + len(failed)} checkpoints done: {output}")
    return "\n\n".join(parts)


def _doubts(named: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What to know before believing the numbers: of lines that differ in numbers only the last, and how many."""
    from eval.curves.cautions import NUMBER, headline_notes
    from eval.curves.headline import headlines
    from eval.curves.tables import remarks

    alike: dict[str, list[str]] = {}
    for name, summary in named:
        for line in [*remarks(headlines(summary)), *headline_notes(summary)]:
            alike.setdefault(NUMBER.sub("#", line), []).append(f"{name}: {line}")
    return [lines[-1] + (f" (and {len(lines) - 1} more like it)" if len(lines) > 1 else "") for lines in alike.values()]
