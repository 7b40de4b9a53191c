"""Writes the model card of a checkpoint made by our trainers: README.md in its folder, in the hub's form.

It says what the checkpoint is, how it was evaluated and what the results are. It is written from policy.json and the
evaluation's summary alone, so every way of evaluating writes the same card. The card is not part of what identifies the
checkpoint (eval.models.checkpoints.weights_id, adapter_id).
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import yaml

from eval.config import EvaluationConfig
from eval.curves.read import step_name
from eval.curves.tables import metric_row, remarks
from eval.errors import InputError
from eval.experiments.conditions import INVERSE
from eval.experiments.registry import EXPERIMENTS
from eval.files import write_text
from eval.models.checkpoints import POLICY_FILE, read_policy

log = logging.getLogger(__name__)

MARK = "<!-- Written by selfcorrect, which writes it anew; remove this line to keep what you change. -->"
OF_LIBRARIES = ("[More Information Needed]", "](https://github.com/huggingface/trl)")
"""Marks the cards that peft and TRL put into a checkpoint, which are unfilled templates and may be replaced."""
PAPER = "*The Capacity for Moral Self-Correction in Large Language Models* (Ganguli et al. 2023, arXiv:2302.07459)"


def write_card(checkpoint: Path, summary: dict[str, Any]) -> Path:
    """Writes the checkpoint's README.md, unless somebody else wrote one.

    Args:
        checkpoint: the checkpoint's folder.
        summary: content of summary.json.

    Returns:
        The path of README.md.

    Raises:
        InputError: the folder is not a checkpoint of our trainers, or the file cannot be written.
    """
    policy = read_policy(checkpoint)
    if not policy:
        raise InputError(f"{checkpoint} gets no model card: it has no {POLICY_FILE}, so our trainers did not write it")
    path = checkpoint / "README.md"
    adapted = (checkpoint / "adapter_config.json").is_file()
    try:
        if path.is_file() and not any(part in path.read_text(encoding="utf-8") for part in (MARK, *OF_LIBRARIES)):
            log.warning("%s was written by somebody and stays; remove it for a card of this evaluation", path)
        else:
            write_text(path, card(policy, summary, adapted))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"model card {path} cannot be written ({error}); make it writable and run the same command again"
        ) from error
    return path


def card(policy: dict[str, Any], summary: dict[str, Any], adapted: bool) -> str:
    """The text of the card: YAML for the hub, then Markdown.

    Args:
        policy: content of policy.json.
        summary: content of summary.json.
        adapted: whether the checkpoint is an adapter; else it is a full model.
    """
    from eval.curves.cautions import headline_notes
    from eval.curves.headline import headlines

    shown = headlines(summary)
    notes = remarks(shown) + headline_notes(summary)
    sections = [
        f"---\n{_front_matter(policy, summary, shown, adapted)}\n---",
        MARK,
        f"# {_name(policy, summary)}",
        f"The policy after {summary['step']} {step_name([summary])}s of {policy.get('algorithm', 'training')}, "
        f"{'an adapter on' if adapted else 'trained from'} {_base(policy)[1]}, evaluated on the experiments of "
        f"{PAPER}.",
        "## Results",
        _markdown([("experiment", "condition", "metric", "value", "95% interval", "items"), *map(_row, shown)]),
        "Intervals are cluster bootstraps over templates, occupations and profiles; rho's are Fisher's.",
        "\n".join(f"- {EXPERIMENTS[e].TITLE}: {_meaning(e)}" for e in dict.fromkeys(m["experiment"] for m in shown)),
        "\n".join(f"- {note}" for note in notes),
        "## Where it comes from",
        _markdown([("", ""), *_origin(policy, summary)]),
        "## How to load it",
        _loading(policy, summary, adapted),
        "## How to evaluate it again",
        _evaluating(summary),
    ]
    return "\n\n".join(p for p in sections if p) + "\n"


def _front_matter(policy: dict[str, Any], summary: dict[str, Any], shown: list[dict[str, Any]], adapted: bool) -> str:
    """The YAML that the hub reads. It names a base_model only by hub id, since the hub knows no folder of this
    machine.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=m["experiment"],
            dataset_name=f"{EXPERIMENTS[m['experiment']].TITLE} ({summary['data']})",
            dataset_revision=f"sha256:{summary['data_sha256'][m['experiment']]}",
            metric_type=m["name"],
            metric_name=f"{m['name']} under {m['condition']}",
            metric_value=m["value"],
            metric_args={"condition": m["condition"], "low": m["low"], "high": m["high"], "items": m["n_items"]},
        )
        for m in shown
        if m["value"] is not None
    ]
    hub_id, _ = _base(policy)
    algorithm = policy.get("algorithm")
    data = ModelCardData(
        base_model=hub_id,
        library_name="peft" if adapted else "transformers",
        pipeline_tag="text-generation",
        tags=["selfcorrect", "trl", *([algorithm] if algorithm else []), *(["lora"] if adapted else [])],
        model_name=_name(policy, summary),
        eval_results=results or None,
    )
    return data.to_yaml()


