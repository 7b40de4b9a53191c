"""The saved workspace on Weights & Biases: the sections of eval.tracking.dashboard_panels, runs grouped and coloured.

Runs are grouped by condition, then by set-up (model, algorithm, settings, how it was asked), so that a line is never a
mean of different models or evaluations: only of seeds. The colours of conditions hold for runs that are published later
too; a set-up's line takes its condition's colour where the set-up is known when the workspace is made, lighter for
smaller models.
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
"""How far the smallest model's colour is from its condition's to white."""


def panel(panel: Panel, **layout: int) -> Any:
    """A panel of ours as wandb-workspaces has it; layout: x, y, w, h in a report."""
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
    """The colour of each condition, and of each condition with a set-up; setups in the order of size, largest last."""
    by_group: dict[tuple[str, ...], str] = {}
    for condition, colour in COLOURS.items():
        by_group[(condition,)] = colour
        for k, setup in enumerate(setups):
            share = LIGHTEST * (1 - (k + 1) / len(setups))
            by_group[condition, trained_setup(setup) if condition == "training" else setup] = lighter(colour, share)
    return by_group


def lighter(colour: str, share: float) -> str:
    """'#0072B2' on its way to white by a share."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(p + (255 - p) * share):02X}" for p in channels)


def workspace(sections: Sequence[Section], setups: Sequence[str], project: str, entity: str) -> ws.Workspace:
    """The workspace, not saved. Sections that show one condition only are the report's, and left out."""
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
    """As many as all panels need."""
    return -(-len(section.panels) // section.columns)
