"""The axes along which `eval emergence` looks for thresholds (sizes, steps), and which curves are repeated trainings.

Repeated trainings act as seeds. They are training folders whose run.json names the same model and algorithm, evaluated
in the same format and dtype. The same checkpoint in another dtype is not a second training. A base and its instruct
model of the same size are two models. Results without run.json are never trainings of one another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.curves.gather import Curve
from eval.curves.kinds import kind
from eval.errors import InputError
from eval.stats.change_point import MIN_PLACES

SIZE, STEP = "size", "step"


@dataclass(frozen=True)
class Place:
    """A size or step.

    Attributes:
        at: number of parameters, or step.
        checkpoints: one (curve, summary) of each training.
    """

    at: int
    checkpoints: tuple[tuple[Curve, dict[str, Any]], ...]


@dataclass(frozen=True)
class Axis:
    """What a threshold is looked for along.

    Attributes:
        kind: SIZE or STEP.
        places: the sizes or steps, in ascending order.
        fixed: what all checkpoints share: the step (SIZE) or the number of parameters (STEP).
        not_used: which steps only some curves have, in words; or ''.
    """

    kind: str
    places: tuple[Place, ...]
    fixed: int | None
    step_name: str
    policies: tuple[str, ...]
    algorithm: str | None
    not_used: str = ""

    @property
    def x_M(self) -> np.ndarray:
        """The places' positions: log10 of the parameters, or steps. Shape (M,) for M places."""
        at = np.array([p.at for p in self.places], dtype=float)
        return np.log10(at) if self.kind == SIZE else at

    @property
    def kinds(self) -> list[str]:
        """The kinds of the models, starting with those of the smallest size."""
        return list(dict.fromkeys(kind(curve) for curve, _ in self.checkpoints))

    @property
    def checkpoints(self) -> list[tuple[Curve, dict[str, Any]]]:
        """The (curve, summary) pairs of all places."""
        return [c for place in self.places for c in place.checkpoints]


def axes(curves: Sequence[Curve], step: int | None, left_out: list[str], strict: bool = False) -> Iterator[Axis]:
    """Yields the axes along which thresholds can be looked for.

    Args:
        step: the step at which sizes are compared; None = the largest that all have.
        left_out: receives a line for whatever cannot be used.
        strict: whether a `step` that some size lacks is an error.

    Raises:
        InputError: `strict`, and some size lacks the `step`.
    """
    families: dict[tuple[str | None, str], list[Curve]] = {}
    for curve in curves:
        families.setdefault((curve.algorithm, curve.step_name), []).append(curve)
    for family in families.values():
        if (axis := _size_axis(family, step, left_out, strict)) is not None:
            yield axis
    for family in families.values():
        sizes: dict[Any, list[Curve]] = {}
        for curve in family:
            sizes.setdefault(curve.model_params or curve.name, []).append(curve)
        for trainings in (part for of_size in sizes.values() for part in _trainings(of_size)):
            together = len(set.intersection(*(set(c.steps) for c in trainings))) >= MIN_PLACES
            for part in [trainings] if together else [[c] for c in trainings]:
                if (axis := _step_axis(part, left_out)) is not None:
                    yield axis


