"""Answers to prompts kept out of training, sampled at each checkpoint and scored by models that are not optimised.

OUTPUT/samples/step-000050.jsonl   a line per prompt: the answer, its rewards, KL and entropy
OUTPUT/samples/summary.json        means per step, and their changes since step 0, paired by prompt, with intervals

The learned reward must rise, since it is optimised. A reward model trained on other pairs shows whether the answers
became better, on prompts that neither has seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from eval.files import read_json, write_json, write_text
from reward.detectors import OBSERVABLES, Answer
from reward.dialogues import Message
from reward.functions import Rewards, is_finished, up_to_end

BATCH = 16
"""Prompts answered together."""


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled: as in training.

    options: top_p, top_k ... of transformers' GenerationConfig. end_ids: the tokens that end an answer.
    """

    max_tokens: int
    temperature: float
    end_ids: tuple[int, ...]
    seed: int
    options: dict[str, Any] = field(default_factory=dict)


class Samples:
    """Samples and scores the answers of a policy; `folder` is OUTPUT/samples.

    rewards: optimised in training. judges: not optimised. reference: the starting policy if it is a separate model;
    None if it is the policy without its adapter.
    """

    def __init__(
        self, folder: Path, prompts: Sequence[list[Message]], tokenizer: Any, sampling: Sampling, rewards: Rewards,
        judges: Rewards, reference: Any = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.prompts = list(prompts)
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.rewards = rewards
        self.judges = judges
        self.reference = reference

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.jsonl"

    def __call__(self, model: Any, step: int) -> list[dict[str, Any]]:
        """The rows of a step, read from its file if they were sampled before.

        Sets torch's random state; the caller must restore it (train.callbacks.preserve_training_state).

        Args:
            model: the policy, in evaluation mode.
        """
        path = self.path(step)
        if not path.is_file():
            write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self._draw(model)))
        write_json(self.folder / "summary.json", summarise(self.folder))  # a kill may have prevented it
        return read_rows(path)

    def _draw(self, model: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        torch.manual_seed(self.sampling.seed)
        with torch.no_grad():
            for start in range(0, len(self.prompts), BATCH):
                rows += self._answer(model, self.prompts[start : start + BATCH])
        self._score(rows)
        return rows

    def _answer(self, model: Any, prompts: list[list[Message]]) -> list[dict[str, Any]]:
        sampling = self.sampling
        written = self.tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)
        encoded = self.tokenizer.pad(
            {"input_ids": written["input_ids"]}, padding_side="left", return_tensors="pt", return_attention_mask=True
        ).to(model.device)
        sampling_config = GenerationConfig(
            max_new_tokens=sampling.max_tokens, do_sample=True, temperature=sampling.temperature,
            eos_token_id=list(sampling.end_ids), pad_token_id=self.tokenizer.pad_token_id, **sampling.options,
        )  # fmt: skip
        generated = model.generate(**encoded, generation_config=sampling_config)
        rows = []
        for i, prompt in enumerate(prompts):
            prompt_ids = encoded["input_ids"][i][encoded["attention_mask"][i].bool()]
            answer = up_to_end(generated[i, encoded["input_ids"].shape[1] :].tolist(), sampling.end_ids)
            ids = torch.cat([prompt_ids, torch.tensor(answer, device=prompt_ids.device)])
            kl, entropy = self._distances(model, ids, len(answer))
            text = self.tokenizer.decode(answer, skip_special_tokens=True)
            rows.append({"prompt": prompt, "answer": text, "answer_ids": answer, "kl": kl, "entropy": entropy})
        return rows

    def _distances(self, model: Any, ids: torch.Tensor, n: int) -> tuple[float | None, float]:
        """(sum over the answer's n tokens of log policy - log starting policy; mean entropy in nats)."""
        logp, entropy = _log_probabilities(model, ids, n, self.sampling.temperature)
        if self.reference is not None:
            before, _ = _log_probabilities(self.reference, ids, n, self.sampling.temperature)
        elif hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                before, _ = _log_probabilities(model, ids, n, self.sampling.temperature)
        else:
            return None, entropy
        return float((logp - before).sum()), entropy

    def _score(self, rows: list[dict[str, Any]]) -> None:
        prompts = [row["prompt"] for row in rows]
        answers = [[{"role": "assistant", "content": row["answer"]}] for row in rows]
        ids = [row["answer_ids"] for row in rows]
        ends = frozenset(self.sampling.end_ids)
        for kind, scored in (("rewards", self.rewards), ("judges", self.judges)):
            by_part = {
                name: function(prompts=prompts, completions=answers, completion_ids=ids, log_metric=_discard_metric)
                for name, function in zip(scored.names, scored.functions, strict=True)
            }
            for i, row in enumerate(rows):
                row[kind] = {name: values[i] for name, values in by_part.items()}
        for row in rows:
            answer = Answer(row["answer"], row["answer_ids"], is_finished(row["answer_ids"], ends))
            row["observed"] = {name: measure(answer) for name, measure in OBSERVABLES.items()}
            row["tokens"] = len(row["answer_ids"])


