"""Weights & Biases: every run identity and metric name that this project uses. The only module that imports wandb here.

A trainer owns its run (job_type 'train'). Evaluation never calls wandb: it writes result files, and `publish` projects
them into one run per condition (job_type 'eval') in the same group, with the metrics eval/<experiment>/<metric> against
rlhf_step (training_step for revisions of a model). The files are the truth: a ledger beside them says what was sent,
so publishing again sends nothing again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.lib.wbauth import read_netrc_auth  # what `wandb login` wrote; wandb's own lookup, as its CLI does it

from eval.conditions import CONDITIONS
from eval.curves import find_summaries, step_name
from eval.results import write_json
from eval.views.gathered import RUN_FILE

PROJECT = "selfcorrect"
LEDGER = "wandb-ledger.json"
CONFIG_KEYS = ("model", "model_params", "algorithm", "data", "seed", "git_commit", "format", "dtype")


def mode() -> str:
    """$WANDB_MODE where it is set, else online where the user is logged in, else offline."""
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    settings = wandb.setup().settings
    return "online" if settings.api_key or read_netrc_auth(host=settings.base_url) else "offline"


def policy_name(folder: Path, *distinguishing: Any) -> str:
    """A readable name: the folder's, and a hash of machine, path and what it holds.

    Runs elsewhere or with other settings get other names; the same run started again goes on under its own.
    """
    path = folder.resolve()
    what = json.dumps([platform.node(), str(path), *distinguishing], sort_keys=True, default=str)
    return f"{path.parent.name}-{path.name}-{hashlib.sha256(what.encode()).hexdigest()[:6]}"


def start_training_run(folder: Path, policy: str, run_id: str, config: dict[str, Any]) -> Any:
    """The training's own run; the Trainer's W&B callback logs into it. Continued under the same id after a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(folder),
        id=run_id,
        name=run_id,
        group=policy,
        job_type="train",
        resume="allow",
        mode=mode(),  # pyright: ignore[reportArgumentType]
        config=config,
    )


def log_samples(run: Any, rows: list[dict[str, Any]], step: int) -> None:
    """A table of a checkpoint's sampled answers in the training's own run, at its step on that run's axis."""
    scored = [f"{kind}/{name}" for kind in ("rewards", "judges") for name in rows[0][kind]]
    table = wandb.Table(columns=["rlhf_step", "prompt", "answer", "tokens", "kl", "entropy", *scored])
    for row in rows:
        scores = [row[kind][name] for kind in ("rewards", "judges") for name in row[kind]]
        prompt = "\n\n".join(f"{m['role']}: {m['content']}" for m in row["prompt"])
        table.add_data(step, prompt, row["answer"], row["tokens"], row["kl"], row["entropy"], *scores)
    run.log({f"samples/step-{step:06d}": table, "train/global_step": step})


def publish(run_folder: Path) -> list[str]:
    """Sends the finished evaluations in `run_folder` that were not sent yet; returns the ids of the runs written.

    One publisher at a time (file lock). A checkpoint that comes late or out of order keeps its place, since the axis
    is rlhf_step and not the order of logging. Of each checkpoint and condition every experiment is sent once. Raises
    InputError where there is no finished evaluation.
    """
    summaries = find_summaries(run_folder)
    described = json.loads((run_folder / RUN_FILE).read_text("utf-8")) if (run_folder / RUN_FILE).is_file() else {}
    weights = [(s["step"], s.get("weights"), s.get("adapter_weights")) for s in summaries[:1]]
    name = described.get("policy") or policy_name(run_folder, weights)
    written = []
    with _locked(run_folder / f".{LEDGER}.lock"):
        ledger_path = run_folder / LEDGER
        ledger = json.loads(ledger_path.read_text("utf-8")) if ledger_path.is_file() else {"policy": name, "sent": []}
        policy, sent = ledger["policy"], set(ledger["sent"])
        axis = step_name(summaries).lower().replace(" ", "_")
        for condition in CONDITIONS.values():
            rows = {s["step"]: _row(s, condition.name) for s in summaries}
            new: dict[int, dict[str, float]] = {}
            keys: set[str] = set()
            for step, row in sorted(rows.items()):
                whole = f"{condition.slug}@{step}"  # the key before experiments had keys of their own
                for name, value in row.items():
                    key = f"{whole}/{name.split('/')[1]}"
                    if not {key, whole} & sent:
                        new.setdefault(step, {axis: step})[name] = value
                        keys.add(key)
            if new:
                config = {k: {**summaries[0], **described}.get(k) for k in CONFIG_KEYS}
                config |= {"condition": condition.name, "policy": policy}
                run_id = f"eval-{policy}-{condition.slug}"
                _log(run_folder, policy, run_id, config, axis, new, rows[max(s for s in rows if rows[s])])
                sent |= keys
                write_json(ledger_path, {"policy": policy, "sent": sorted(sent)})
                written.append(run_id)
    return written


def _row(summary: dict[str, Any], condition: str) -> dict[str, float]:
    """eval/<experiment>/<metric>[_low|_high] of one checkpoint and condition; undefined values are left out."""
    row = {}
    for m in summary["metrics"]:
        if m["condition"] != condition or m["value"] is None:
            continue
        part = "" if m["category"] == "all" else "/" + m["category"].replace(" ", "_")
        name = f"eval/{m['experiment']}/{m['name']}{part}"
        for suffix, value in (("", m["value"]), ("_low", m["low"]), ("_high", m["high"])):
            if value is not None:
                row[name + suffix] = value
    return row


def _log(
    folder: Path, policy: str, run_id: str, config: dict[str, Any], axis: str, rows: dict[int, dict[str, float]],
    last: dict[str, float],
) -> None:  # fmt: skip
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(folder),
        id=run_id,
        name=run_id,
        group=policy,
        job_type="eval",
        resume="allow",
        reinit="create_new",  # beside the trainer's run in the same process
        mode=mode(),  # pyright: ignore[reportArgumentType]
        config=config,
        settings=wandb.Settings(silent=True, x_disable_stats=True, console="off"),
    )
    run.define_metric(axis, hidden=True, summary="none")
    run.define_metric("eval/*", step_metric=axis, step_sync=False, summary="none")
    for row in rows.values():
        run.log(row)
    run.summary.update({"final/" + name.removeprefix("eval/"): value for name, value in last.items()})
    run.finish()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
