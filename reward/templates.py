"""Templates of the probe: dialogues that differ only in the name of a group. Read from YAML and filled in.

The file has `dimensions`, each with `groups` ({group: [wording, ...]}) and `templates`; `templates` at the top belong
to every dimension. A template is {id, kind, human, assistant}. A wording {one, many} is a noun phrase for one person
and one for several; it replaces {one}, {many} or, at the start of a sentence, {One}, {Many}. All groups of a dimension
have the same number of wordings, so that their means are over equally many dialogues. The built-in file is
reward/data/probe.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from eval.cli.parser import read_yaml
from eval.errors import InputError, nearest
from reward.dialogues import Message

BUILT_IN = Path(__file__).parent / "data" / "probe.yaml"
KINDS = ("neutral", "praise", "refusal", "negative")
"""neutral: an everyday request with a helpful answer. praise: trust or praise of the group. refusal: a request about
the group that is refused. negative: a mild negative generalisation, which a fair reward model scores the same for
every group.
"""
PLACES = ("one", "many", "One", "Many")


@dataclass(frozen=True)
class Template:
    """One dialogue with placeholders for a group's name."""

    id: str
    kind: str
    human: str
    assistant: str

    @property
    def places(self) -> set[str]:
        """The placeholders in its texts. Raises ValueError for text that is not a format string."""
        texts = (self.human, self.assistant)
        return {name for text in texts for _, name, *_ in Formatter().parse(text) if name is not None}

    def fill(self, wording: Wording) -> list[Message]:
        """The dialogue with the group's name filled in."""
        return [
            {"role": "user", "content": self.human.format(**wording.forms)},
            {"role": "assistant", "content": self.assistant.format(**wording.forms)},
        ]


@dataclass(frozen=True)
class Wording:
    """A group's name: for one person, with its article ("a young person"), and for several ("young people")."""

    one: str
    many: str

    @property
    def forms(self) -> dict[str, str]:
        """The text for each of PLACES."""
        capital = {name.title(): text[0].upper() + text[1:] for name, text in self._lower.items()}
        return self._lower | capital

    @property
    def _lower(self) -> dict[str, str]:
        return {"one": self.one, "many": self.many}


@dataclass(frozen=True)
class Dimension:
    """Groups that are compared with each other, and the templates for the comparison."""

    name: str
    groups: dict[str, tuple[Wording, ...]]
    templates: tuple[Template, ...]

    @property
    def n_wordings(self) -> int:
        """Number of wordings of each group."""
        return len(next(iter(self.groups.values())))


@dataclass(frozen=True)
class Version:
    """One dialogue to be scored: a template with a wording (numbered from 0) of a group."""

    dimension: str
    template: Template
    group: str
    wording: int
    name: Wording

    @property
    def dialogue(self) -> list[Message]:
        """The messages."""
        return self.template.fill(self.name)


def versions(dimension: Dimension, every_wording: bool = False) -> list[Version]:
    """The dialogues of a dimension, template by template.

    Templates take the wordings in turn: one has the first wording of every group, the next one the second, and so on.
    With `every_wording`, each template has all of them.
    """
    n = dimension.n_wordings
    return [
        Version(dimension.name, template, group, w, names[w])
        for k, template in enumerate(dimension.templates)
        for group, names in dimension.groups.items()
        for w in (range(n) if every_wording else (k % n,))
    ]


def read_templates(path: Path = BUILT_IN, selected: list[str] | None = None) -> list[Dimension]:
    """Reads the dimensions of a file.

    Args:
        selected: names of the dimensions to return; None: all.

    Raises:
        InputError: something is missing, unknown, given twice or cannot be filled in. The message names file and place.
    """
    content = read_yaml(path)
    _check_keys(f"{path}", content, {"dimensions"}, {"templates"})
    common = _templates(f"{path}: templates", content.get("templates", []))
    if not isinstance(content["dimensions"], dict) or not content["dimensions"]:
        raise InputError(f"{path}: 'dimensions' must be a mapping of names to groups and templates")
    dimensions = [_dimension(f"{path}: {name}", str(name), d, common) for name, d in content["dimensions"].items()]
    known_names = [d.name for d in dimensions]
    for name in selected or []:
        if name not in known_names:
            raise InputError(f"dimensions: {path} has no '{name}'{nearest(name, known_names)}")
    return [d for d in dimensions if not selected or d.name in selected]


def _dimension(where: str, name: str, content: Any, common: list[Template]) -> Dimension:
    _check_keys(where, content, {"groups"}, {"templates"})
    templates = common + _templates(where, content.get("templates", []))
    if not templates:
        raise InputError(f"{where} has no template; give at least one, 8 for an interval")
    _check_distinct(where, "template", [t.id for t in templates])
    groups = content["groups"]
    if not isinstance(groups, dict) or len(groups) < 2:
        raise InputError(f"{where}: 'groups' must be a mapping of at least 2 groups to lists of wordings")
    wordings = {str(group): _wordings(f"{where}, group {group}", names) for group, names in groups.items()}
    first, *others = wordings
    for group in others:
        if len(wordings[group]) != len(wordings[first]):
            raise InputError(
                f"{where}: {first} has {len(wordings[first])} wordings and {group} has {len(wordings[group])}; "
                "all groups of a dimension need equally many"
            )
    for place in ("one", "many"):
        _check_distinct(where, "wording", [getattr(w, place) for names in wordings.values() for w in names])
    return Dimension(name, wordings, tuple(templates))


def _templates(where: str, content: Any) -> list[Template]:
    if not isinstance(content, list):
        raise InputError(f"{where}: 'templates' must be a list of templates with id, kind, human and assistant")
    templates = []
    for number, fields in enumerate(content, 1):
        place = f"{where}, template {number}"
        _check_texts(place, fields, ("id", "kind", "human", "assistant"))
        template = Template(**fields)
        if template.kind not in KINDS:
            raise InputError(f"{place}: unknown kind '{template.kind}'; known: {', '.join(KINDS)}")
        try:
            places = template.places
        except ValueError as error:
            raise InputError(f"{place}: {error}; braces stand only around {', '.join(PLACES)}") from error
        if unknown := sorted(places - set(PLACES)):
            raise InputError(f"{place}: unknown place '{{{unknown[0]}}}'; known: {', '.join(PLACES)}")
        if not places:
            raise InputError(f"{place} names no group; put {{one}} or {{many}} where the name of the group belongs")
        templates.append(template)
    return templates


def _wordings(where: str, content: Any) -> tuple[Wording, ...]:
    if not isinstance(content, list) or not content:
        raise InputError(f"{where} must be a list of wordings, each with one and many")
    for number, fields in enumerate(content, 1):
        _check_texts(f"{where}, wording {number}", fields, ("one", "many"))
    return tuple(Wording(**fields) for fields in content)


def _check_texts(where: str, content: Any, names: tuple[str, ...]) -> None:
    _check_keys(where, content, set(names), set())
    for name in names:
        if not isinstance(content[name], str) or not content[name].strip():
            raise InputError(f"{where}: '{name}' must be a text, not {content[name]!r}")


def _check_keys(where: str, content: Any, needed: set[str], optional: set[str]) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{where} must be a mapping with {', '.join(sorted(needed))}")
    for name in sorted(needed - content.keys()):
        raise InputError(f"{where} has no '{name}'; it needs {', '.join(sorted(needed))}")
    for name in content:
        if name not in needed | optional:
            raise InputError(f"{where}: unknown key '{name}'{nearest(str(name), sorted(needed | optional))}")


def _check_distinct(where: str, what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: {what} '{name}' is there {names.count(name)} times; each may be there once")
