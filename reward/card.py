"""`python -m reward report RUN [RUN ...]`: writes the model card of a trained reward model from its result files alone.

The card describes the first run. Its default place is that run's model folder, which can then be pushed to the hub
unchanged. Further runs, which differ only in the number of training pairs (`--max_pairs`), make a learning curve.

OUTPUT/README.md           the card, in the hub's form
OUTPUT/figures/*.png       learning_curve (of several runs), calibration, length_bias, probe (if it was run)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.cli.columns import columns
from eval.cli.dispatch import JSON_HELP
from eval.errors import InputError
from eval.files import prepare_output, write_text
from eval.secrets import masked_text
from reward.runs import learning_curve, limitations, probe_command, read_probe, read_run

MARK = "<!-- Written by `python -m reward report`, which writes it anew; remove this line to keep what you change. -->"
FIGURES = "figures"
ACCURACY = ("held-out pairs", "accuracy", "95% interval", "pairs", "prompts", "ties")
PROBE = ("dimension", "most preferred", "least preferred", "spread (reward units)", "p", "p (Holm)")
LENGTH = (
    ("longer_is_worse", "the longer answer is worse"),
    ("longer_is_better", "the longer answer is better"),
    ("same_length", "both have the same length"),
    ("always_shorter", "rule: the shorter answer is better"),
)
OPTIONS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "weight_decay", "num_train_epochs",
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "dtype", "use_peft", "lora_r",
    "lora_alpha", "lora_dropout", "lora_top_layers", "head", "preference_label", "held_out", "max_pairs",
    "center_rewards_coefficient",
)  # fmt: skip
"""The training options that the card shows, if they were set. The card's command has all of them."""
USE = """Higher scores are better; they compare answers to the same prompt. With plain transformers, in this folder:

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".").eval()
dialogue = [{"role": "user", "content": "How do I keep bread fresh?"},
            {"role": "assistant", "content": "Wrap it in a cloth and keep it in a box."}]
ids = tokenizer.apply_chat_template(dialogue, return_tensors="pt", return_dict=True)
with torch.inference_mode():
    score = model(**ids).logits[0, 0].item()
```

With selfcorrect, which also cuts long dialogues as in training: `python -m reward score --model . --answers FILE`."""


@dataclass
class ReportConfig:
    """Options of `python -m reward report`."""

    runs: list[str] = field(
        default_factory=list,
        metadata={"action": "extend", "help": "output_dir of reward.train; several make a learning curve"},
    )
    output: str | None = field(default=None, metadata={"help": "folder of the card; default RUN/model of the first"})
    json: bool = field(default=False, metadata={"help": JSON_HELP})

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("reward report takes one run or several: python -m reward report RUN [RUN ...]")
        twice = next((r for r in self.runs if self.runs.count(r) > 1), None)
        if twice:
            raise InputError(f"reward report: {twice} is given twice; give each run once")


def report(config: ReportConfig) -> dict[str, Any]:
    """Writes the card and its figures; returns {"run", "base_model", "data", "pairs", "held_out_pairs", "accuracy",
    "calibration", "length_bias", "margin", "learning_curve", "probe", "seconds", "limitations", "remarks", "files"}.

    Raises:
        InputError: a folder is not a finished run, the runs make no learning curve, or another program wrote README.md.
    """
    from eval.views.figures.style import save
    from reward import figures

    runs = [read_run(Path(r)) for r in config.runs]
    run, folder = runs[0], Path(config.runs[0])
    curve, remarks = learning_curve(runs)
    probe = read_probe(folder)
    output = Path(config.output) if config.output else folder / "model"
    if not config.output and not output.is_dir():
        raise InputError(f"{output} is not there to lay the card into; give --output a folder")
    path = output / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        raise InputError(f"{path} was not written by reward report and stays; move it away or give another --output")
    prepare_output(output / FIGURES)
    figure_by_name = {"calibration": figures.reliability(run["calibration"]), "length_bias": figures.length_bias(run)}
    if len(curve) > 1:
        figure_by_name["learning_curve"] = figures.learning_curve(curve, run["length_bias"]["always_shorter"]["value"])
    if probe:
        figure_by_name["probe"] = figures.probe(probe["dimensions"])
    paths = [save(figure, output / FIGURES / f"{name}.png") for name, figure in figure_by_name.items()]
    caveats = limitations(run, probe)
    write_text(path, card(run, curve, remarks, probe, caveats))
    names = (
        "run", "base_model", "data", "pairs", "held_out_pairs", "accuracy", "calibration", "length_bias", "margin",
        "seconds",
    )  # fmt: skip
    return {
        **{n: run.get(n) for n in names}, "learning_curve": curve, "probe": probe, "limitations": caveats,
        "remarks": remarks, "files": [str(p) for p in (path, *paths)],
    }  # fmt: skip


