"""README.md and docs/*.md: every path and link exists, README is short, and no paragraph is long."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.readme import DOCUMENTS, ROOT

MOST_WORDS_OF_README = 1300
MOST_WORDS_OF_A_PARAGRAPH = 100
PATH = re.compile(
    r"(?<![\w./-])((?:eval|reward|train|configs|docs|tests|benchmarks)/[\w./-]*\w\.(?:py|cpp|js|md|ya?ml|jinja|json|png|svg)"
    r"|(?:eval|reward|train|configs|docs|tests|benchmarks)/(?:[\w.-]+/)*)(?![\w<*])"
)
MODULE = re.compile(r"-m ((?:eval|reward|train|benchmarks)(?:\.\w+)*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
LIST_ITEM = re.compile(r"(?:[-*]|\d+\.) ")


def without_code(text: str) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


def paragraphs(text: str) -> list[str]:
    """Paragraphs, headings and list items; no tables, fenced or indented code."""
    found: list[list[str]] = [[]]
    in_list = False
    for line in without_code(text).splitlines():
        stripped = line.strip()
        indented = line.startswith("    ") and not in_list
        if not stripped or stripped.startswith(("|", "#")) or indented:
            found.append([])
            in_list = in_list and not stripped
        elif LIST_ITEM.match(stripped):
            found.append([stripped])
            in_list = True
        else:
            in_list = in_list and line.startswith(" ")
            found[-1].append(stripped)
    return [" ".join(lines) for lines in found if lines]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS_OF_README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_no_paragraph_is_long(document: Path) -> None:
    too_long = {p[:60]: len(p.split()) for p in paragraphs(document.read_text())}
    assert {start: n for start, n in too_long.items() if n > MOST_WORDS_OF_A_PARAGRAPH} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_every_named_file_exists(document: Path) -> None:
    text = document.read_text()
    named = set(PATH.findall(text))
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
    modules = {name.replace(".", "/") for name in MODULE.findall(text)}
    assert sorted(m for m in modules if not (ROOT / m).is_dir() and not (ROOT / f"{m}.py").is_file()) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_document_is_linked_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall((ROOT / "README.md").read_text())}
    assert {f"docs/{d.name}" for d in DOCUMENTS if d.parent.name == "docs"} <= linked


@pytest.mark.parametrize(
    "name", ["From a prompt to its log-probability", "From a record to a figure", "From a YAML key to TRL"]
)
def test_the_ways_through_name_files_that_exist(name: str) -> None:
    """About ten steps each, every one with the file in which it happens."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
    steps = [p for p in paragraphs(section) if re.match(r"\d+\. ", p)]
    assert 8 <= len(steps) <= 12
    for step in steps:
        files = PATH.findall(step)
        assert files, step
        assert all((ROOT / path).is_file() for path in files), step
