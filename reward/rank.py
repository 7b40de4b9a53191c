"""`python -m reward score`: ranks the answers in a file by a reward model.

A line of the input (JSONL, may be gzipped) is one of reward.answers.FORMS, with an optional "id". The output has one
line for each input line, in the same order, written CHUNK lines at a time. A killed command resumes at the first
missing chunk, with the same numbers as without the kill. scores.provenance.json beside the output scores.jsonl has the
provenance and, at the end, the summary.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from scipy.stats import rankdata
from tqdm import tqdm

from eval.cli.columns import columns
from eval.cli.dispatch import JSON_HELP
from eval.data.readers import read_jsonl, sha256
from eval.errors import InputError
from eval.files import now, prepare_output, read_json, write_json
from eval.runner.provenance import command, git_commit, machine, tokenizer_sha256, versions
from reward.answers import FORMS, Line, read_lines
from reward.dialogues import Message, token_ids
from reward.scoring import RewardModel, load_reward_model

CHUNK = 32  # lines per scored and written chunk
SHOWN = 20  # the terminal shows every answer up to this number
IDENTITY = ("answers_sha256", "weights", "tokenizer_sha256", "dtype", "max_length", "read_at")
"""What every reward in the output depends on. Output that differs in one of these is refused, never mixed."""
REMEDY = "choose another --output or remove it"


@dataclass
class ScoreConfig:
    """Options of `python -m reward score`."""

    model: str = field(default="", metadata={"help": "folder or hub id of a reward model"})
    answers: str = field(default="", metadata={"help": f"JSONL file, a line being {FORMS}"})
    output: str = field(default="", metadata={"help": "JSONL file of the ranks; default runs/score/<answers>.jsonl"})
    revision: str | None = field(default=None, metadata={"help": "revision of a model from the hub"})
    dtype: str = field(default="auto", metadata={"help": "auto (as stored), float32, bfloat16 or float16"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:0 ..."})
    batch_tokens: int = field(default=8192, metadata={"help": "most tokens in a forward pass, padding included"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "execute code that the model's repository brings along; read it first"}
    )
    json: bool = field(default=False, metadata={"help": JSON_HELP})

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("reward score: --model is missing; give the folder or the hub id of a reward model")
        if not self.answers:
            raise InputError("reward score: --answers is missing; give a JSONL file of prompts with answers")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"dtype must be auto, float32, bfloat16 or float16, not '{self.dtype}'")
        if self.batch_tokens < 1:
            raise InputError(f"batch_tokens must be at least 1, not {self.batch_tokens}")
        name = Path(self.answers).name.removesuffix(".gz").removesuffix(".jsonl")
        self.output = self.output or str(Path("runs") / "score" / f"{name}.jsonl")
        if Path(self.output).resolve() == Path(self.answers).resolve():
            raise InputError(f"--output {self.output} is the file of answers; choose another --output")


def score(config: ScoreConfig) -> dict[str, Any]:
    """Ranks the answers into config.output.

    Reads every line and checks its length in tokens before it scores the first.

    Returns:
        The provenance of the output with "output" and "summary" (see `summarise`).

    Raises:
        InputError: a line cannot be scored (the message names file and line), or the output is of another model or of
            other answers.
    """
    path, output = Path(config.answers), Path(config.output)
    n_lines = sum(1 for _ in read_lines(path))
    if not n_lines:
        raise InputError(f"{path} has no line; each must be {FORMS}")
    prepare_output(output.parent)
    with _lock_output(output):
        model = load_reward_model(
            config.model, config.revision, config.dtype, config.device, config.trust_remote_code
        )  # fmt: skip
        model.batch_tokens = config.batch_tokens
        provenance = {
            "answers": str(path), "answers_sha256": sha256([path]), "lines": n_lines, **model.provenance,
            "tokenizer_sha256": tokenizer_sha256(model.tokenizer), "max_length": model.max_length,
            "git_commit": git_commit(), "command": command(), "versions": versions(), "machine": machine(),
            "started": now(),
        }  # fmt: skip
        done = _resume(output, provenance)
        _check_lengths(path, model, done, n_lines)
        with tqdm(total=n_lines, initial=done, desc="scoring", unit="line") as bar:
            lines = islice(read_lines(path), done, None)
            while chunk := list(islice(lines, CHUNK)):
                _append(output, rank_lines(chunk, model))
                bar.update(len(chunk))
        result = {**(read_json(_sidecar(output)) or provenance), "ended": now(), "summary": summarise(output)}
        write_json(_sidecar(output), result)
    return {"output": str(output), **result}


def _check_lengths(path: Path, model: RewardModel, done: int, n_lines: int) -> None:
    """Raises InputError, with file and line, for the first dialogue that the model cannot read whole."""
    lines = islice(read_lines(path), done, None)
    for line in tqdm(lines, total=n_lines, initial=done, desc="checking lengths", unit="line"):
        for dialogue in line.dialogues():
            _ids(model, dialogue, line.where)


def _ids(model: RewardModel, dialogue: list[Message], where: str) -> list[int]:
    try:
        return model.ids(dialogue)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def rank_lines(lines: Sequence[Line], model: RewardModel) -> list[dict[str, Any]]:
    """Scores and ranks the answers of each line. Answers with the same text are scored once, so that they tie exactly.

    Returns:
        A record per line: {"line", "id" if given, "answers": best first, each {"rank", "reward", "index", "tokens",
        "cut", "text" and, for pairs, "label"}}. index: the answer's place in the input, from 0. rank: ties share the
        better rank (1, 1, 3) and keep their order. tokens: what the model reads. cut: whether older turns were removed
        for its max_length.
    """
    texts_by_line = [list(dict.fromkeys(line.answers)) for line in lines]
    dialogues = [
        [*line.prompt, {"role": "assistant", "content": t}]
        for line, texts in zip(lines, texts_by_line, strict=True)
        for t in texts
    ]
    try:
        scores = iter(model.scores(dialogues).tolist())
    except InputError:
        for line in lines:  # find the line, for the message
            try:
                model.scores(line.dialogues())
            except InputError as error:
                raise InputError(f"{line.where}: {error}") from error
        raise
    return [
        _record(line, {text: next(scores) for text in texts}, model)
        for line, texts in zip(lines, texts_by_line, strict=True)
    ]


def _record(line: Line, rewards: dict[str, float], model: RewardModel) -> dict[str, Any]:
    values = np.array([rewards[a] for a in line.answers])
    ranks = rankdata(-values, method="min")
    answers = []
    for k in np.argsort(-values, kind="stable").tolist():
        dialogue = line.dialogues()[k]
        n_tokens = len(_ids(model, dialogue, line.where))
        cut = len(token_ids(model.tokenizer, dialogue)) > n_tokens
        entry = {
            "rank": int(ranks[k]), "reward": float(values[k]), "index": k, "tokens": n_tokens, "cut": cut,
            "text": line.answers[k],
        }  # fmt: skip
        answers.append(entry | ({"label": line.labels[k]} if line.labels else {}))
    number = int(line.where.rpartition(":")[2])
    return {"line": number, **({} if line.id is None else {"id": line.id}), "answers": answers}


def summarise(output: Path) -> dict[str, Any]:
    """Summarises the rewards in an output file, in the reward model's units. They describe this file: no intervals.

    Returns:
        {"lines", "answers", "mean", "std", "low", "high": of all rewards, "best_of_n": {"lines", "gap", "n"}, "ties",
        "pairs", "cut"}. best_of_n: over lines with several answers, the mean of the best reward minus the mean of the
        line's; n: the least and the most answers. ties: such lines whose best reward several answers share. pairs: of
        lines with chosen and rejected, how often each got the higher reward.
    """
    rewards: list[float] = []
    gaps: list[float] = []
    counts: list[int] = []
    lines, ties, cut, pairs = 0, 0, 0, {"n": 0, "chosen_more": 0, "rejected_more": 0, "equal": 0}
    for _, record in read_jsonl(output, ("line", "answers")):
        line_rewards = [a["reward"] for a in record["answers"]]
        lines, cut = lines + 1, cut + sum(a["cut"] for a in record["answers"])
        rewards += line_rewards
        if len(line_rewards) > 1:
            gaps.append(line_rewards[0] - float(np.mean(line_rewards)))
            counts.append(len(line_rewards))
            ties += line_rewards[0] == line_rewards[1]
        if "label" in record["answers"][0]:
            first = record["answers"][0]["label"]
            pairs["n"] += 1
            pairs["equal" if line_rewards[0] == line_rewards[1] else f"{first}_more"] += 1
    spread = float(np.std(rewards, ddof=1)) if len(rewards) > 1 else None
    return {
        "lines": lines, "answers": len(rewards), "mean": float(np.mean(rewards)), "std": spread,
        "low": min(rewards), "high": max(rewards),
        "best_of_n": {"lines": len(gaps), "gap": float(np.mean(gaps)), "n": [min(counts), max(counts)]}
        if gaps else None,
        "ties": ties, "pairs": pairs if pairs["n"] else None, "cut": cut,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The summary as text, with the ranks if there are at most SHOWN answers."""
    s, output, parts = result["summary"], Path(result["output"]), []
    if s["answers"] <= SHOWN:
        rows = [("line", "rank", "reward", "tokens", "answer")]
        for _, record in read_jsonl(output, ("line", "answers")):
            for a in record["answers"]:
                text = " ".join(a["text"].split())
                text = text if len(text) <= 60 else text[:57] + "..."
                rows.append((str(record["line"]), str(a["rank"]), f"{a['reward']:.4f}", str(a["tokens"]), text))
        parts.append(columns(rows) + "\n")
    spread = "" if s["std"] is None else f", standard deviation {s['std']:.4f}"
    parts.append(
        f"{s['answers']} answers on {s['lines']} lines: mean reward {s['mean']:.4f}{spread}, {s['low']:.4f} to "
        f"{s['high']:.4f}"
    )
    if s["best_of_n"]:
        least, most = s["best_of_n"]["n"]
        n = str(least) if least == most else f"{least} to {most}"
        parts.append(
            f"best of {n} over the mean of its line: +{s['best_of_n']['gap']:.4f} on average, {s['ties']} of "
            f"{s['best_of_n']['lines']} lines with a tie for the best"
        )
    if s["pairs"]:
        p = s["pairs"]
        parts.append(
            f"{p['n']} pairs: chosen gets more in {p['chosen_more']}, rejected in {p['rejected_more']}, equal in "
            f"{p['equal']}"
        )
    if s["cut"]:
        parts.append(f"{s['cut']} dialogues are longer than {result['max_length']} tokens: oldest turns left out")
    return "\n".join([*parts, str(output)])


