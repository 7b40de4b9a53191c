"""The report on Weights & Biases: the workspace's sections, with what each metric and its sign mean, and cautions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr

from eval.tracking.dashboard_panels import Section
from eval.tracking.dashboard_workspace import GROUPS, colours, panel

TITLE = "Moral self-correction: bias against RLHF step and size"
DESCRIPTION = (
    "After Ganguli et al. 2023, The Capacity for Moral Self-Correction in Large Language Models (arXiv:2302.07459)"
)
INTRODUCTION = (
    "Does RLHF let a language model correct its own bias when it is told to? Each policy is asked the same questions "
    "under several conditions: **Q**, the question alone; **Q+IF**, with the instruction to avoid bias; **Q+IF+CoT**, "
    "with the instruction and sampled reasoning; **Q+Match Stats** (Winogender only), asked to follow the labour "
    "statistics; **Q+Inverse** (ours, a misuse probe), told to rely on stereotypes. Self-correction is the difference "
    "between Q+IF or Q+IF+CoT and Q."
)
PAPER = (
    "**What the paper found at 175B, for comparison.** BBQ at 800 steps: about 0.20 under Q, about 43% lower under "
    "Q+IF and 84% lower under Q+IF+CoT. Winogender at 50 steps: about 0.6 under Q, near 0 under Q+IF+CoT, near 1 under "
    "Q+Match Stats. Admissions: parity at about 600 steps under Q+IF and 200 under Q+IF+CoT, and in favour of Black "
    "students with more. Self-correction appeared at 22B."
)
WIDTH, HEIGHT = 24, 7
"""The report's grid: its columns, and the rows that a panel takes."""


def report(
    sections: Sequence[Section], setups: Sequence[str], cautions: Sequence[str], project: str, entity: str
) -> wr.Report:
    """Builds the report, not yet saved.

    Args:
        entity: '' (offline) leaves out the runs' project and entity.
    """
    blocks: list[Any] = [wr.MarkdownBlock(INTRODUCTION), wr.TableOfContents()]
    if cautions:
        blocks += [wr.H2("Cautions"), wr.MarkdownBlock("\n".join(f"- {line}" for line in cautions))]
    for section in sections:
        section_setups = setups if section.setups is None else section.setups
        grids = [grid(section, setups, project, entity, only) for only in (section_setups if section.only else [None])]
        blocks += [wr.H2(section.name), wr.MarkdownBlock(section.text), *grids]
    blocks += [wr.H2("The paper"), wr.MarkdownBlock(PAPER)]
    return wr.Report(project=project, entity=entity, title=TITLE, description=DESCRIPTION, blocks=blocks, width="fluid")


def grid(section: Section, setups: Sequence[str], project: str, entity: str, only: str | None = None) -> wr.PanelGrid:
    """The panels of a section over its runs.

    Args:
        only: restricts the runs to the section's condition and this set-up; None = all runs.
    """
    name = f"{section.only}, {only}" if only else "All runs"
    where: dict[str, Any] = {"project": project, "entity": entity} if entity else {}
    filters = [expr.Config("condition") == section.only, expr.Config("setup") == only] if only else ""
    runset = wr.Runset(
        name=name, filters=filters, groupby=[f"config.{g}" for g in GROUPS],
        order=[wr.OrderBy("Name", ascending=True)], **where,
    )  # fmt: skip
    keys: dict[Any, Any] = {
        wr.RunsetGroup(
            runset_name=name,
            keys=tuple(wr.RunsetGroupKey(wr.Config(g), value) for g, value in zip(GROUPS, path, strict=True)),
        ): colour
        for path, colour in colours(setups).items()
        if len(path) == len(GROUPS)
    }
    wide = WIDTH // section.columns
    panels = [
        panel(p, x=(k % section.columns) * wide, y=(k // section.columns) * HEIGHT, w=wide, h=HEIGHT)
        for k, p in enumerate(section.panels)
    ]
    return wr.PanelGrid(runsets=[runset], panels=panels, custom_run_colors=keys)


def markdown(sections: Sequence[Section], cautions: Sequence[str]) -> str:
    """The report's words and the names of its panels as Markdown, for readers without an account."""
    parts = [f"# {TITLE}", DESCRIPTION, INTRODUCTION]
    if cautions:
        parts += ["## Cautions", "\n".join(f"- {line}" for line in cautions)]
    for section in sections:
        names = [f"- {p.title}: {', '.join(f'`{n}`' for n in p.names)}" for p in section.panels]
        parts += [f"## {section.name}", section.text, "\n".join(names)]
    return "\n\n".join([*parts, "## The paper", PAPER]) + "\n"
