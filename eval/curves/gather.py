"""Turns RUNS... of the command line into curves, the input of page, figures, dashboards and emergence.

A curve is a sequence of checkpoints ordered by step: those of one training, the revisions of one model, or a single
checkpoint. A folder may hold several curves, such as a sweep or everything below runs/. Results are grouped by what
they record about themselves (eval.curves.read), not by where they lie.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.curves.read import by_step, differs_in, read_summaries, step_name
from eval.curves.settings import describe_settings
from eval.errors import InputError
from eval.files import read_json
from eval.models.target import RLHF_STEP, complete_checkpoints
from eval.runner.keys import SELECTION

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""Written by a trainer into its output folder: policy, algorithm, model, model_params, seed ..."""
REMEDY = "remove it, and the results are shown without what it says of the training"
STARTED, PENDING = "evaluation begun and not finished", "not evaluated"
TRAINING = ("policy", "algorithm", "model", "model_params", "seed")


@dataclass(frozen=True)
class Curve:
    """The evaluated checkpoints of one policy.

    Attributes:
        name: unique among the curves that were collected together.
        folder: the training's folder (with run.json), or the deepest folder that holds all the results.
        described: content of run.json; {} for models trained elsewhere.
        summaries: summary.json of each checkpoint, ordered by step, with its folder as 'results'.
        settings: how the questions differ from those of other curves of the same training, such as 'limit 60'. The name
            has it in brackets.
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
        """The model that was trained, or evaluated, as the user gave it."""
        return self.described.get("model") or self.summaries[0]["model"]

    @property
    def model_params(self) -> int | None:
        """Number of parameters without adapters; None where it is unknown (quantised or served models)."""
        return self.described.get("model_params") or self.summaries[0].get("model_params")

    @property
    def seed(self) -> int | None:
        """The training seed; None for a model trained elsewhere."""
        return self.described.get("seed")

    @property
    def algorithm(self) -> str | None:
        """rloo, grpo, online_dpo or sft; None for a model trained elsewhere."""
        return self.described.get("algorithm")

    @property
    def step_name(self) -> str:
        """What the steps count: 'RLHF step', 'training step' or 'revision'."""
        return step_name(list(self.summaries))

    @property
    def steps(self) -> list[int]:
        """The steps that have results, in ascending order."""
        return [s["step"] for s in self.summaries]

    def at(self, step: int) -> dict[str, Any] | None:
        """The summary at a step, or None."""
        return next((s for s in self.summaries if s["step"] == step), None)

    @property
    def rlhf(self) -> bool:
        """Whether the steps are those of an RLHF run, which the paper's axis counts."""
        return self.step_name == RLHF_STEP


def gather(folders: Sequence[Path]) -> list[Curve]:
    """Collects all curves in the folders.

    A folder given twice, or inside another, counts once.

    Returns:
        The curves ordered by model size (unknown sizes last), then by name.

    Raises:
        InputError: a folder does not exist or has no finished evaluation, or two results are of the same step of one
            curve.
    """
    if not folders:
        raise InputError("no run folder is given; give folders of training runs or of `eval run`")
    by_folder: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        for summary in read_summaries(folder):
            by_folder.setdefault(Path(summary["results"]).resolve(), summary)
    groups: dict[Any, list[dict[str, Any]]] = {}
    for summary in by_folder.values():
        groups.setdefault(_group_key(Path(summary["results"])), []).append(summary)
    curve_summaries = [members for group in groups.values() for members in _split(group)]
    curves = _name_curves([_build_curve(members) for members in curve_summaries])
    _add_unfinished(curves, folders)
    return sorted(curves, key=lambda c: (c.model_params is None, c.model_params or 0, c.name))


def merge_curves(curves: Sequence[Curve]) -> list[Curve]:
    """Merges the curves of one training that differ only in how they were asked and have no step in common.

    They hold checkpoints of one policy, some evaluated with another prompt version or selection of questions.
    """
    merged: list[Curve] = []
    for folder in dict.fromkeys(c.folder for c in curves):
        same_training = [c for c in curves if c.folder == folder]
        first, steps = same_training[0], [s for c in same_training for s in c.steps]
        differences = {differs_in(first.summaries[0], c.summaries[0]) for c in same_training[1:]}
        if (
            first.described
            and len(set(steps)) == len(steps)
            and differences
            and differences <= {"prompt_version", *SELECTION}
        ):
            summaries = sorted((s for c in same_training for s in c.summaries), key=lambda s: s["step"])
            unfinished = {s: why for c in same_training for s, why in c.unfinished.items() if s not in steps}
            name = first.name.removesuffix(f" ({first.settings})")
            same_training = [Curve(name, folder, first.described, tuple(summaries), unfinished=unfinished)]
        merged += same_training
    return merged


def unfinished(curves: Sequence[Curve], excluded: Container[tuple[str, int | None]] = ()) -> list[str]:
    """A line for each curve with checkpoints that have no results, and why.

    Args:
        curves: the curves to report on.
        excluded: (curve name, step) pairs to leave out.
    """
    lines: dict[tuple[str, str], list[str]] = {}
    for curve in curves:
        for step, why in sorted(curve.unfinished.items()):
            if (curve.name, step) not in excluded:
                lines.setdefault((curve.name, why), []).append(str(step))
    return [f"{name}: {why} at step {', '.join(steps)}" for (name, why), steps in lines.items()]