def _trainings(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Groups curves of one algorithm and size: each group has the trainings of one model, evaluated in one way."""
    groups: dict[Any, list[Curve]] = {}
    for number, curve in enumerate(curves):
        key: tuple[Any, ...] = (number,)  # without run.json it is unknown which model was trained
        if curve.described:
            earlier = [c for c in curves[:number] if c.folder.resolve() == curve.folder.resolve()]
            same = [
                c for c in earlier if _prompt_setup(c) == _prompt_setup(curve)
            ]  # separate curves for another reason
            key = (curve.described.get("model"), *_prompt_setup(curve), len(same))
        groups.setdefault(key, []).append(curve)
    return list(groups.values())


def _prompt_setup(curve: Curve) -> tuple[Any, ...]:
    """Format, system turn and dtype of a curve's evaluation."""
    return tuple(curve.summaries[0].get(name) for name in ("format", "system_turn", "dtype"))


def _describe_setup(curve: Curve) -> str:
    """The curve's name with its format and dtype."""
    return f"{curve.name} [{curve.summaries[0].get('format')}, {curve.summaries[0].get('dtype')}]"


def _one_of_each_size(sized: list[Curve], sizes: Sequence[int], where: str, left_out: list[str]) -> list[Curve]:
    """Keeps the trainings of one model at each size, and adds a line to `left_out` for the others.

    Among several models, or ways of evaluating, of one size it prefers those with the most trainings, then those
    evaluated as most of the curves are, then the first by name.
    """
    usual = Counter(_prompt_setup(c) for c in sized)
    kept: list[Curve] = []
    kept_names, other_names = [], []
    for at in sizes:
        groups = _trainings([c for c in sized if c.model_params == at])
        chosen = max(groups, key=lambda g: (len(g), usual[_prompt_setup(g[0])]))  # the first of several maxima
        kept += chosen
        if len(groups) > 1:
            kept_names += map(_describe_setup, chosen)
            other_names += [_describe_setup(c) for g in groups if g is not chosen for c in g]
    if other_names:
        left_out.append(
            f"{where}: {', '.join(other_names)}: left out, no further trainings of {', '.join(kept_names)} "
            "(other folders whose run.json names the same model and algorithm, asked in the same format, system turn "
            "and dtype). Of a size "
            "those with the most trainings stay, then those asked as most are, then the first name; give only the "
            "folders that are meant to choose otherwise"
        )
    return kept


def _missing(curves: Sequence[Curve], used: Sequence[int], after: int | None = None) -> str:
    """Names the steps that are not used since some of the curves lack them; '' where there are none.

    Args:
        used: the steps that are used.
        after: only report steps above this one.
    """
    unused = sorted({s for c in curves for s in c.steps if s not in used and (after is None or s > after)})
    if not unused:
        return ""
    lack = [c.name for c in curves if not set(unused) <= set(c.steps)]
    are = "is" if len(unused) == 1 else "are"
    return (
        f"{_count(len(unused), 'step')} not used: {', '.join(map(str, unused))} {are} not there for {', '.join(lack)}"
    )


def _size_axis(family: list[Curve], step: int | None, left_out: list[str], strict: bool) -> Axis | None:
    """The axis over sizes of a family; None, with a line in `left_out`, where there are too few sizes or no common
    step.
    """
    sized = [c for c in family if c.model_params]
    where = f"size, {describe_family(family)}"
    if len(sized) < len(family):
        unknown = [c.name for c in family if not c.model_params]
        left_out.append(f"{where}: parameters of {', '.join(unknown)} are not known, so left out")
    sizes = sorted({c.model_params or 0 for c in sized})
    if len(sizes) < MIN_PLACES:
        left_out.append(f"{where}: {_count(len(sizes), 'size')}, at least {MIN_PLACES} are needed")
        return None
    sized = _one_of_each_size(sized, sizes, where, left_out)
    common = set.intersection(*(set(c.steps) for c in sized))
    if not common or (step is not None and step not in common):
        have = f"steps that all have: {', '.join(map(str, sorted(common))) or 'none'}"
        if step is not None and strict:
            raise InputError(f"step {step} is not there for every size of {describe_family(family)}; {have}")
        left_out.append(f"{where}: the sizes share no such step; {have}")
        return None
    at = max(common) if step is None else step
    places = [
        Place(size, tuple((c, s) for c in sized if c.model_params == size and (s := c.at(at)) is not None))
        for size in sizes
    ]
    names = tuple(c.name for c in sized)
    not_used = _missing(sized, [at], at) if step is None else ""
    if not_used:
        left_out.append(f"{where}: {not_used}; taken is {at}, the largest that all have")
    return Axis(SIZE, tuple(places), at, family[0].step_name, names, family[0].algorithm, not_used)


def _step_axis(trainings: list[Curve], left_out: list[str]) -> Axis | None:
    """The axis over the steps that all trainings have; None, with a line in `left_out`, where they are too few."""
    common = sorted(set.intersection(*(set(c.steps) for c in trainings)))
    if len(common) < MIN_PLACES:
        left_out.append(
            f"step, {describe_family(trainings)}: {_count(len(common), 'step')}, at least {MIN_PLACES} are needed"
        )
        return None
    places = [Place(s, tuple((c, summary) for c in trainings if (summary := c.at(s)) is not None)) for s in common]
    if not_used := _missing(trainings, common):
        left_out.append(f"step, {describe_family(trainings)}: {not_used}")
    first = trainings[0]
    names = tuple(c.name for c in trainings)
    return Axis(STEP, tuple(places), first.model_params, first.step_name, names, first.algorithm, not_used)


def describe_family(curves: Sequence[Curve]) -> str:
    """The algorithm and the policies, for use in a line."""
    names = list(dict.fromkeys(c.name for c in curves))
    of = f"{curves[0].algorithm}: " if curves[0].algorithm else ""
    return of + (", ".join(names) if len(names) <= 4 else f"{len(names)} policies")


def _count(n: int, what: str) -> str:
    """'1 size', '3 sizes'."""
    return f"{n} {what}{'' if n == 1 else 's'}"