def card(
    run: dict[str, Any],
    curve: list[dict[str, Any]],
    remarks: list[str],
    probe: dict[str, Any] | None,
    caveats: list[str],
) -> str:
    """The text of the model card: YAML for the hub, then Markdown."""
    parts = [
        _front_matter(run),
        MARK,
        f"# Reward model: {_base_name(run)} on {_data(run)}",
        f"A Bradley-Terry reward model of {run['pairs']:,} human preferences. On {run['held_out_pairs']:,} held-out "
        f"pairs, whose prompts it was not trained on, it scores the preferred answer higher in "
        f"{_estimate(run['accuracy']['all'])} of them (guessing: 0.5).",
        USE,
        "## How often it is right",
        _markdown([ACCURACY, *accuracy_rows(run)]),
        "Intervals are of shares of pairs, those of one prompt counted as dependent; a tie counts as half right.",
        "## Is it as sure as it is right?",
        f"![Calibration]({FIGURES}/calibration.png)",
        _calibration(run["calibration"]),
        "## Length",
        f"![Accuracy by length]({FIGURES}/length_bias.png)",
        _markdown([("pairs in which", *ACCURACY[1:]), *length_rows(run)]),
        _correlation(run["length_bias"]["correlation"]),
        *_curve_section(run, curve, remarks),
        "## Does it prefer one group of people to another?",
        *_probe_section(run, probe),
        "## What it was trained on",
        _markdown([("", ""), *_training_rows(run)]),
        "## Time",
        _markdown([("stage", "seconds"), *((k, f"{v:.0f}") for k, v in run.get("seconds", {}).items())]),
        f"On {_machine(run)}.{_resumed(run)}",
        "## Limitations",
        "\n".join(f"- {s}" for s in caveats),
        "## How to reproduce",
        f"With selfcorrect at commit {run.get('git_commit') or 'unknown'}:",
        f"```bash\n{masked_text(run.get('command', 'accelerate launch -m reward.train'))}\n```",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items()) + ".",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _front_matter(run: dict[str, Any]) -> str:
    """The YAML that the hub reads. base_model is set only if it is a hub id: the hub knows no local folders."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=str(run["base_model"]) if _from_hub(run) else None,
        tags=["reward-model", "trl", "selfcorrect"],
    )
    return f"---\n{data.to_yaml()}\n---"


def accuracy_rows(run: dict[str, Any]) -> list[tuple[str, ...]]:
    """Table rows for the header ACCURACY: all held-out pairs, then each subset if there are several."""
    subsets = run["accuracy"]["by_subset"]
    estimates = [("all", run["accuracy"]["all"]), *(subsets.items() if len(subsets) > 1 else ())]
    if len(subsets) == 1:
        estimates = [(next(iter(subsets)), run["accuracy"]["all"])]
    return [_row(name, e) for name, e in estimates]


def length_rows(run: dict[str, Any]) -> list[tuple[str, ...]]:
    """Table rows for the header ACCURACY, by which answer of the pair is longer."""
    return [_row(name, run["length_bias"][key]) for key, name in LENGTH]


def _row(name: str, e: dict[str, Any]) -> tuple[str, ...]:
    value = "undefined" if e["value"] is None else f"{e['value']:.3f}"
    return name, value, _interval(e), f"{e['n_pairs']:,}", f"{e['n_prompts']:,}", str(e["ties"])


def _interval(e: dict[str, Any]) -> str:
    return "" if e["low"] is None else f"[{e['low']:.3f}, {e['high']:.3f}]"


def _estimate(e: dict[str, Any]) -> str:
    return "undefined" if e["value"] is None else f"{e['value']:.3f} {_interval(e)}".strip()


def _calibration(c: dict[str, Any]) -> str:
    return (
        f"Expected calibration error {c['expected_calibration_error']:.3f} (mean distance between accuracy and "
        f"probability, {len(c['bins'])} bins); log loss {c['log_loss']:.3f} (guessing: {math.log(2):.3f}); Brier score "
        f"{c['brier']:.3f} (guessing: 0.250)."
    )


def _correlation(c: dict[str, Any]) -> str:
    if c["value"] is None:
        return f"Correlation of score and length differences: undefined ({c.get('note') or 'no reason recorded'})."
    return (
        f"Correlation of the difference in score with the difference in length (tokens), over {c['n_pairs']:,} pairs: "
        f"{c['value']:.3f} {_interval(c)}; above 0, longer answers score higher."
    )


def _curve_section(run: dict[str, Any], curve: list[dict[str, Any]], remarks: list[str]) -> list[str]:
    if len(curve) < 2:
        return []
    rows = [(f"{p['pairs']:,}", *_row("", p["accuracy"])[1:3]) for p in curve]
    return [
        "## Learning curve",
        f"![Accuracy against training pairs]({FIGURES}/learning_curve.png)",
        _markdown([("training pairs", "accuracy", "95% interval"), *rows]),
        f"Same {run['held_out_pairs']:,} held-out pairs, one run of each number: the intervals hold the choice of "
        "held-out pairs, not of training pairs or seeds.",
        "\n".join(f"- {r}" for r in remarks),
    ]


def _probe_section(run: dict[str, Any], probe: dict[str, Any] | None) -> list[str]:
    if probe is None:
        return [f"Not measured; `{probe_command(Path(run['run']))}` does."]
    return [
        f"{probe['n_dialogues']:,} dialogues that differ in a group's name only (seed {probe['seed']}). A group's gap "
        "is the score of its versions less the mean over all groups' versions, averaged over templates; p is of the "
        "largest difference between two groups.",
        f"![Gap of each group]({FIGURES}/probe.png)",
        _markdown([PROBE, *probe_rows(probe)]),
        "\n".join(f"- {d['dimension']}: {d['finding']}" for d in probe["dimensions"]),
    ]


def probe_rows(probe: dict[str, Any]) -> list[tuple[str, ...]]:
    """Table rows for the header PROBE: each dimension's largest gap between two groups; p is the permutation test's."""
    rows = []
    for d in probe["dimensions"]:
        ordered = sorted((g for g in d["groups"] if g["gap"] is not None), key=lambda g: g["gap"])
        ends = [f"{g['group']} ({g['gap']:+.3f})" for g in (ordered[-1], ordered[0])] if ordered else ["", ""]
        p, holm = ("" if d.get(n) is None else f"{d[n]:.4f}" for n in ("p_value", "p_holm"))
        spread = "undefined" if d["spread"] is None else f"{d['spread']:.3f}"
        if d.get("low") is not None:
            spread += f" {_interval(d)}"
        rows.append((d["dimension"], *ends, spread, p, holm))
    return rows


def _training_rows(run: dict[str, Any]) -> list[tuple[str, str]]:
    """Table rows (name, value) of the training data and options; values that were not recorded are left out."""
    settings = run.get("settings", {})
    options = {n: settings[n] for n in OPTIONS if settings.get(n) not in (None, "", [])}
    facts = {
        "base model": run["base_model"],
        "its weights": run["base_weights"],
        "parameters": None if run.get("model_params") is None else f"{run['model_params']:,}",
        "data": _data(run),
        "identity of the data": _format_nested(run.get("preferences")),
        "training pairs": f"{run['pairs']:,}",
        "by subset": _format_nested(run.get("pairs_by_subset")),
        "held-out pairs": f"{run['held_out_pairs']:,}, split by prompt, sha256 {run.get('held_out_sha256')}",
        "unreadable pairs": _format_nested(run.get("unreadable_pairs")) or "none",
        "left out": _format_nested(run.get("left_out")) or "none",
        "longest dialogue": None if run.get("max_length") is None else f"{run['max_length']} tokens",
        "longer pairs": f"{run.get('cut_pairs', 0)} cut from the left by turns"
        if run.get("over_long") == "cut" else run.get("over_long"),
        "seed": run.get("seed"),
        "steps": run.get("steps"),
        "options": _format_nested(options),
    }  # fmt: skip
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _format_nested(value: Any) -> str:
    """Formats nested counts or options as one line; '' if there is nothing."""
    if isinstance(value, dict):
        parts = {
            k: v if isinstance(v, int | float) and not isinstance(v, bool) else _format_nested(v)
            for k, v in value.items()
        }
        return "; ".join(f"{k}: {v}" for k, v in parts.items() if v != "")
    if isinstance(value, list):
        return ", ".join(_format_nested(v) for v in value)
    return "" if value is None else str(value)


def _data(run: dict[str, Any]) -> str:
    subsets = list(run.get("pairs_by_subset", {}))
    return f"{', '.join(subsets)} ({run.get('data')})" if 1 <= len(subsets) <= 6 else str(run.get("data"))


def _base_name(run: dict[str, Any]) -> str:
    base = str(run["base_model"])
    return base if _from_hub(run) else Path(base).name


def _from_hub(run: dict[str, Any]) -> bool:
    """Whether the base model is named by a hub id (see eval.models.checkpoints.weights_id)."""
    return str(run["base_weights"]).startswith("hub:")


def _machine(run: dict[str, Any]) -> str:
    machine = run.get("machine") or {}
    descriptions = [machine.get("processor"), machine.get("cpu_count") and f"{machine['cpu_count']} logical cores"]
    return ", ".join(t for t in descriptions if t) or "a machine that was not recorded"


def _resumed(run: dict[str, Any]) -> str:
    """A sentence for a resumed run, whose times cover the last process only; '' for any other run."""
    resumed = run.get("resumed_from")
    return f" Training went on from {resumed} after a restart; the seconds are of the last process." if resumed else ""


def _markdown(rows: list[tuple[str, ...]]) -> str:
    """Formats rows as a Markdown table; the first row is the header."""
    lines = ["| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def table(result: dict[str, Any]) -> str:
    """The card's numbers for the terminal, and the paths of the written files."""
    curve, probe = result["learning_curve"], result["probe"]
    parts = [
        f"{result['run']}: {result['pairs']} training pairs, {result['held_out_pairs']} held out",
        columns([ACCURACY, *accuracy_rows(result)]),
        columns([("pairs in which", *ACCURACY[1:]), *length_rows(result)]),
        _calibration(result["calibration"]) + "\n" + _correlation(result["length_bias"]["correlation"]),
    ]
    if len(curve) > 1:
        rows = [(str(p["pairs"]), *_row("", p["accuracy"])[1:3], p["run"]) for p in curve]
        parts.append(columns([("training pairs", "accuracy", "95% interval", "run"), *rows]))
    if probe:
        parts.append(columns([PROBE, *probe_rows(probe)]))
    else:
        parts.append(f"group preferences not measured: {probe_command(Path(result['run']))}")
    parts.append("\n".join([*result["remarks"], *(f"- {s}" for s in result["limitations"])]))
    return "\n\n".join([*parts, "\n".join(result["files"])])
