"""`python -m reward probe --model M`: does a reward model prefer one group of people, before it trains anything?

It scores dialogues that are the same except for a group's name (reward.templates; the built-in ones cover BBQ's nine
dimensions). It reports each group's gap in reward units and in standard deviations of the scores over the probe's
dialogues. It also reports what the gap would mean for RLHF: under the Bradley-Terry model, sigma(gap) is the
probability that one version is preferred to the other. reward.gaps explains the estimates, the tests, and what a gap
is not.

A high score of a negative template (KINDS) is a preference for speaking ill of that group, so gaps are also reported by
kind. Scores are computed in float32 unless --dtype says otherwise: bfloat16 rounds by as much as many gaps are.

OUTPUT/scores.jsonl  every dialogue with its score
OUTPUT/probe.json    the result, written last
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.cli.columns import columns
from eval.cli.parser import check_seed, split_commas
from eval.data.readers import sha256
from eval.errors import InputError
from eval.files import now, prepare_output, write_json, write_text
from eval.models.checkpoints import is_hub_id
from eval.runner.provenance import git_commit, machine
from eval.runner.provenance import versions as library_versions
from eval.stats.bootstrap import LEVEL, N_RESAMPLES
from reward.gaps import N_PERMUTATIONS, deviation, measure
from reward.scoring import RewardModel, load_reward_model
from reward.templates import BUILT_IN, KINDS, Version, read_templates, versions

HEAD = ("dimension", "group", "gap", "95% interval", "gap / sd", "p", "p (Holm)", *KINDS)
RUN_RESULT = "reward.json"
"""This file beside the model marks the folder of a finished training run; OUTPUT is then RUN/probe."""


@dataclass
class ProbeConfig:
    """Options of `reward probe`."""

    model: str = field(default="", metadata={"help": "reward model: folder or hub id"})
    revision: str | None = field(default=None, metadata={"help": "hub revision"})
    templates: str | None = field(
        default=None, metadata={"help": "YAML with templates of yours, in the form of reward/data/probe.yaml"}
    )
    dimensions: list[str] = field(
        default_factory=list, metadata={"help": "dimensions that are probed: Age,Religion; empty = all"}
    )
    every_wording: bool = field(
        default=False, metadata={"help": "every wording in every template, not in turn: takes as many times longer"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the bootstrap and of the permutations"})
    output: str | None = field(
        default=None,
        metadata={"help": "folder for probe.json and scores.jsonl; default RUN/probe for the whole probe of RUN/model"},
    )
    dtype: str = field(default="float32", metadata={"help": "float32, auto (as stored), bfloat16 or float16"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:0 ..."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "execute code that the model's repository brings along; read it first"}
    )
    json: bool = field(default=False, metadata={"help": "one JSON object on stdout, everything else on stderr"})

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("reward probe: --model is missing; give the folder or hub id of a reward model")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"dtype must be auto, float32, bfloat16 or float16, not '{self.dtype}'")
        self.dimensions = split_commas(self.dimensions)
        check_seed(self.seed)

    @property
    def folder(self) -> Path | None:
        """The folder for the result; None: it is not written. A partial probe never replaces a whole one."""
        if self.output:
            return Path(self.output)
        run = Path(self.model).resolve().parent
        whole = not self.dimensions and not self.templates
        is_run_model = not is_hub_id(self.model) and (run / RUN_RESULT).is_file()
        return run / "probe" if whole and is_run_model else None


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Scores and measures the dialogues, and writes the result.

    Returns:
        The content of probe.json. Keys: model, seed, n_dialogues, dimensions (reward.gaps.measure), score_mean and
        score_sd (reward units, over all dialogues), every_wording, level, resamples, permutations, templates and their
        sha256, provenance, seconds, output.

    Raises:
        InputError: the templates or the model cannot be used.
    """
    path = Path(config.templates) if config.templates else BUILT_IN
    probe_versions = [v for d in read_templates(path, config.dimensions) for v in versions(d, config.every_wording)]
    if config.folder:
        prepare_output(config.folder)
    start = time.perf_counter()
    model = load_reward_model(
        config.model, config.revision, config.dtype, config.device, config.trust_remote_code
    )  # fmt: skip
    loaded = time.perf_counter()
    scores = model.scores([v.dialogue for v in probe_versions], progress=True)
    scored = time.perf_counter()
    dimensions = measure(probe_versions, scores, config.seed)
    seconds = {"load": loaded - start, "score": scored - loaded, "measure": time.perf_counter() - scored}
    result = {
        "model": model.name,
        "seed": config.seed,
        "n_dialogues": len(probe_versions),
        "score_mean": float(np.mean(scores)),
        "score_sd": deviation(scores),
        "dimensions": dimensions,
        "every_wording": config.every_wording,
        "level": LEVEL,
        "resamples": N_RESAMPLES,
        "permutations": N_PERMUTATIONS,
        "templates": str(path) if config.templates else "built in",
        "templates_sha256": sha256([path]),
        "provenance": {**model.provenance, "git_commit": git_commit(), "versions": library_versions(),
                       "machine": machine(), "time": now()},
        "seconds": {stage: round(s, 2) for stage, s in seconds.items()},
        "output": str(config.folder) if config.folder else None,
    }  # fmt: skip
    if config.folder:
        rows = (_row(v, float(s), model) for v, s in zip(probe_versions, scores, strict=True))
        lines = "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in rows)
        write_text(config.folder / "scores.jsonl", lines)
        write_json(config.folder / "probe.json", result)
    return result


def _row(v: Version, score: float, model: RewardModel) -> dict[str, Any]:
    return {
        "dimension": v.dimension, "template": v.template.id, "kind": v.template.kind, "group": v.group,
        "wording": v.name.one, "score": score, "tokens": len(model.ids(v.dialogue)), "dialogue": v.dialogue,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The probe's result for the terminal: the gaps, a line per dimension, and how to read them."""
    rows = [_cells(d["dimension"], g) for d in result["dimensions"] for g in d["groups"]]
    parts = [
        f"{result['model']}: {result['n_dialogues']} dialogues that differ only in the name of a group; their scores "
        f"have a standard deviation of {result['score_sd']:.3f}",
        columns([HEAD, *rows]),
        "\n".join(f"{d['dimension']}: {d['finding']}" for d in result["dimensions"]),
        "gap: score of the group's version less the mean of all groups' versions, over templates; last columns: by "
        "kind of template\n(negative: a high score rewards speaking ill of the group). A gap is a preference for these "
        "names in these sentences.",
    ]
    if result["output"]:
        parts.append(f"written: {result['output']}")
    return "\n\n".join(parts)


def _cells(dimension: str, g: dict[str, Any]) -> tuple[str, ...]:
    interval = "" if g["low"] is None else f"[{g['low']:.3f}, {g['high']:.3f}]"
    sd, p, p_holm = ("" if g[k] is None else f"{g[k]:.{n}f}" for k, n in (("gap_sd", 2), ("p_value", 4), ("p_holm", 4)))
    kinds = (f"{g['kinds'][k]:+.3f}" if k in g["kinds"] else "" for k in KINDS)
    return (dimension, g["group"], f"{g['gap']:+.3f}", interval, sd, p, p_holm, *kinds)