def _name(policy: dict[str, Any], summary: dict[str, Any]) -> str:
    return f"{policy.get('policy') or policy.get('algorithm') or 'policy'}-step-{summary['step']}"


def _base(policy: dict[str, Any]) -> tuple[str | None, str]:
    """(the base model's hub id or None, the name to show). A folder is shown by its last part, never by its full
    path.
    """
    model, weights = str(policy.get("model")), str(policy.get("base_weights"))
    return (model, model) if weights.startswith("hub:") else (None, Path(model).name)


def _row(m: dict[str, Any]) -> tuple[str, ...]:
    """A row of the results table."""
    return (m["experiment"], m["condition"], m["name"], *metric_row(0, m)[4:7])


def _meaning(experiment: str) -> str:
    """The headline metric of an experiment, and what its sign means."""
    from eval.curves.cautions import SIGNS

    return f"{EXPERIMENTS[experiment].HEADLINE_LABEL}; {SIGNS[experiment]}"


def _origin(policy: dict[str, Any], summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of (name, value), without what was not recorded."""
    trained, evaluated = policy.get("git_commit"), summary.get("git_commit")
    parameters = summary.get("model_params")
    values = {
        "algorithm": policy.get("algorithm"),
        step_name([summary]): summary["step"],
        "seed": policy.get("seed"),
        "base": _base(policy)[1],
        "its weights": policy.get("base_weights"),
        "parameters": None if parameters is None else f"{parameters:,}",
        "dtype": summary.get("dtype"),
        "git commit": trained,
        "git commit of the evaluation": None if evaluated == trained else evaluated,
        "preference data": "; ".join(policy.get("preference_data") or []),
        "evaluation data": summary["data"],
        **{f"data of {e}": f"sha256:{checksum}" for e, checksum in summary["data_sha256"].items()},
        "weights": summary.get("weights") if summary.get("adapter") is None else None,
        "adapter's weights": summary.get("adapter_weights"),
        "versions": ", ".join(f"{k} {v}" for k, v in summary.get("versions", {}).items()),
    }
    return [(name, str(value)) for name, value in values.items() if value not in (None, "")]


def _loading(policy: dict[str, Any], summary: dict[str, Any], adapted: bool) -> str:
    """How to load the checkpoint with transformers and peft, from within its folder."""
    hub_id, name = _base(policy)
    dtype = f'dtype="{summary["dtype"]}"'
    if not adapted:
        code = f'model = AutoModelForCausalLM.from_pretrained(".", {dtype})'
        imports = ""
    else:
        commit = str(policy.get("base_weights")).removeprefix("hub:")
        pinned = hub_id and commit not in ("None", "main")  # earlier versions did not record a hub model's commit
        at = f', revision="{commit}"' if pinned else ""
        code = f'base = AutoModelForCausalLM.from_pretrained("{name}"{at}, {dtype})\n'
        code += 'model = PeftModel.from_pretrained(base, ".")'
        imports = "from peft import PeftModel\n"
    local = f"`{name}` is the folder of the base, whose weights are {policy.get('base_weights')}.\n\n"
    return (
        f"{local if adapted and not hub_id else ''}In this folder:\n\n```python\n{imports}"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained(".")\n{code}\n```'
    )


def _evaluating(summary: dict[str, Any]) -> str:
    """The evaluation's options as YAML, and the command that uses them."""
    names = {f.name for f in dataclasses.fields(EvaluationConfig)}
    options = {k: v for k, v in summary["evaluation"].items() if k in names and v not in (None, [])}
    options["format"] = summary["format"]
    options |= {"inverse": True} if INVERSE in options["conditions"] else {}
    options |= {"system_turn": "drop"} if str(summary.get("system_turn")).startswith("dropped") else {}
    data = "" if summary["data"] == "small set" else f" --data-dir {summary['data']}"
    return (
        f"With selfcorrect at commit {summary.get('git_commit') or 'unknown'}, in a file `eval.yaml`:\n\n```yaml\n"
        f"{yaml.safe_dump(options, sort_keys=False).strip()}\n```\n\n```bash\npython -m eval run --config eval.yaml "
        f"--model THIS_FOLDER --dtype {summary['dtype']}{data} --output RESULTS\n```"
    )


def _markdown(rows: list[tuple[str, ...]]) -> str:
    """Rows as a Markdown table; the first is the header."""
    lines = ["| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
