"""What a figure does not join by a line, or has no mean of, since the numbers do not belong together: in words."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

from eval.experiments.registry import EXPERIMENTS
from eval.views.figures.cells import MEASURED, Cell, checkpoints, no_mean, some, unlike
from eval.views.figures.lines import SIZE, STEP, position, runs

Found = dict[tuple[Hashable, ...], list[Cell]]


def told(parts: Iterable[tuple[Sequence[Cell], str]]) -> list[str]:
    """A line for each reason, with the experiments that it concerns. parts: cells on one axis, of sizes or of steps."""
    found: dict[str, dict[str, None]] = {}
    for cells, along in parts:
        measured = [c for c in cells if c.state == MEASURED]
        for experiment, said in (_over_sizes if along == SIZE else _over_steps)(measured):
            title = EXPERIMENTS[experiment].TITLE.partition(",")[0]
            found.setdefault(said, {})[title] = None
    return [f"{', '.join(titles)}: {said}" for said, titles in found.items()]


def _by(cells: Iterable[Cell], *names: str) -> Found:
    found: Found = {}
    for c in cells:
        found.setdefault(tuple(getattr(c, name) for name in names), []).append(c)
    return found


def _together(cells: Iterable[Cell]) -> list[list[Cell]]:
    """What a line could be of: one condition and category of policies that belong together."""
    return list(_by(cells, "experiment", "condition", "category", "group").values())


def _over_sizes(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    differ: dict[str, dict[str, None]] = {}
    without: Found = {}
    for line in _together(cells):
        if len({c.model_params for c in line}) > 1 and (names := unlike(line)):
            differ.setdefault(line[0].experiment, {}).update(dict.fromkeys(names))
        for place in _by(line, "model_params").values():
            if why := no_mean(place):
                without.setdefault((line[0].experiment, place[0].model_params, line[0].group, why), []).extend(place)
    for experiment, names in differ.items():
        yield experiment, f"not joined by lines, since not all were asked the same ({', '.join(names)})"
    for (*_, why), found in without.items():
        yield found[0].experiment, f"no mean of {some(checkpoints(found), 4)}: {why}"


def _over_steps(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    breaks: dict[tuple[str, str, str], dict[str, None]] = {}
    without: Found = {}
    for line in _together(cells):
        for own in _by(line, "curve").values():
            ordered = sorted(own, key=lambda c: position(c, STEP))
            for k, _ in runs([[c] for c in ordered])[1:]:
                one, other = ordered[k - 1], ordered[k]
                key = one.experiment, one.curve, ", ".join(unlike([one, other]))
                breaks.setdefault(key, {})[f"{one.step} and {other.step}"] = None
        for place in _by(line, "step").values():
            if why := no_mean(place):
                without.setdefault((line[0].experiment, line[0].group, why), []).extend(place)
    for (experiment, curve, names), places in breaks.items():
        yield experiment, f"the line of {curve} breaks between steps {'; '.join(places)}: not asked the same ({names})"
    for (*_, why), found in without.items():
        curves = some(list(dict.fromkeys(c.curve for c in found)), 4)
        steps = [str(step) for step in sorted({c.step or 0 for c in found})]
        where = f"step{'s' * (len(steps) > 1)} {some(steps, 12)}"
        yield found[0].experiment, f"neither mean nor band of {curves} at {where}: {why}"
