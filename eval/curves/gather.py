"""RUNS... on the command line -> curves: what page, figures, dashboards and emergence are made from.

A curve is the checkpoints of one training, or the revisions of one model, or one checkpoint alone, in the order of
their steps. A folder may hold several: a sweep's, or every result below runs/. Which results belong together is told by
what they say of themselves (eval.curves.read), not by where they lie.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.curves.read import apart, by_step, read_summaries, step_name
from eval.curves.settings import settings_told
from eval.errors import InputError
from eval.files import read_json
from eval.models.target import RLHF_STEP, complete_checkpoints
from eval.runner.keys import SELECTION

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""Written by a trainer into its output folder: policy, algorithm, model, model_params, seed ..."""
WITHOUT = "remove it, and the results are shown without what it says of the training"
BEGUN, NOT_BEGUN = "evaluation begun and not finished", "not evaluated"
TRAINING = ("policy", "algorithm", "model", "model_params", "seed")


@dataclass(frozen=True)
class Curve:
    """Checkpoints of one policy. name: unique among the curves gathered together; folder: of the training (with its
    run.json) or the deepest that holds all of its results; described: run.json, {} for results made elsewhere;
    summaries: summary.json of each checkpoint by step, with its folder as 'results'; settings: in what the questions
    differ from those of other curves of the same training, such as 'limit 60', which the name has in brackets;
    unfinished: {step: why it has no results}.
    """

    name: str
    folder: Path
    described: dict[str, Any]
    summaries: tuple[dict[str, Any], ...]
    settings: str = ""
    unfinished: dict[int, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """What was trained, or what was evaluated, as given."""
        return self.described.get("model") or self.summaries[0]["model"]

    @property
    def model_params(self) -> int | None:
        """Parameters without adapters; None where they are not known (quantised, served)."""
        return self.described.get("model_params") or self.summaries[0].get("model_params")

    @property
    def seed(self) -> int | None:
        """Of the training; None for a model trained elsewhere."""
        return self.described.get("seed")

    @property
    def algorithm(self) -> str | None:
        """rloo, grpo, online_dpo or sft; None for a model trained elsewhere."""
        return self.described.get("algorithm")

    @property
    def step_name(self) -> str:
        """What its steps count: 'RLHF step', 'training step', 'revision'."""
        return step_name(list(self.summaries))

    @property
    def steps(self) -> list[int]:
        return [s["step"] for s in self.summaries]

    def at(self, step: int) -> dict[str, Any] | None:
        """The summary of a step, None where there is none."""
        return next((s for s in self.summaries if s["step"] == step), None)

    @property
    def rlhf(self) -> bool:
        """Whether its steps are those of an RLHF run: what the paper's axis counts."""
        return self.step_name == RLHF_STEP


def gather(folders: Sequence[Path]) -> list[Curve]:
    """All curves in the folders, in the order of size (unknown last), then name. A folder given twice, or inside
    another, counts once.

    Raises InputError for a folder that is not there or holds no finished evaluation, and where two results are of the
    same step of the same curve.
    """
    if not folders:
        raise InputError("no run folder is given; give folders of training runs or of `eval run`")
    found: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        for summary in read_summaries(folder):
            found.setdefault(Path(summary["results"]).resolve(), summary)
    groups: dict[Any, list[dict[str, Any]]] = {}
    for summary in found.values():
        groups.setdefault(_belonging(Path(summary["results"])), []).append(summary)
    parts = [part for group in groups.values() for part in _parts(group)]
    curves = _named([_curve(part) for part in parts])
    _add_unfinished(curves, folders)
    return sorted(curves, key=lambda c: (c.model_params is None, c.model_params or 0, c.name))


def whole(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, those of one training as one where they have no step in common: checkpoints of one policy, of which
    some were asked otherwise than others.
    """
    told: list[Curve] = []
    for folder in dict.fromkeys(c.folder for c in curves):
        ours = [c for c in curves if c.folder == folder]
        first, steps = ours[0], [s for c in ours for s in c.steps]
        differ = {apart(first.summaries[0], c.summaries[0]) for c in ours[1:]}
        if first.described and len(set(steps)) == len(steps) and differ and differ <= {"prompt_version", *SELECTION}:
            summaries = sorted((s for c in ours for s in c.summaries), key=lambda s: s["step"])
            unfinished = {s: why for c in ours for s, why in c.unfinished.items() if s not in steps}
            name = first.name.removesuffix(f" ({first.settings})")
            ours = [Curve(name, folder, first.described, tuple(summaries), unfinished=unfinished)]
        told += ours
    return told


def unfinished(curves: Sequence[Curve], told: Container[tuple[str, int | None]] = ()) -> list[str]:
    """A line for each curve with checkpoints that have no results, and why. told: (curve's name, step) not to name."""
    lines: dict[tuple[str, str], list[str]] = {}
    for curve in curves:
        for step, why in sorted(curve.unfinished.items()):
            if (curve.name, step) not in told:
                lines.setdefault((curve.name, why), []).append(str(step))
    return [f"{name}: {why} at step {', '.join(steps)}" for (name, why), steps in lines.items()]


def metrics(curves: Sequence[Curve]) -> Iterator[tuple[Curve, dict[str, Any], dict[str, Any]]]:
    """(curve, summary, metric) of every metric of every checkpoint."""
    for curve in curves:
        for summary in curve.summaries:
            for metric in summary["metrics"]:
                yield curve, summary, metric


def find(
    summary: dict[str, Any], experiment: str, condition: str, name: str, category: str = "all"
) -> dict[str, Any] | None:
    """The metric of that name, None where it was not asked."""
    wanted = (experiment, condition, name, category)
    return next(
        (m for m in summary["metrics"] if (m["experiment"], m["condition"], m["name"], m["category"]) == wanted), None
    )


def size_name(params: int | None) -> str:
    """135,000,000 -> '135M', 1,700,000,000 -> '1.7B', None -> 'size not known'."""
    if params is None:
        return "size not known"
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if params >= 0.9995 * unit:
            return f"{float(f'{params / unit:.3g}'):g}{name}"
    return str(params)


def training_folder(results: Path) -> Path | None:
    """The folder of the training that the results lie in: the nearest above with run.json."""
    return next((p for p in (results, *results.parents) if (p / RUN_FILE).is_file()), None)


def _belonging(results: Path) -> Any:
    """Results of one training by its folder, others all together: what is told apart among them is told by `apart`."""
    training = training_folder(results)
    return training.resolve() if training else None


def _parts(group: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The group in curves: in a training all that agrees; elsewhere only revisions of one model and steps given."""
    parts: list[list[dict[str, Any]]] = []
    for summary in group:
        home = next((p for p in parts if not apart(p[0], summary) and _one_model(p, summary)), None)
        if home is None:
            parts.append([summary])
        else:
            home.append(summary)
    return parts


def _one_model(part: list[dict[str, Any]], summary: dict[str, Any]) -> bool:
    """Outside a training, models under different names are different models, whatever their size, and so are adapters
    that do not lie side by side, as the checkpoints of one training do.
    """
    folder = training_folder(Path(summary["results"]))
    return folder is not None or _made_of(part[0]) == _made_of(summary)


def _made_of(summary: dict[str, Any]) -> tuple[str, Path | None]:
    adapter = summary.get("adapter")
    return summary["model"], Path(adapter).parent if adapter else None


def _curve(part: list[dict[str, Any]]) -> Curve:
    paths = [Path(s["results"]) for s in part]
    training = training_folder(paths[0])
    described = (read_json(training / RUN_FILE, WITHOUT) if training else None) or {}
    folder = training or _common(paths)
    return Curve("", folder, described, tuple(by_step(part, folder)))


def _common(paths: list[Path]) -> Path:
    """The deepest folder that holds all of them; a lone result is its own."""
    first = paths[0]
    candidates = [first, *first.parents]
    return next(c for c in candidates if all(c == p or c in p.parents for p in paths))


def _named(curves: Sequence[Curve]) -> list[Curve]:
    """The curves with their names: the policy's, or as many of the folder's last parts as tell folders apart, and what
    was asked otherwise where one training, or folder, has several.
    """
    names = {c.folder: c.described.get("policy") or _tail(c, 1) for c in curves}
    for depth in range(2, 12):
        found = list(names.values())
        names |= {c.folder: _tail(c, depth) for c in curves if found.count(names[c.folder]) > 1}
    told: list[Curve] = []
    for folder, name in names.items():
        alike = [c for c in curves if c.folder == folder]
        settings = settings_told([c.summaries[0] for c in alike])
        for k, (curve, said) in enumerate(zip(alike, settings, strict=True)):
            unique = said if settings.count(said) == 1 else f"{said} {k + 1}".strip()
            told.append(replace(curve, name=f"{name} ({unique})" if len(alike) > 1 else name, settings=unique))
    return told


def _tail(curve: Curve, depth: int) -> str:
    return "/".join(curve.folder.resolve().parts[1:][-depth:])


def _add_unfinished(curves: Sequence[Curve], folders: Sequence[Path]) -> None:
    """Notes, with the curve that they belong to, the checkpoints whose evaluation was begun and not finished, and those
    of a training that were not evaluated. An evaluation that was begun and belongs to no curve is logged.
    """
    begun = {path.parent.resolve(): path for folder in folders for path in folder.rglob("provenance.json")}
    for results, path in sorted(begun.items()):
        known = None if (results / "summary.json").is_file() else read_json(path)
        if known is None or not {"planned", "step"} <= known.keys():
            continue
        home = _home(curves, training_folder(results), known)
        if home is None:
            log.warning("%s: the evaluation was begun and not finished, so it is not shown", results)
        elif known["step"] not in home.steps:
            home.unfinished[known["step"]] = BEGUN
    for folder in {c.folder for c in curves if c.described}:
        ours = [c for c in curves if c.folder == folder]
        for step in complete_checkpoints(folder).keys() - {s for c in ours for s in (*c.steps, *c.unfinished)}:
            ours[0].unfinished[step] = NOT_BEGUN


def _home(curves: Sequence[Curve], training: Path | None, begun: dict[str, Any]) -> Curve | None:
    """The curve that an evaluation would have belonged to: of its training, or of its model; None where none would."""
    ours = [c for c in curves if c.described and training and c.folder.resolve() == training]
    others = [c for c in curves if not c.described and not training and _made_of(c.summaries[0]) == _made_of(begun)]
    alike = [c for c in ours or others if not apart(c.summaries[0], begun)]
    return next(iter(alike or ours), None)
