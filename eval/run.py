"""`python -m eval run`: evaluates a checkpoint, or several in turn, each into a folder of its own.

One of several that fails is told at once and again at the end, with the rest done. What is complete is skipped without
loading the model.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.config import InputError, prepare_output
from eval.evaluate import evaluate, finished
from eval.plan import Plan, plan
from eval.run_config import RunConfig
from eval.scorers.opening import open_target
from eval.targets import Target, targets

log = logging.getLogger(__name__)

FAILURES = (
    InputError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError, ImportError, MemoryError,
)  # fmt: skip
"""Bad input and what a model's own code may raise: the next one of several is still evaluated."""


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be evaluated."""

    target: Target
    error: str


def run(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """Evaluates everything that `config` names; returns the text for the terminal and the object for --json.

    Raises InputError for bad input and, where there is only one checkpoint, for what is wrong with it. Failures of
    several stand in the object's 'failed'.
    """
    output, chosen = targets(config)
    prepare_output(output)
    planned = plan(config)
    if [t.folder for t in chosen] == [output]:
        summary = evaluate_target(chosen[0], config, planned)
        return _told(summary, output), {**summary, "output": str(output)}
    done: list[tuple[Target, dict[str, Any]]] = []
    failed: list[Failure] = []
    for number, target in enumerate(chosen, 1):
        log.info("checkpoint %d of %d: %s, into %s", number, len(chosen), target, target.folder)
        try:
            done.append((target, evaluate_target(target, config, planned)))
        except FAILURES as error:
            failed.append(Failure(target, told_failure(target, error)))
        free_memory()
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


def told_failure(what: object, error: Exception) -> str:
    """Tells at once that one of several failed, with where where it is no bad input; returns why, in a line."""
    why = " ".join(str(error).split())
    if isinstance(error, InputError):
        log.error("failed, going on with the rest: %s", why)
        return why
    log.error("failed, going on with the rest: %s", what, exc_info=error)
    return f"{type(error).__name__}: {why[:200]}"


def evaluate_target(target: Target, config: RunConfig, planned: Plan) -> dict[str, Any]:
    """Evaluates one checkpoint into its folder, or finds it done there; returns its summary.

    Where its results go beside a checkpoint of our trainers, its model card is written too.
    """
    from eval.model_card import write_card

    summary = _evaluated(target, config, planned)
    if checkpoint := target.own_checkpoint:
        write_card(checkpoint, summary)
    return summary


def _evaluated(target: Target, config: RunConfig, planned: Plan) -> dict[str, Any]:
    """The summary, of what is done already without loading the model."""
    from eval.results import Store

    opened = open_target(target, config, planned)
    opened.known["step_name"] = target.step_name
    if summary := finished(config, planned, target.folder, opened.known, target.step):
        log.info("done already: %s", target.folder)
        return summary
    scorer, provenance = opened.load()
    evaluate(scorer, config, target.folder, {**provenance, "step_name": target.step_name}, target.step, planned)
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
    from eval.conditions import CONDITIONS
    from eval.sampled_answers import left_out_lines
    from eval.tables import effects_table, remarks, text_table

    shown = [m for m in summary["metrics"] if m["category"] == "all" and m["condition"] in CONDITIONS]
    parts = [
        text_table([(summary["step"], m) for m in shown]),
        "\n".join(remarks(shown)),
        "\n".join(
            left_out_lines({(lost["experiment"], lost["condition"]): lost for lost in summary.get("left_out", [])})
        ),
        effects_table(summary["effects"]),
        f"records, breakdown and summary: {folder}",
    ]
    return "\n\n".join(filter(None, parts))


def told_of_several(output: Path, done: list[tuple[Path, dict[str, Any]]], failed: list[tuple[str, str]]) -> str:
    """The headline metrics of what is done, (folder, summary), and (what, why) failed."""
    from eval.experiments.registry import EXPERIMENTS
    from eval.figures import headline
    from eval.tables import COLUMNS, columns, metric_row

    rows = [
        (str(folder.relative_to(output)), *metric_row(summary["step"], m))
        for folder, summary in done
        for e in EXPERIMENTS
        for c in EXPERIMENTS[e].CONDITIONS
        if (m := headline(summary, e, c)) is not None
    ]
    parts = [columns([("checkpoint", *COLUMNS), *rows])] if rows else []
    if failed:
        parts.append(columns([("failed", "why"), *failed]))
    parts.append(f"{len(done)} of {len(done) + len(failed)} checkpoints done: {output}")
    return "\n\n".join(parts)