def metrics(curves: Sequence[Curve]) -> Iterator[tuple[Curve, dict[str, Any], dict[str, Any]]]:
    """Yields (curve, summary, metric) for every metric of every checkpoint."""
    for curve in curves:
        for summary in curve.summaries:
            for metric in summary["metrics"]:
                yield curve, summary, metric


def find(
    summary: dict[str, Any], experiment: str, condition: str, name: str, category: str = "all"
) -> dict[str, Any] | None:
    """The metric with that name, or None where it was not evaluated."""
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
    """The training's folder that the results lie in: the nearest parent with run.json, or None."""
    return next((p for p in (results, *results.parents) if (p / RUN_FILE).is_file()), None)


def _group_key(results: Path) -> Any:
    """Group key: the training folder, or None for results made outside a training.

    `differs_in` separates the results that have None as key.
    """
    training = training_folder(results)
    return training.resolve() if training else None


def _split(group: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Splits a group into the summaries of each curve.

    Within a training, everything with the same set-up is one curve. Elsewhere a curve has only revisions of one model,
    or steps that were given explicitly.
    """
    splits: list[list[dict[str, Any]]] = []
    for summary in group:
        match = next((p for p in splits if not differs_in(p[0], summary) and _same_model(p, summary)), None)
        if match is None:
            splits.append([summary])
        else:
            match.append(summary)
    return splits


def _same_model(members: list[dict[str, Any]], summary: dict[str, Any]) -> bool:
    """Whether a summary is of the same model as the members of a curve.

    Outside a training, different names are different models, whatever their size. Adapters are the same model only
    where they lie side by side, as the checkpoints of one training do.
    """
    folder = training_folder(Path(summary["results"]))
    return folder is not None or _model_key(members[0]) == _model_key(summary)


def _model_key(summary: dict[str, Any]) -> tuple[str, Path | None]:
    """What identifies the model of a result made outside a training: its name, and the folder of its adapter."""
    adapter = summary.get("adapter")
    return summary["model"], Path(adapter).parent if adapter else None


def _build_curve(members: list[dict[str, Any]]) -> Curve:
    """The curve of these summaries, not yet named."""
    paths = [Path(s["results"]) for s in members]
    training = training_folder(paths[0])
    described = (read_json(training / RUN_FILE, REMEDY) if training else None) or {}
    folder = training or _common_folder(paths)
    return Curve("", folder, described, tuple(by_step(members, folder)))


def _common_folder(paths: list[Path]) -> Path:
    """The deepest folder that holds all the paths. A single path is its own."""
    first = paths[0]
    candidates = [first, *first.parents]
    return next(c for c in candidates if all(c == p or c in p.parents for p in paths))


def _name_curves(curves: Sequence[Curve]) -> list[Curve]:
    """Gives each curve a unique name.

    The name is the policy's. Without one it is as many last parts of the folder's path as make it unique. Where one
    training or folder has several curves, their differing settings follow in brackets.
    """
    names = {c.folder: c.described.get("policy") or _path_suffix(c, 1) for c in curves}
    for depth in range(2, 12):
        taken = list(names.values())
        names |= {c.folder: _path_suffix(c, depth) for c in curves if taken.count(names[c.folder]) > 1}
    named_curves: list[Curve] = []
    for folder, name in names.items():
        same_folder = [c for c in curves if c.folder == folder]
        descriptions = describe_settings([c.summaries[0] for c in same_folder])
        for k, (curve, description) in enumerate(zip(same_folder, descriptions, strict=True)):
            unique = description if descriptions.count(description) == 1 else f"{description} {k + 1}".strip()
            named_curves.append(
                replace(curve, name=f"{name} ({unique})" if len(same_folder) > 1 else name, settings=unique)
            )
    return named_curves


def _path_suffix(curve: Curve, depth: int) -> str:
    """The last `depth` parts of the curve's folder."""
    return "/".join(curve.folder.resolve().parts[1:][-depth:])


def _add_unfinished(curves: Sequence[Curve], folders: Sequence[Path]) -> None:
    """Records unfinished checkpoints in the curves that they belong to.

    These are evaluations that were started and not finished, and checkpoints of a training that were never evaluated. A
    started evaluation that fits no curve is logged.
    """
    started = {path.parent.resolve(): path for folder in folders for path in folder.rglob("provenance.json")}
    for results, path in sorted(started.items()):
        provenance = None if (results / "summary.json").is_file() else read_json(path)
        if provenance is None or not {"planned", "step"} <= provenance.keys():
            continue
        curve = _matching_curve(curves, training_folder(results), provenance)
        if curve is None:
            log.warning("%s: the evaluation was begun and not finished, so it is not shown", results)
        elif provenance["step"] not in curve.steps:
            curve.unfinished[provenance["step"]] = STARTED
    for folder in {c.folder for c in curves if c.described}:
        siblings = [c for c in curves if c.folder == folder]
        for step in complete_checkpoints(folder).keys() - {s for c in siblings for s in (*c.steps, *c.unfinished)}:
            siblings[0].unfinished[step] = PENDING


def _matching_curve(curves: Sequence[Curve], training: Path | None, provenance: dict[str, Any]) -> Curve | None:
    """The curve of the same training, or else of the same model, that an unfinished evaluation would have joined; None
    if there is none.
    """
    in_training = [c for c in curves if c.described and training and c.folder.resolve() == training]
    same_model = [
        c for c in curves if not c.described and not training and _model_key(c.summaries[0]) == _model_key(provenance)
    ]
    same_setup = [c for c in in_training or same_model if not differs_in(c.summaries[0], provenance)]
    return next(iter(same_setup or in_training), None)