def _discard_metric(name: str, value: float) -> None:
    """Ignores a metric: these answers belong to no training step, whose means TRL logs."""


def _log_probabilities(model: Any, ids: torch.Tensor, n: int, temperature: float) -> tuple[torch.Tensor, float]:
    """(log-probabilities (n,) of the last n tokens, their mean entropy), in fp32, at the sampling temperature."""
    logits_NV = model(input_ids=ids[None], logits_to_keep=n + 1).logits[0, :-1].float() / temperature
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    entropy = float(-(logp_NV.exp() * logp_NV).sum(-1).mean())
    return logp_NV.gather(1, ids[-n:, None])[:, 0], entropy


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a step's file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measures(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of an answer that steps are compared by. kl_per_token weighs all answers equally."""
    values = {f"rewards/{name}": value for name, value in row["rewards"].items()}
    values |= {f"judges/{name}": value for name, value in row["judges"].items()}
    values |= {f"observed/{name}": value for name, value in row["observed"].items()}
    values["entropy"] = row["entropy"]
    if row["kl"] is not None:
        values["kl_per_token"] = row["kl"] / row["tokens"]
    return values


def summarise(folder: Path) -> dict[str, Any]:
    """Summarises the steps in `folder`.

    Changes since step 0 are paired by prompt, with Student's 95% interval over prompts.

    Returns:
        {"steps": [{"step", "n_prompts", "mean": {measure: value}, "change": {measure: [value, low, high]}}]}.
    """
    rows_by_step = {
        int(path.stem.removeprefix("step-")): read_rows(path) for path in sorted(folder.glob("step-*.jsonl"))
    }
    measures_by_step = {step: [measures(row) for row in rows] for step, rows in rows_by_step.items()}
    steps = []
    for step, rows in measures_by_step.items():
        mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        entry: dict[str, Any] = {"step": step, "n_prompts": len(rows), "mean": mean}
        if step > 0 and 0 in measures_by_step and len(measures_by_step[0]) == len(rows):
            entry["change"] = {
                name: paired_change([row[name] for row in measures_by_step[0]], [row[name] for row in rows])
                for name in mean
            }
        steps.append(entry)
    return {"steps": steps}


def paired_change(before: Sequence[float], after: Sequence[float]) -> list[float | None]:
    """[mean of after - before, low, high] with Student's 95% interval; no interval for fewer than two pairs."""
    from scipy.stats import ttest_1samp

    changes = np.asarray(after) - np.asarray(before)
    value = float(changes.mean())
    if len(changes) < 2:
        return [value, None, None]
    if np.ptp(changes) == 0:
        return [value, value, value]
    interval = ttest_1samp(changes, 0).confidence_interval(0.95)
    return [value, float(interval.low), float(interval.high)]


def last_summary(folder: Path) -> list[dict[str, Any]]:
    """The steps of OUTPUT/samples/summary.json; empty if nothing was sampled."""
    return (read_json(folder / "summary.json") or {}).get("steps", [])
