"""The saved workspace on Weights & Biases: the sections of eval.tracking.dashboard_panels, with grouped and coloured
runs.

Runs are grouped by condition, then by set-up (model, algorithm, settings, evaluation settings), so a line is only ever
a mean of seeds, never of different models or evaluations. The conditions' colours also hold for runs that are published
later. A set-up's line has its condition's colour, lighter for smaller models, if the set-up is known when the workspace
is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from eval.tracking.dashboard_panels import AXIS, COLOURS, Panel, Section
from eval.tracking.names import trained_setup

NAME = "selfcorrect: bias against RLHF step and size"
GROUPS = ("condition", "setup")
COLUMNS = (
    "run:displayName", "config:condition.value", "config:model.value", "config:model_params.value", "config:seed.value",
    "summary:final/bbq/bias_ambig", "summary:final/winogender/rho", "summary:final/admissions/gap",
)  # fmt: skip
LIGHTEST = 0.55
"""How far the smallest model's colour is blended from its condition's colour towards white."""


def panel(panel: Panel, **layout: int) -> Any:
    """Converts a panel to wandb-workspaces.

    Args:
        layout: x, y, w, h in a report; none in a workspace.
    """
    place: dict[str, Any] = {"layout": wr.Layout(**layout)} if layout else {}
    if panel.kind == "media":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.names), num_columns=1, **place)
    if panel.kind == "size":
        return wr.ScatterPlot(
            title=panel.title, x=wr.Config("model_params"), y=wr.SummaryMetric(panel.names[0]), log_x=True,
            legend_template="${config:condition} ${config:setup}", **place,
        )  # fmt: skip
    return wr.LinePlot(
        title=panel.title,
        x=panel.x,
        y=list(panel.names),
        title_x=panel.x_title,
        title_y=panel.y_title or None,
        smoothing_type="none",
        plot_type="stacked-area" if panel.kind == "stack" else "line",
        range_y=(0, 1) if panel.kind == "stack" else (None, None),
        groupby_aggfunc="mean",
        groupby_rangefunc="none" if panel.kind == "stack" else "minmax",
        ignore_outliers=False,
        max_runs_to_show=100,
        **place,
    )


def colours(setups: Sequence[str]) -> dict[tuple[str, ...], str]:
    """The colour of each (condition,) and (condition, set-up).

    Args:
        setups: the set-ups ordered by model size, the largest last.
    """
    by_group: dict[tuple[str, ...], str] = {}
    for condition, colour in COLOURS.items():
        by_group[(condition,)] = colour
        for k, setup in enumerate(setups):
            share = LIGHTEST * (1 - (k + 1) / len(setups))
            by_group[condition, trained_setup(setup) if condition == "training" else setup] = lighter(colour, share)
    return by_group


def lighter(colour: str, share: float) -> str:
    """Blends a colour such as '#0072B2' towards white. share: 0 = unchanged, 1 = white."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(p + (255 - p) * share):02X}" for p in channels)


def workspace(sections: Sequence[Section], setups: Sequence[str], project: str, entity: str) -> ws.Workspace:
    """Builds the workspace, not yet saved. Sections that show a single condition are for the report only."""
    group_colors: dict[object, object] = {
        path[0] if len(path) == 1 else ws.GroupPath(*path): colour for path, colour in colours(setups).items()
    }
    axis = next((p.x for section in sections for p in section.panels if p.kind == "lines"), AXIS)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(
                name=section.name,
                panels=[panel(p) for p in section.panels],
                is_open=section.open,
                layout_settings=ws.SectionLayoutSettings(columns=section.columns, rows=rows(section)),
                panel_settings=ws.SectionPanelSettings(x_axis=section.panels[0].x, smoothing_type="none"),
            )
            for section in sections
            if section.only is None
        ],
        settings=ws.WorkspaceSettings(
            x_axis=axis, smoothing_type="none", ignore_outliers=False, max_runs=100, group_by_prefix="first",
            tooltip_number_of_runs="all_runs",
        ),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config(name) for name in GROUPS],
            group_colors=group_colors,
            order=[expr.Ordering(expr.Metric("Name"), ascending=True)],
            pinned_columns=list(COLUMNS),
        ),
    )  # fmt: skip


def rows(section: Section) -> int:
    """How many rows the panels of a section need."""
    return -(-len(section.panels) // section.columns)
