"""`python -m eval run`: evaluates a checkpoint, or several in turn, each into a folder of its own.

If one of several fails, its error is reported at once and again at the end, and the others are evaluated. A complete
folder is skipped without loading the model.
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
from eval.runner.processes import ProcessGroup, RemoteError, team
from eval.scorers.registry import open_target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be evaluated, and why."""

    target: Target
    error: str


def run(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """Evaluates the checkpoints that `config` names.

    Under torchrun or accelerate launch the processes share each checkpoint's questions, and only rank 0 returns text.

    Returns:
        The text for the terminal and the object for --json. Failures of several checkpoints are in the object's
            'failed'.

    Raises:
        InputError: Bad input, or the failure of a single checkpoint.
    """
    group = team()
    output, chosen = targets(config)
    if group is not None:
        chosen = same_targets(group, chosen)
        config.device = group.device(config.device)
        log.info("%d processes share the questions; the progress bar is that of all", group.size)
    prepare_output(output)
    planned = plan(config)
    if [t.folder for t in chosen] == [output]:
        summary = evaluate_target(chosen[0], config, planned, group)
        return (_format_summary(summary, output), {**summary, "output": str(output)}) if summary else ("", {})
    done: list[tuple[Target, dict[str, Any]]] = []
    failed: list[Failure] = []
    for number, target in enumerate(chosen, 1):
        log.info("checkpoint %d of %d: %s, into %s", number, len(chosen), target, target.folder)
        try:
            done.append((target, evaluate_target(target, config, planned, group)))
        except RemoteError as error:
            failed.append(Failure(target, str(error)))
        except FAILURES as error:
            failed.append(Failure(target, log_failure(target, error)))
        free_memory()
    if group is not None and group.rank > 0:
        return "", {}
    shown = [(target.folder, summary) for target, summary in done]
    return format_summaries(output, shown, [(str(f.target), f.error) for f in failed]), {
        "output": str(output),
        "done": [{**summary, "output": str(target.folder)} for target, summary in done],
        "error": f"{len(failed)} of {len(chosen)} checkpoints failed, the others are done" if failed else None,
        "failed": [
            {"model": f.target.model, "revision": f.target.revision, "adapter": f.target.adapter, "error": f.error}
            for f in failed
        ],
    }


def same_targets(group: ProcessGroup, chosen: list[Target]) -> list[Target]:
    """Returns rank 0's targets on all ranks: a training may have saved another checkpoint in between."""
    on_rank_0 = group.from_rank_0("targets", [{**vars(t), "folder": str(t.folder)} for t in chosen])
    return [Target(**{**t, "folder": Path(t["folder"])}) for t in on_rank_0]


def evaluate_target(
    target: Target, config: RunConfig, planned: Plan, group: ProcessGroup | None = None
) -> dict[str, Any]:
    """Evaluates one checkpoint into its folder, unless it is done there already.

    If the results go beside a checkpoint of this project's trainers, its model card is written too.

    Args:
        target: The checkpoint, its step and its results folder.
        config: The options of `eval run`.
        planned: The plan of `config`.
        group: The processes of this job, each of which scores its share.

    Returns:
        The summary; {} on ranks other than 0.
    """
    from eval.views.model_card import write_card

    with nullcontext() if group is None else group.task(str(target.folder)):
        summary = _evaluated(target, config, planned, group)
        if summary and (checkpoint := target.training_checkpoint):
            write_card(checkpoint, summary)
    return summary


def _evaluated(target: Target, config: RunConfig, planned: Plan, group: ProcessGroup | None) -> dict[str, Any]:
    """Returns the summary. A complete folder's is returned without loading the model."""
    from eval.runner.store import Store

    opened = open_target(target, config, planned)
    opened.known["step_name"] = target.step_name
    first = group is None or group.rank == 0
    summary = finished(config, planned, target.folder, opened.known, target.step) if first else None
    complete = summary is not None
    if group is not None:
        complete = group.from_rank_0("complete", complete)
    if complete:
        log.info("done already: %s", target.folder)
        return summary or {}
    scorer, provenance = opened.load()
    evaluate(scorer, config, target.folder, {**provenance, "step_name": target.step_name}, target.step, planned, group)
    if not first:
        return {}
    summary = Store(target.folder).summary()
    assert summary is not None  # evaluate has written it
    return summary


def free_memory() -> None:
    """Frees the last model's memory before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _format_summary(summary: dict[str, Any], folder: Path) -> str:
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
        "\n".join(upper_bounds.bound_lines(by_cell(summary.get("upper_bounds", [])))),
        effects_table(summary["effects"]),
        f"records, breakdown and summary: {folder}",
    ]
    return "\n\n".join(filter(None, parts))


def format_summaries(output: Path, done: list[tuple[Path, dict[str, Any]]], failed: list[tuple[str, str]]) -> str:
    """Formats the headline metrics of several checkpoints.

    Args:
        output: The folder that the results folders lie in.
        done: (results folder, summary) of each evaluated checkpoint.
        failed: (name, reason) of each failed checkpoint.
    """
    from eval.cli.columns import columns
    from eval.curves.headline import headlines
    from eval.curves.tables import COLUMNS, metric_row

    named = [(str(folder.relative_to(output)), summary) for folder, summary in done]
    rows = [(name, *metric_row(summary["step"], m)) for name, summary in named for m in headlines(summary)]
    parts = [columns([("checkpoint", *COLUMNS), *rows])] if rows else []
    parts += ["\n".join(lines)] if (lines := _cautions(named)) else []
    if failed:
        parts.append(columns([("failed", "why"), *failed]))
    parts.append(f"{len(done)} of {len(done) + len(failed)} checkpoints done: {output}")
    return "\n\n".join(parts)


def _cautions(named: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Returns cautions about the numbers. Of lines that differ only in numbers, the last is kept, with a count."""
    from eval.curves.cautions import NUMBER, headline_notes
    from eval.curves.headline import headlines
    from eval.curves.tables import remarks

    by_wording: dict[str, list[str]] = {}
    for name, summary in named:
        for line in [*remarks(headlines(summary)), *headline_notes(summary)]:
            by_wording.setdefault(NUMBER.sub("#", line), []).append(f"{name}: {line}")
    return [
        lines[-1] + (f" (and {len(lines) - 1} more like it)" if len(lines) > 1 else "") for lines in by_wording.values()
    ]
