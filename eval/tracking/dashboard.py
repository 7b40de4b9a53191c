"""`python -m eval dashboard [RUNS...]`: a workspace and a report on Weights & Biases, for what `eval publish` sends.

If the user is logged in, both are saved in the project, and their ids are written into --output, so that the same
command updates them instead of making new ones. Else their specifications, and the report's words, are written there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.cli.dispatch import JSON_HELP, CommandOutput
from eval.curves.gather import Curve, gather
from eval.errors import InputError
from eval.files import prepare_output, read_json, write_json, write_text
from eval.tracking.dashboard_panels import Section, logged_names, of_conditions, on_axes, only_logged, sections
from eval.tracking.names import check_destination, evaluated_setup

SAVED = "saved.json"
SPECS = {"workspace": "workspace.json", "report": "report.json"}


@dataclass
class DashboardConfig:
    """Options of `eval dashboard`."""

    runs: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "folders of published results: then only panels that they fill, and their lines' colours",
        },
    )
    project: str | None = field(default=None, metadata={"help": "default $WANDB_PROJECT or selfcorrect"})
    entity: str | None = field(default=None, metadata={"help": "user or team; default $WANDB_ENTITY or your own"})
    output: str = field(
        default="dashboard",
        metadata={"aliases": ["-o"], "help": "folder for what was saved, or offline for what is to be saved"},
    )
    json: bool = field(default=False, metadata={"help": JSON_HELP})

    def __post_init__(self) -> None:
        check_destination(self.project, self.entity)


@dataclass(frozen=True)
class DashboardContent:
    """What the dashboards show.

    Attributes:
        setups: the set-ups, from the smallest model to the largest.
        cautions: lines about what to know before believing a number.
    """

    sections: list[Section]
    setups: list[str]
    cautions: list[str]


def dashboard(config: DashboardConfig) -> CommandOutput:
    """Saves workspace and report online, or writes them as files if offline.

    Returns:
        The text for the terminal, and {"mode", "urls", "files"}.

    Raises:
        InputError: a RUN has no results, the folder cannot be written, or W&B refuses.
    """
    from eval.tracking import client as tracking

    given = {k: v for k, v in (("project", config.project), ("entity", config.entity)) if v}
    destination = tracking.Destination(**given)
    content = dashboard_content(gather([Path(r) for r in config.runs]) if config.runs else [])
    folder = Path(config.output)
    prepare_output(folder)
    files = write_specs(content, destination.project, folder)
    mode = tracking.mode()
    if mode != "online":
        why = "$WANDB_MODE is not online" if mode in ("offline", "disabled", "dryrun") else "not logged in"
        text = (
            f"{why}: not saved on W&B; the specifications are in {folder}, the report's words in {folder}/report.md\n"
            "to save both, run `wandb login` (and unset WANDB_MODE), then the same command again"
        )
        return text, {"mode": mode, "urls": {}, "files": files}
    urls, updated = save(content, destination, folder / SAVED)
    hint = [] if content.setups else ["give RUNS for the colours of lines, and for panels that are filled only"]
    lines = [f"{name} {'brought up to date' if name in updated else 'saved'}: {url}" for name, url in urls.items()]
    return "\n".join([*lines, *hint]), {"mode": mode, "urls": urls, "files": [*files, str(folder / SAVED)]}


def dashboard_content(curves: Sequence[Curve]) -> DashboardContent:
    """The content of the dashboards.

    With curves: only panels that they fill, against their own steps. Without: everything that may be logged, against
    RLHF steps.
    """
    if not curves:
        return DashboardContent([s for s in sections() if s.only is None], [], [])
    from eval.tracking.ledger import ledger_of
    from eval.views.page.text import notes

    setups = [evaluated_setup(c, ledger_of(c, None).policy) for c in curves]
    logged: dict[str, set[str]] = {}
    for curve in curves:
        logged.setdefault(curve.step_name, set()).update(logged_names([curve]))
    logged_sections = only_logged(on_axes(sections(), logged), logged_names(curves))
    evaluated_sections = of_conditions(logged_sections, list(zip(setups, curves, strict=True)))
    return DashboardContent(evaluated_sections, list(dict.fromkeys(setups)), notes(curves))


def write_specs(content: DashboardContent, project: str, folder: Path) -> list[str]:
    """Writes workspace.json and report.json, which `.save()` would send, and report.md, the report's words. Returns
    the paths.
    """
    from eval.tracking import dashboard_report, dashboard_workspace

    workspace = dashboard_workspace.workspace(content.sections, content.setups, project, "")
    report = dashboard_report.report(content.sections, content.setups, content.cautions, project, "")
    for name, built in (("workspace", workspace), ("report", report)):
        write_text(folder / SPECS[name], spec(built) + "\n")
    write_text(folder / "report.md", dashboard_report.markdown(content.sections, content.cautions))
    return [str(folder / name) for name in (*SPECS.values(), "report.md")]


def spec(built: Any) -> str:
    """The specification that saving a workspace or a report sends, as JSON; checks its types."""
    sent = json.loads(built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps(sent, indent=1)


def save(content: DashboardContent, destination: Any, path: Path) -> tuple[dict[str, str], set[str]]:
    """Saves workspace and report in the user's project.

    Args:
        destination: the project (eval.tracking.client.Destination).
        path: the file that records what was saved from here before.

    Returns:
        (their addresses, the names of those that existed already).

    Raises:
        InputError: W&B refuses.
    """
    from eval.tracking import client as tracking
    from eval.tracking import dashboard_report, dashboard_workspace

    before = read_json(path) or {}
    updated: set[str] = set()
    try:
        entity = destination.entity or tracking.default_entity()
        where = f"{entity}/{destination.project}"
        saved = before.get(where, {})
        workspace = dashboard_workspace.workspace(content.sections, content.setups, destination.project, entity)
        if place := saved.get("workspace"):
            workspace._internal_name, workspace._internal_id = place["name"], place["id"]
            updated.add("workspace")
        workspace.save()
        urls = {"workspace": workspace.url}
        saved["workspace"] = {"name": workspace._internal_name, "id": workspace._internal_id, "url": workspace.url}
        write_json(path, {**before, where: saved})
        report = dashboard_report.report(
            content.sections, content.setups, content.cautions, destination.project, entity
        )  # fmt: skip
        if place := saved.get("report"):
            report.id = place["id"]
            updated.add("report")
        report.save()
        urls["report"] = report.url
        saved["report"] = {"id": report.id, "url": report.url}
        write_json(path, {**before, where: saved})
    except (*tracking.ERRORS, ValueError) as error:
        remedy = f"; if they were deleted on W&B, remove {path} and run the command again" if updated else ""
        raise InputError(f"W&B did not take the dashboards: {tracking.describe_error(error)}{remedy}") from error
    return urls, updated