def _sidecar(output: Path) -> Path:
    return output.with_name(output.name.removesuffix(".jsonl") + ".provenance.json")


@contextlib.contextmanager
def _lock_output(output: Path) -> Iterator[None]:
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(f"{output} is being written by another process; wait for its end or {REMEDY}") from error
    try:
        yield
    finally:
        lock.release()


def _resume(output: Path, provenance: dict[str, Any]) -> int:
    """The number of finished lines: whole chunks; an incomplete last chunk is removed.

    Raises InputError for the output of another command.
    """
    earlier = read_json(_sidecar(output))
    if earlier is None:
        if output.exists():
            raise InputError(f"{output} is there, and not written by reward score; {REMEDY}")
        write_json(_sidecar(output), provenance)
        return 0
    for name in IDENTITY:
        if earlier.get(name) != provenance.get(name):
            raise InputError(
                f"{output} was made with another {name} ({earlier.get(name)} there, {provenance.get(name)} "
                f"now); {REMEDY}"
            )
    if not output.exists():
        return 0
    with output.open("rb+") as handle:
        ends = [0]
        for line in handle:
            ends += [ends[-1] + len(line)] if line.endswith(b"\n") else []
        done = len(ends) - 1
        done = done if done == provenance["lines"] else done // CHUNK * CHUNK
        handle.truncate(ends[done])
    return done


def _append(output: Path, records: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(r, allow_nan=False, ensure_ascii=False) + "\n" for r in records)
    try:
        with output.open("ab") as handle:
            handle.write(lines.encode())
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise InputError(
            f"{output} cannot be written ({error.strerror}); make room and run the same command again: it goes on"
        ) from error
