"""What a figure does not join by a line, or has no mean of, since the numbers do not belong together: in words."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from eval.views.cells import MEASURED, Cell, checkpoints, no_mean, some, unlike
from eval.views.lines import SIZE, position, runs

Found = dict[tuple[Hashable, ...], list[Cell]]


def told(parts: Iterable[tuple[Sequence[Cell], str]]) -> list[str]:
    """A line for each experiment and reason. parts: cells that stand on one axis, which is size or step."""
    lines: list[str] = []
    for cells, along in parts:
        measured = [c for c in cells if c.state == MEASURED]
        lines += _over_sizes(measured) if along == SIZE else _over_steps(measured)
    return list(dict.fromkeys(lines))


def _together(cells: Iterable[Cell]) -> list[list[Cell]]:
    """What a line could be of: one condition and category of policies that belong together."""
    return list(_by(cells, "experiment", "condition", "category", "group").values())


def _by(cells: Iterable[Cell], *names: str) -> Found:
    found: Found = {}
    for c in cells:
        found.setdefault(tuple(getattr(c, name) for name in names), []).append(c)
    return found


def _over_sizes(cells: Sequence[Cell]) -> list[str]:
    differ: dict[str, dict[str, None]] = {}
    without: Found = {}
    for line in _together(cells):
        if len({c.model_params for c in line}) > 1 and (names := unlike(line)):
            differ.setdefault(line[0].experiment, {}).update(dict.fromkeys(names))
        for place in _by(line, "model_params").values():
            if reason := no_mean(place):
                without.setdefault((place[0].experiment, place[0].model_params, place[0].group, reason), []).extend(
                    place
                )
    return [
        *(f"{e}: not joined by lines, since not all were asked the same ({', '.join(n)})" for e, n in differ.items()),
        *(f"{key[0]}: no mean of {some(checkpoints(c), 4)}: {key[-1]}" for key, c in without.items()),
    ]


def _over_steps(cells: Sequence[Cell]) -> list[str]:
    breaks: dict[tuple[str, str, str], dict[str, None]] = {}
    without: Found = {}
    for line in _together(cells):
        for own in _by(line, "curve").values():
            ordered = sorted(own, key=lambda c: position(c, "step"))
            for k, _ in runs([[c] for c in ordered])[1:]:
                one, other = ordered[k - 1], ordered[k]
                key = (one.experiment, one.curve, ", ".join(unlike([one, other])))
                breaks.setdefault(key, {})[f"{one.step} and {other.step}"] = None
        for place in _by(line, "step").values():
            if reason := no_mean(place):
                without.setdefault((place[0].experiment, place[0].group, reason), []).extend(place)
    return [
        *(
            f"{experiment}: the line of {curve} breaks between steps {'; '.join(places)}: not asked the same ({names})"
            for (experiment, curve, names), places in breaks.items()
        ),
        *(
            f"{key[0]}: neither mean nor band of {some(list(dict.fromkeys(c.curve for c in found)), 4)}: {key[-1]}"
            for key, found in without.items()
        ),
    ]
