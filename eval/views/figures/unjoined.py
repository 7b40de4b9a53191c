"""Explains which numbers a figure does not join by a line or average, since they do not belong together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

from eval.experiments.registry import EXPERIMENTS
from eval.views.figures.cells import MEASURED, Cell, cells_differ_in, checkpoints, first_few, no_mean
from eval.views.figures.lines import SIZE, STEP, position, segments

Groups = dict[tuple[Hashable, ...], list[Cell]]


def describe_unjoined(cells_by_axis: Iterable[tuple[Sequence[Cell], str]]) -> list[str]:
    """A line for each reason why numbers are not joined or averaged, with the experiments that it concerns.

    Args:
        cells_by_axis: (cells that stand on one axis, SIZE or STEP).
    """
    titles_by_reason: dict[str, dict[str, None]] = {}
    for cells, along in cells_by_axis:
        measured = [c for c in cells if c.state == MEASURED]
        for experiment, reason in (_over_sizes if along == SIZE else _over_steps)(measured):
            title = EXPERIMENTS[experiment].TITLE.partition(",")[0]
            titles_by_reason.setdefault(reason, {})[title] = None
    return [f"{', '.join(titles)}: {reason}" for reason, titles in titles_by_reason.items()]


def _group_by(cells: Iterable[Cell], *names: str) -> Groups:
    """Groups the cells by the values of the named fields."""
    groups: Groups = {}
    for c in cells:
        groups.setdefault(tuple(getattr(c, name) for name in names), []).append(c)
    return groups


def _line_groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells that one line could join: one experiment, condition and category of policies that belong together."""
    return list(_group_by(cells, "experiment", "condition", "category", "group").values())


def _over_sizes(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """Yields (experiment, reason) for cells against model size."""
    differ: dict[str, dict[str, None]] = {}
    without: Groups = {}
    for line in _line_groups(cells):
        if len({c.model_params for c in line}) > 1 and (names := cells_differ_in(line)):
            differ.setdefault(line[0].experiment, {}).update(dict.fromkeys(names))
        for same_size in _group_by(line, "model_params").values():
            if why := no_mean(same_size):
                without.setdefault((line[0].experiment, same_size[0].model_params, line[0].group, why), []).extend(
                    same_size
                )
    for experiment, names in differ.items():
        yield experiment, f"not joined by lines, since not all were asked the same ({', '.join(names)})"
    for (*_, why), members in without.items():
        yield members[0].experiment, f"no mean of {first_few(checkpoints(members), 4)}: {why}"


def _over_steps(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """Yields (experiment, reason) for cells against the step."""
    breaks: dict[tuple[str, str, str], dict[str, None]] = {}
    without: Groups = {}
    for line in _line_groups(cells):
        for curve_cells in _group_by(line, "curve").values():
            ordered = sorted(curve_cells, key=lambda c: position(c, STEP))
            for k, _ in segments([[c] for c in ordered])[1:]:
                one, other = ordered[k - 1], ordered[k]
                key = one.experiment, one.curve, ", ".join(cells_differ_in([one, other]))
                breaks.setdefault(key, {})[f"{one.step} and {other.step}"] = None
        for same_step in _group_by(line, "step").values():
            if why := no_mean(same_step):
                without.setdefault((line[0].experiment, line[0].group, why), []).extend(same_step)
    for (experiment, curve, names), places in breaks.items():
        yield experiment, f"the line of {curve} breaks between steps {'; '.join(places)}: not asked the same ({names})"
    for (*_, why), members in without.items():
        curves = first_few(list(dict.fromkeys(c.curve for c in members)), 4)
        steps = [str(step) for step in sorted({c.step or 0 for c in members})]
        where = f"step{'s' * (len(steps) > 1)} {first_few(steps, 12)}"
        yield members[0].experiment, f"neither mean nor band of {curves} at {where}: {why}"
